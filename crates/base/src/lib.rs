//! optix-base.
