//! Levels of two modules and of named extensions, as tables: who waits, who refuses, who goes on,
//! and what is in every node's row afterwards. The rows are microcluster's, where "internal" is
//! the module `quire` and "external" the module `app`.

use std::collections::BTreeMap;
use std::sync::Arc;

use quire::cluster::{
    ApiExtensions, Builder, Database, Extensions, Level, Registration, Replicated, Status, nodes,
};

use crate::support::{builder, dir, execute, module, select};
use crate::trio::Trio;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Expected {
    Ready,
    Waits(usize),
    Behind,
    Inconsistent,
}
use Expected::{Behind, Inconsistent, Ready, Waits};

/// One row: this node's level of before, that of its program, the peers'.
struct Row<'a, T> {
    name: &'a str,
    before: T,
    own: T,
    peers: Vec<T>,
    expected: Expected,
}

fn row<T>(name: &str, before: T, own: T, peers: Vec<T>, expected: Expected) -> Row<'_, T> {
    Row { name, before, own, peers, expected }
}

/// What a row of a table says of a level.
type Parts = (u64, u64, &'static [&'static str]);

fn level((internal, external, names): Parts) -> Level {
    let modules = [("quire".to_owned(), internal), ("app".to_owned(), external)];
    Level::of(BTreeMap::from(modules), &extensions(names))
}

fn extensions(names: &[&str]) -> Extensions {
    let mut extensions = Extensions::new();
    extensions.register(names).unwrap();
    extensions
}

fn program((internal, external, names): Parts) -> Builder {
    // The module `quire` has two updates: more of them are written into rows only.
    assert_eq!(internal, 2);
    builder().api_extensions(Arc::new(extensions(names))).module(module("app", external))
}

/// Gives a node a row with this level.
async fn put(database: &dyn Database, id: u64, parts: Parts) {
    let level = level(parts);
    let detail = level.detail.clone().unwrap();
    let modules = serde_json::to_string(&detail.modules).unwrap();
    let names = serde_json::to_string(&detail.extensions).unwrap();
    let (schema, api) = (level.schema, level.api_extensions);
    execute(
        database,
        &format!(
            "INSERT INTO nodes(id, name, address, schema, api_extensions) \
             VALUES ({id}, 'n{id}', 'a{id}', {schema}, {api}); \
             INSERT INTO node_levels VALUES ({id}, '{modules}', '{names}')"
        ),
    )
    .await;
}

async fn levels(database: &Arc<dyn Database>) -> Vec<Level> {
    let cluster = builder().database(database.clone()).build();
    let all = cluster.transaction(|mut tx| async move { nodes::all(&mut *tx).await }).await;
    all.unwrap().into_iter().map(|node| node.level).collect()
}

async fn play(trio: &Trio, at: usize, row: Row<'_, Parts>) {
    let Row { name, before, own, peers, expected } = row;
    let database: Arc<dyn Database> = Arc::new(Replicated::new(trio.client(), &format!("row{at}")));
    let old = program((2, before.1.min(own.1), &[])).database(database.clone()).build();
    old.ensure_schema("", dir()).await.unwrap();
    execute(&*database, "DELETE FROM nodes").await;
    put(&*database, 1, before).await;
    for (id, peer) in (2..).zip(&peers) {
        put(&*database, id, *peer).await;
    }
    let me = Registration { id: 1, name: "n1".into(), address: "a1".into() };
    let cluster = program(own).registration(me).database(database.clone()).build();
    let told = match cluster.ensure_schema("", dir()).await {
        Ok(Status::Ready) => Ready,
        Ok(Status::Waiting(behind)) => Waits(behind),
        Err(error) if error.to_string() == "this node's version is behind, please upgrade" => {
            Behind
        }
        Err(error) if error.to_string() == "nodes have inconsistent versions" => Inconsistent,
        Err(error) => panic!("{name}: {error}"),
    };
    assert_eq!(told, expected, "{name}");
    let published = matches!(expected, Ready | Waits(_));
    let mut after = vec![level(if published { own } else { before })];
    after.extend(peers.into_iter().map(level));
    assert_eq!(levels(&database).await, after, "{name}: the rows");
    let applied =
        select(&*database, "SELECT version FROM schema_modules WHERE module = 'app'").await;
    let migrated = if expected == Ready { own.1 } else { before.1.min(own.1) };
    assert_eq!(applied, [migrated.to_string()], "{name}: the schema");
}

