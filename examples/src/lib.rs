//! What the examples share: a coordinator of three replicas as processes, which can be killed, processes in general, and what a
//! program begins and ends with.
//! The examples' own documentation lies in their programs.
//!
//! The library also makes the compiler read the README, whose code is thereby always code that compiles.

pub mod cluster;
pub mod process;
pub mod program;
pub mod replica;

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
