//! optix-pipeline.
