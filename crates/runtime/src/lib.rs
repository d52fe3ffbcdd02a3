//! optix-runtime.
