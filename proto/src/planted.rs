//! Bugs that are planted on purpose, to prove that the tests find bugs.
//!
//! `planted!(Name)` is the literal `false` in every build but one under `cfg(planted)`. There it asks whether this process
//! has selected the bug of that name; at most one is selected, once. `tests/plant` makes that build, the program
//! `planted` of `synod-tests` runs it, and `tests/PLANTED.md` says how long it took to find each.

#[cfg(planted)]
mod bugs;
#[cfg(planted)]
pub use bugs::{Bug, Means, is_selected, select, selected};

/// What a program says at its start if it holds planted bugs: such a one must serve nobody.
pub const WARNING: Option<&str> = if cfg!(planted) {
    Some("built under cfg(planted), with bugs that are planted for tests: not for use")
} else {
    None
};

/// Whether the bug of this name is planted, and selected.
#[cfg(not(planted))]
#[macro_export]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

/// Whether the bug of this name is planted, and selected.
#[cfg(planted)]
#[macro_export]
macro_rules! planted {
    ($bug:ident) => {
        $crate::planted::is_selected($crate::planted::Bug::$bug)
    };
}
