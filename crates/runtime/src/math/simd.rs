//! Vector loads and stores, and the choice of instruction set at run time.
//!
//! The kernels of this folder are written once over [`pulp::Simd`]; [`dispatch`] runs them with the
//! widest instruction set that both the build and the processor have. Everything here is safe code: the
//! binary starts on any x86-64, and on other architectures the scalar form runs.

use pulp::{Arch, Simd, WithSimd};

/// Runs `op` with the widest vectors this processor has.
#[inline]
pub(crate) fn dispatch<Op: WithSimd>(op: Op) -> Op::Output {
    // Detection is cached by the standard library: a few loads a call.
    Arch::new().dispatch(op)
}

/// Runs a closure compiled for the widest instruction set, for loops the compiler vectorizes by itself.
/// The closure and what it calls must be `#[inline(always)]` to be compiled for it.
#[inline]
pub(crate) fn vectorized<R>(body: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(body)
}

/// One vector to the start of `target`.
///
/// # Panics
/// When `target` is shorter than a vector.
#[inline(always)]
pub(crate) fn store<S: Simd>(target: &mut [f32], value: S::f32s) {
    bytemuck::cast_slice_mut::<f32, S::f32s>(&mut target[..S::F32_LANES])[0] = value;
}

/// Elements of the vectors that [`dispatch`] uses.
pub(crate) fn lanes() -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    dispatch(Lanes)
}