/// The levels of a table of schemas alone.
fn schemas(row: Row<'_, (u64, u64)>) -> Row<'_, Parts> {
    let parts = |(internal, external): (u64, u64)| (internal, external, &[][..]);
    Row {
        name: row.name,
        before: parts(row.before),
        own: parts(row.own),
        peers: row.peers.into_iter().map(parts).collect(),
        expected: row.expected,
    }
}

#[tokio::test(start_paused = true)]
async fn wait_upgrade_schema() {
    let trio = Trio::start().await;
    let own = (2, 2);
    let rows = [
        row("no upgrade, no peers", own, own, vec![], Ready),
        row("internal upgrade, no peers", (1, 2), own, vec![], Ready),
        row("external upgrade, no peers", (2, 1), own, vec![], Ready),
        row("full upgrade, no peers", (1, 1), own, vec![], Ready),
        row("all ahead, internal", own, own, vec![(3, 2), (3, 2)], Behind),
        row("all ahead, external", own, own, vec![(2, 3), (2, 3)], Behind),
        row("all ahead, split", own, own, vec![(3, 2), (2, 3)], Behind),
        row("all ahead, both", own, own, vec![(3, 3), (3, 3)], Behind),
        row("all ahead, one waiting", own, own, vec![(3, 3), (2, 3)], Behind),
        row("some ahead, internal", own, own, vec![(2, 2), (3, 2)], Behind),
        row("some ahead, external", own, own, vec![(2, 3), (2, 2)], Behind),
        row("some ahead, both", own, own, vec![(2, 2), (3, 3)], Behind),
        row("all behind, internal", (1, 2), own, vec![(1, 2), (1, 2)], Waits(2)),
        row("all behind, external", (2, 1), own, vec![(2, 1), (2, 1)], Waits(2)),
        row("all behind, both", (1, 1), own, vec![(1, 1), (1, 1)], Waits(2)),
        row("all behind, one waiting", (1, 1), own, vec![(1, 1), (2, 2)], Waits(1)),
        row("some behind, internal", (1, 2), own, vec![(1, 2), (2, 2)], Waits(1)),
        row("some behind, external", (2, 1), own, vec![(2, 2), (2, 1)], Waits(1)),
        row("some behind, both", (1, 1), own, vec![(2, 2), (1, 1)], Waits(1)),
        row("some behind, some ahead", (1, 1), own, vec![(1, 1), (3, 3)], Behind),
    ];
    assert_eq!(rows.len(), 20);
    for (at, row) in rows.into_iter().enumerate() {
        play(&trio, at, schemas(row)).await;
    }
    // Not in the original: internally behind us, externally ahead.
    let split = row("one behind and ahead", own, own, vec![(1, 3)], Inconsistent);
    play(&trio, 20, schemas(split)).await;
    trio.stop_all().await;
}

#[tokio::test(start_paused = true)]
async fn wait_upgrade_api() {
    let trio = Trio::start().await;
    let (old, new, next): (Parts, Parts, Parts) =
        ((2, 1, &["a"]), (2, 1, &["a", "b"]), (2, 1, &["a", "b", "c"]));
    let rows = [
        row("no upgrade", new, new, vec![new, new], Ready),
        row("an upgrade, alone", old, new, vec![], Ready),
        row("all ahead", old, new, vec![next, next], Behind),
        row("some ahead", old, new, vec![new, next], Behind),
        row("all behind", old, new, vec![old, old], Waits(2)),
        row("some behind", old, new, vec![new, old], Waits(1)),
        row("some behind, some ahead", old, new, vec![old, next], Behind),
    ];
    assert_eq!(rows.len(), 7);
    for (at, row) in rows.into_iter().enumerate() {
        play(&trio, at, row).await;
    }
    // Not in the original, which took every other list for one that is ahead.
    let parts: Parts = (2, 1, &["a", "x"]);
    play(&trio, 7, row("lists that part", old, new, vec![parts], Inconsistent)).await;
    trio.stop_all().await;
}

#[tokio::test(start_paused = true)]
async fn wait_upgrade_schema_and_api() {
    let trio = Trio::start().await;
    let (old, new): (Parts, Parts) = ((2, 1, &["a"]), (2, 2, &["a", "b"]));
    let (schema, api): (Parts, Parts) = ((2, 2, &["a"]), (2, 1, &["a", "b"]));
    let rows = [
        row("in sync", new, new, vec![new, new], Ready),
        row("behind in both", old, old, vec![new, new], Behind),
        row("ahead of all", old, new, vec![old, schema, api], Waits(3)),
        row("mixed", schema, schema, vec![api], Inconsistent),
    ];
    for (at, row) in rows.into_iter().enumerate() {
        play(&trio, at, row).await;
    }
    trio.stop_all().await;
}

#[test]
fn names_of_extensions() {
    let register = |name: &str| Extensions::new().register([name]);
    for good in ["a", "0", "abc", "a_b", "api_2_x", "9_a"] {
        assert!(register(good).is_ok(), "{good}");
    }
    for bad in
        ["", "_", "_a", "a_", "a__b", "A", "a-b", "a b", "a.b", "é", "internal:a", ":a", "a\n"]
    {
        assert!(register(bad).is_err(), "{bad}");
    }
    let internal = |name: &str| Extensions::new().register_internal([name]);
    for good in ["internal:a", "internal:a_b", "internal:0_1"] {
        assert!(internal(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "a",
        "internal",
        "internal:",
        "internal:_a",
        "internal:A",
        "internal:a:b",
        "Internal:a",
    ] {
        assert!(internal(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_registry_of_extensions() {
    let mut registry = Extensions::new();
    registry.register_internal(["internal:runtime"]).unwrap();
    registry.register(["one", "two"]).unwrap();
    let twice = registry.register(["three", "one"]).unwrap_err().to_string();
    assert_eq!(twice, "Extension \"one\" already registered");
    let names = ["internal:runtime", "one", "two", "three"].map(str::to_owned);
    assert_eq!((registry.names(), registry.count()), (Some(names.to_vec()), 4));
    assert!(registry.has("three") && !registry.has("four"));
    let mut same = Extensions::new();
    same.register_internal(["internal:runtime"]).unwrap();
    same.register(["one", "two", "three"]).unwrap();
    assert_eq!(registry, same);
    let mut many = Extensions::new();
    many.register((0..10_000).map(|n| format!("extension_{n}"))).unwrap();
    assert_eq!(many.count(), 10_000);
}
