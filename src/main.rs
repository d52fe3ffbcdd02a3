//! The command line of optix.
fn main() {}
