//! Memory for results, used again from step to step and from run to run.
//!
//! Large blocks that go back to the system with every freed value come back as untouched pages, and
//! faulting those in can cost more than the arithmetic that fills them. A session therefore keeps what its
//! values leave behind. It never holds more than the most that was in use at one time: kept and used
//! blocks together stay within that mark.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use optix_ir::{DType, Tensor, TensorError, element_count};

/// Elements below which a block comes from the allocator: it keeps small blocks by itself.
const SMALL: usize = 4 << 10;

/// Blocks of 32-bit floats that wait for their next use.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Free blocks by capacity.
    free: BTreeMap<usize, Vec<Vec<f32>>>,
    /// Elements of free blocks.
    kept: usize,
    /// Elements in use.
    used: usize,
    /// The most elements that were in use at one time.
    most: usize,
}

impl State {
    /// Takes the smallest free block of at least `length` elements, but none that is far too large.
    fn take(&mut self, length: usize) -> Option<Vec<f32>> {
        let (&capacity, blocks) = self.free.range_mut(length..=length.saturating_mul(2)).next()?;
        let block = blocks.pop()?;
        if blocks.is_empty() {
            self.free.remove(&capacity);
        }
        self.kept -= capacity;
        Some(block)
    }

    /// Gives free blocks back to the system until what is held is within the mark again.
    fn trim(&mut self) {
        while self.used + self.kept > self.most {
            let Some((capacity, mut blocks)) = self.free.pop_first() else { break };
            blocks.pop();
            self.kept -= capacity;
            if !blocks.is_empty() {
                self.free.insert(capacity, blocks);
            }
        }
    }
}

impl Buffers {
    /// A block of `length` elements. **What is in it is arbitrary**: a kernel writes every element.
    pub(crate) fn take(self: &Arc<Self>, length: usize) -> Block {
        if length < SMALL {
            return Block { data: fresh(length), home: Weak::new() };
        }
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let reused = state.take(length);
        let capacity = reused.as_ref().map_or(length, Vec::capacity);
        state.used += capacity;
        state.most = state.most.max(state.used);
        state.trim();
        drop(state);
        let data = match reused {
            Some(mut block) => {
                block.resize(length, 0.0);
                poison(&mut block);
                block
            }
            None => fresh(length),
        };
        Block { data, home: Arc::downgrade(self) }
    }

    fn put(&self, block: Vec<f32>) {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let capacity = block.capacity();
        state.used = state.used.saturating_sub(capacity);
        if state.used + state.kept + capacity <= state.most {
            state.kept += capacity;
            state.free.entry(capacity).or_default().push(block);
        }
    }
}

fn fresh(length: usize) -> Vec<f32> {
    let mut block = vec![0.0; length];
    poison(&mut block);
    block
}

/// In tests, what a kernel forgets to write shows.
fn poison(block: &mut [f32]) {
    if cfg!(test) {
        block.fill(f32::NAN);
    }
}

/// Memory of one result. It goes back to where it came from when it is dropped, also as a tensor's payload.
#[derive(Debug)]
pub(crate) struct Block {
    data: Vec<f32>,
    home: Weak<Buffers>,
}

impl Block {
    /// The elements as a tensor of 32-bit floats.
    ///
    /// # Panics
    /// When `shape` has another number of elements.
    pub(crate) fn into_tensor(self, shape: Vec<usize>) -> Tensor {
        assert_eq!(element_count(&shape), Some(self.len()), "element count of shape {shape:?}");
        self.into_tensor_of(DType::F32, shape).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The first bytes, as many as the shape needs, as a tensor of any type of whole bytes.
    ///
    /// # Errors
    /// When the block is too small.
    pub(crate) fn into_tensor_of(self, dtype: DType, shape: Vec<usize>) -> Result<Tensor, TensorError> {
        let bytes = Bytes::from_owner(self);
        let needed = element_count(&shape).and_then(|count| count.checked_mul(dtype.bits() / 8));
        let length = needed.unwrap_or(usize::MAX).min(bytes.len());
        Tensor::new(dtype, shape, bytes.slice(..length))
    }
}

impl std::ops::Deref for Block {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data
    }
}

impl std::ops::DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.data)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            home.put(std::mem::take(&mut self.data));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(buffers: &Buffers) -> (usize, usize, usize) {
        let state = buffers.state.lock().unwrap();
        (state.used, state.kept, state.most)
    }

    #[test]
    fn blocks_come_back_and_the_mark_holds() {
        let buffers = Arc::new(Buffers::default());
        let first = buffers.take(10_000);
        let at = first.as_ptr();
        let tensor = first.into_tensor(vec![100, 100]);
        assert_eq!(held(&buffers), (10_000, 0, 10_000));
        drop(tensor);
        assert_eq!(held(&buffers), (0, 10_000, 10_000));
        let again = buffers.take(8_000);
        assert_eq!((again.as_ptr(), again.len()), (at, 8_000));
        // A block that fits nothing kept: what is kept makes room for it.
        drop(again);
        let larger = buffers.take(30_000);
        assert_eq!(held(&buffers), (30_000, 0, 30_000));
        drop(larger);
        assert_eq!(held(&buffers), (0, 30_000, 30_000));
    }

    #[test]
    fn a_tensor_outlives_its_session() {
        let buffers = Arc::new(Buffers::default());
        let mut block = buffers.take(5_000);
        block.fill(2.0);
        let tensor = block.into_tensor(vec![5_000]);
        drop(buffers);
        assert_eq!(tensor.to_slice::<f32>().unwrap()[4_999], 2.0);
    }
}
