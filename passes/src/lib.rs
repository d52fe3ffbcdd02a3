//! The passes of optix: one file, one pass.
//!
//! A pass transforms a model and nothing else: it reads no files, prints nothing and runs models only
//! through the oracle of its context. To add one, write its file, a `mod` line, and its line in [`PASSES`];
//! docs/adding-a-pass.md walks through it.

pub mod clean;
mod cut;
mod decided;
pub mod distill;
mod evenly;
mod judge;
mod moments;
mod names;
mod numbered;
pub mod precision;
pub mod prune;
pub mod quantize;
mod samples;
mod unroll;

use optix_pipeline::PassSpec;

/// Every pass, in the order of the documentation.
pub static PASSES: &[PassSpec] = &[
    PassSpec::of::<clean::FoldConstants>(),
    PassSpec::of::<clean::FoldBatchNorm>(),
    PassSpec::of::<clean::FoldBias>(),
    PassSpec::of::<clean::EliminateIdentity>(),
    PassSpec::of::<clean::EliminateCommonSubexpressions>(),
    PassSpec::of::<clean::EliminateDead>(),
    PassSpec::of::<clean::MergeInitializers>(),
    PassSpec::of::<clean::ConvertOpset>(),
    PassSpec::of::<prune::PruneMagnitude>(),
    PassSpec::of::<prune::PruneWanda>(),
    PassSpec::of::<prune::PruneSparsegpt>(),
    PassSpec::of::<prune::PruneChannels>(),
    PassSpec::of::<prune::PruneLayers>(),
    PassSpec::of::<prune::Factorize>(),
    PassSpec::of::<distill::Distill>(),
    PassSpec::of::<distill::DistillQuantized>(),
    PassSpec::of::<quantize::EqualizeLayers>(),
    PassSpec::of::<quantize::SmoothActivations>(),
    PassSpec::of::<quantize::QuantizeStatic>(),
    PassSpec::of::<quantize::QuantizeDynamic>(),
    PassSpec::of::<quantize::CompressWeights>(),
    PassSpec::of::<quantize::LearnRounding>(),
    PassSpec::of::<quantize::CertifyOverflow>(),
    PassSpec::of::<precision::ConvertPrecision>(),
    PassSpec::of::<quantize::QuantizeWeights>(),
    PassSpec::of::<quantize::ToQdq>(),
    PassSpec::of::<quantize::ToQoperator>(),
];
