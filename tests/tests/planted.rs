//! Planted bugs are absent from every build but their own: `planted!` is a constant there, and the program `synod` does not
//! hold what one that was built with them says at its start.
#![cfg(not(planted))]

use synod_proto::planted;
use synod_tests::process::program::binary;

/// What [`planted::WARNING`] says in the other build.
const MARKER: &[u8] = b"with bugs that are planted for tests";

const _: () = assert!(!planted!(ReplyBeforeSync), "a constant, and false");
const _: () = assert!(!planted!(SecondOutcomeOverwrites), "a constant, and false");
const _: () = assert!(planted::WARNING.is_none(), "there is nothing to warn of");

/// The text is in the program of the other build: `planted` says so, by a look at its own file.
#[test]
fn a_program_that_is_not_built_for_them_holds_no_planted_bugs() {
    let path = binary("synod");
    let bytes = std::fs::read(&path).expect("the program was built before its tests");
    assert!(bytes.len() > 1 << 20, "{} is a program", path.display());
    let holds = bytes.windows(MARKER.len()).any(|window| window == MARKER);
    assert!(!holds, "{} was built with planted bugs", path.display());
}
