//! The examples' own documentation lies in their programs. This library only makes the compiler read the README, whose
//! code is thereby always code that compiles.

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
