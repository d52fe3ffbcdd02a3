//! A call of a fast kernel: the node and its inputs, where memory for results comes from, and the chain of
//! elementwise operators that is to be applied to the result.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use optix_ir::{DType, Tensor};
use optix_ops::{Call, OpError};

use super::buffers::{Block, Buffers};
use super::{Fast, parallel, size};
use crate::fuse::program::{Bound, Misfit, Program};

/// One call.
pub(crate) struct Job<'a> {
    call: Call<'a>,
    buffers: &'a Arc<Buffers>,
    chain: Option<Chain<'a>>,
    /// What became of the chain, once a kernel has asked for it.
    applied: OnceLock<Applied>,
}

/// A program and the tensors it reads, by input.
#[derive(Clone, Copy)]
pub(crate) struct Chain<'a> {
    pub program: &'a Program,
    pub tensors: &'a [Option<&'a Tensor>],
}

/// What became of a job's chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Applied {
    /// The kernel did not see to it (it declined, or there is none).
    No,
    /// The result is that of the chain.
    Yes,
    /// It cannot be applied, since an operand of that step does not fit.
    Misfit(usize),
}

impl<'a> Deref for Job<'a> {
    type Target = Call<'a>;

    fn deref(&self) -> &Call<'a> {
        &self.call
    }
}

impl<'a> Job<'a> {
    /// A call whose results' memory comes from `buffers`.
    pub(crate) fn new(call: Call<'a>, buffers: &'a Arc<Buffers>, chain: Option<Chain<'a>>) -> Job<'a> {
        Job { call, buffers, chain, applied: OnceLock::new() }
    }

    /// What became of the chain.
    pub(crate) fn applied(&self) -> Applied {
        self.applied.get().copied().unwrap_or(Applied::No)
    }

    /// The chain for a result of `shape`. A kernel that asks takes it upon itself to apply it to every
    /// element; one that does not leaves that to [`Job::one`].
    pub(crate) fn chain(&self, shape: &[usize]) -> Option<Bound<'a>> {
        let chain = self.chain?;
        let bound = chain.program.bind(shape, chain.tensors);
        self.applied.get_or_init(|| match bound {
            Ok(_) => Applied::Yes,
            Err(Misfit(step)) => Applied::Misfit(step),
        });
        bound.ok()
    }

    /// Memory for a result of 32-bit floats, its size checked against the call's limit first. **Its content
    /// is arbitrary.**
    pub(crate) fn buffer(&self, shape: &[usize]) -> Result<Block, OpError> {
        self.call.check_size(DType::F32, shape)?;
        Ok(self.buffers.take(size(shape)))
    }

    /// Memory for `length` floats that no tensor takes away.
    pub(crate) fn scratch(&self, length: usize) -> Block {
        self.buffers.take(length)
    }

    /// The answer of a kernel with one result of 32-bit floats, the chain applied if the kernel has not.
    ///
    /// Kernels compute `data` for `shape` themselves, so a mismatch is an error of ours.
    pub(crate) fn one(&self, shape: Vec<usize>, mut data: Block) -> Fast {
        if self.applied() == Applied::No
            && let Some(chain) = self.chain(&shape)
        {
            parallel::chunks(&mut data, 4, |start, part| chain.apply(start, part));
        }
        Ok(Some(vec![data.into_tensor(shape)]))
    }
}
