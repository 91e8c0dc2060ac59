//! What a configuration may say, and how it is refused.

use super::*;

const GOOD: &str = "cluster = \"orders\"\nreplica = 2\ndata = \"/var/lib/synod\"\nheartbeat_ms = 20\n\n[peers]\n1 = \"a:7401\"\n2 = \"b:7401\"\n3 = \"c:7401\"\n";

fn finish(text: &str) -> Result<Settings, String> {
    Draft::parse(Path::new("synod.toml"), text)
        .and_then(Draft::finish)
        .map_err(|error| error.to_string())
}

fn addresses() -> BTreeMap<ReplicaId, String> {
    [(1, "a:7401"), (2, "b:7401"), (3, "c:7401")]
        .map(|(id, address)| (ReplicaId(id), address.to_owned()))
        .into()
}

#[test]
fn a_file_is_read_and_the_rest_is_default() {
    let cluster = "orders".parse().expect("a cluster id");
    let expected = Settings {
        heartbeat_ms: 20,
        ..Settings::new(
            cluster,
            ReplicaId(2),
            addresses(),
            PathBuf::from("/var/lib/synod"),
        )
    };
    assert_eq!(finish(GOOD), Ok(expected.clone()));
    assert_eq!(expected.listen, "b:7401");
}

#[test]
fn flags_override_the_file() {
    let mut draft = Draft::parse(Path::new("synod.toml"), GOOD).expect("parses");
    draft.set_replica(3);
    draft.set_listen("0.0.0.0:7401".to_owned());
    let settings = draft.finish().expect("valid");
    assert_eq!(
        (settings.replica, settings.listen.as_str()),
        (ReplicaId(3), "0.0.0.0:7401")
    );
}

/// J4: what cannot be read is refused with its line, and never replaced by a default.
#[test]
fn every_broken_rule_names_its_line() {
    let cases = [
        (
            GOOD.replace("heartbeat_ms", "hartbeat_ms"),
            "synod.toml:4: unknown field `hartbeat_ms`",
        ),
        (
            GOOD.replace("replica = 2", "replica = \"2\""),
            "synod.toml:2: invalid type: string \"2\", expected u64",
        ),
        (
            GOOD.replace("replica = 2", "replica = 4"),
            "synod.toml:2: replica 4 is not among the peers (1, 2, 3)",
        ),
        (
            GOOD.replace("\"orders\"", "\"Orders\""),
            "synod.toml:1: `Orders` is not a cluster id",
        ),
        (GOOD.replace("b:7401", "b"), "synod.toml:8: `b` is not HOST:PORT"),
        (
            GOOD.replace("b:7401", "b:0"),
            "synod.toml:8: `b:0` is not HOST:PORT",
        ),
        (
            GOOD.replace("b:7401", "a:7401"),
            "synod.toml:8: replicas 1 and 2 have the same address a:7401",
        ),
        (
            GOOD.replace("3 = ", "300 = "),
            "synod.toml:9: `300` is not a replica's number",
        ),
        (
            GOOD.replace("= 20", "= 0"),
            "synod.toml:4: 0 is out of range: 1 to 60000",
        ),
        (
            GOOD.replace("heartbeat_ms = 20", "election_timeout_ms_min = 60"),
            "synod.toml:4: 60 is out of range: 150 to 600000 (three heartbeats: two may be lost)",
        ),
        (
            GOOD.replace("heartbeat_ms = 20", "watermark_lag_ms = 1000"),
            "synod.toml:4: 1000 is out of range: 600000 to 31536000000 (at least twice the longest deadline)",
        ),
        (
            GOOD.replace("heartbeat_ms = 20", "trace = \"x=y=z\""),
            "synod.toml:4: the trace's filter `x=y=z`: ",
        ),
        (GOOD.replace("replica = 2", "replica = "), "synod.toml:2: "),
        (
            GOOD.replace("data = \"/var/lib/synod\"\n", ""),
            "`data` is missing",
        ),
        (
            "cluster = \"a\"\nreplica = 1\ndata = \"d\"\n".to_owned(),
            "`peers` is missing",
        ),
    ];
    for (text, expected) in cases {
        let error = finish(&text).expect_err(expected);
        assert!(error.starts_with(expected), "{error}\nexpected: {expected}");
    }
}

#[test]
fn peers_on_the_command_line() {
    let peers = |list: &[&str]| {
        let list: Vec<_> = list.iter().map(ToString::to_string).collect();
        Draft::default()
            .set_peers(&list)
            .map_err(|error| error.to_string())
    };
    assert_eq!(peers(&["1=a:1", "2=[::1]:2"]), Ok(()));
    assert_eq!(peers(&["1"]), Err("--peer: `1` is not ID=HOST:PORT".to_owned()));
    assert_eq!(
        peers(&["1=a:1", "1=b:1"]),
        Err("--peer: replica 1 is named twice".to_owned())
    );
}
