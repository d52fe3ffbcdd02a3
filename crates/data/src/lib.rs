//! optix-data.
