//! optix-io.
mod proto;
