//! Identifiers: order, display and parse.

mod strategies;

use proptest::prelude::*;
use strategies::{gtid, lineage, resource};
use synod_proto::ids::{
    BranchId, CallId, ClusterId, ExecutionId, Gtid, Incarnation, Lineage, ResourceId, UnixMillis,
};

/// The largest instant that fits the 48 bits of a UUIDv7 (RFC 9562, section 5.7): the year 10889.
const MILLIS_MAX: u64 = (1 << 48) - 1;

proptest! {
    /// The watermark compares gtids by the time they began (T9, T14), in memory, on the wire and on disk alike.
    #[test]
    fn gtids_sort_by_time(a in 0..=MILLIS_MAX, b in 0..=MILLIS_MAX, x in any::<[u8; 10]>(), y in any::<[u8; 10]>()) {
        let (first, second) = (Gtid::new(UnixMillis(a), x), Gtid::new(UnixMillis(b), y));
        prop_assert_eq!((first.began_at(), second.began_at()), (UnixMillis(a), UnixMillis(b)));
        if a != b {
            prop_assert_eq!(first.cmp(&second), a.cmp(&b));
        }
        prop_assert_eq!(first.cmp(&second), first.to_bytes().cmp(&second.to_bytes()));
        prop_assert_eq!(first.cmp(&second), first.to_string().cmp(&second.to_string()));
    }

    #[test]
    fn gtids_read_what_they_write(gtid in gtid()) {
        prop_assert_eq!(gtid.to_string().parse(), Ok(gtid));
        prop_assert_eq!(Gtid::from_bytes(gtid.to_bytes()), Ok(gtid));
    }

    /// A20: ids are canonical on entry: other spellings of a UUID are the same id.
    #[test]
    fn gtids_have_one_value_for_every_spelling(gtid in gtid()) {
        let text = gtid.to_string();
        for spelling in [text.to_uppercase(), text.replace('-', ""), format!("{{{text}}}"), format!("urn:uuid:{text}")] {
            prop_assert_eq!(spelling.parse::<Gtid>(), Ok(gtid), "{}", spelling);
        }
    }

    /// Of the 16 bytes, exactly the version and the variant can be wrong.
    #[test]
    fn only_version_and_variant_are_checked(bytes in any::<[u8; 16]>()) {
        let is_version_7 = bytes[6] >> 4 == 7 && bytes[8] >> 6 == 0b10;
        match Gtid::from_bytes(bytes) {
            Ok(gtid) => prop_assert!(is_version_7 && gtid.to_bytes() == bytes),
            Err(_) => prop_assert!(!is_version_7),
        }
    }

    #[test]
    fn uuids_read_what_they_write(lineage in lineage(), resource in resource()) {
        prop_assert_eq!(lineage.to_string().parse::<Lineage>(), Ok(lineage));
        prop_assert_eq!(resource.to_string().parse::<ResourceId>(), Ok(resource));
        let incarnation = Incarnation(lineage.0);
        prop_assert_eq!(incarnation.to_string().parse::<Incarnation>(), Ok(incarnation));
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in ".{0,80}") {
        let _ = text.parse::<Gtid>();
        let _ = text.parse::<Lineage>();
        if let Ok(cluster) = text.parse::<ClusterId>() {
            prop_assert_eq!(cluster.as_str(), text);
        }
    }
}

fn error_of<T: std::str::FromStr<Err = E>, E: std::fmt::Display>(text: &str) -> Option<String> {
    text.parse::<T>().err().map(|error| error.to_string())
}

#[test]
fn a_gtid_is_shown_as_a_uuid_of_version_7() {
    // The example of RFC 9562, appendix A.6.
    let random = [0x0c, 0xc3, 0x18, 0xc4, 0xdc, 0x0c, 0x0c, 0x07, 0x39, 0x8f];
    let gtid = Gtid::new(UnixMillis(1_645_557_742_000), random);
    assert_eq!(gtid.to_string(), "017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
    assert_eq!(format!("{gtid:?}"), "Gtid(017f22e2-79b0-7cc3-98c4-dc0c0c07398f)");
    let branch = BranchId {
        gtid,
        call: CallId(0xa),
        execution: ExecutionId(u64::MAX),
    };
    assert_eq!(
        branch.to_string(),
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398f/000000000000000a/ffffffffffffffff"
    );
}

#[test]
fn wrong_texts_are_named_and_cut() {
    assert_eq!(
        error_of::<Gtid, _>("919108f7-52d1-4320-9bac-f847db4148a8").as_deref(),
        Some("`919108f7-52d1-4320-9bac-f847db4148a8` is not a gtid (UUID version 7)")
    );
    assert_eq!(
        error_of::<Lineage, _>("").as_deref(),
        Some("`` is not a lineage (UUID)")
    );
    let long = "ß".repeat(1000);
    assert_eq!(
        error_of::<Gtid, _>(&long),
        Some(format!("`{}` is not a gtid (UUID version 7)", "ß".repeat(64)))
    );
}

#[test]
fn cluster_names() {
    for name in ["a", "synod-dev", "x1", &"c".repeat(40)] {
        assert_eq!(
            name.parse::<ClusterId>()
                .map(|cluster| cluster.to_string())
                .as_deref(),
            Ok(name)
        );
    }
    for name in ["", "1a", "-a", "A", "a_b", "a b", "ä", &"c".repeat(41)] {
        assert!(name.parse::<ClusterId>().is_err(), "{name}");
    }
}

#[test]
fn instants_saturate() {
    assert_eq!(UnixMillis(5).plus(u64::MAX), UnixMillis(u64::MAX));
    assert_eq!(UnixMillis(5).minus(6), UnixMillis(0));
}
