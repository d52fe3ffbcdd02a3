//! A facade.
