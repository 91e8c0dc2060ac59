//! The driver against a coordinator in the same process.
