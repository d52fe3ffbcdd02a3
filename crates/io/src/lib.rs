//! optix-io.
