//! Histories in files.

use anyhow::Result;
use cluster_tests::check::history::{load, save};
use cluster_tests::check::{Event, ListOp, RegisterOp};

use crate::support::{event, refused, unknown};

#[test]
fn a_history_is_loaded_as_it_was_saved() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("history.jsonl");
    let lists = vec![
        event(1, 5, 6, vec![ListOp::Append { key: 3, value: -7 }]),
        unknown(2, u64::MAX, vec![ListOp::Read { key: 3, list: vec![i64::MIN, 1] }]),
        refused(3, 0, 1, vec![]),
    ];
    save(&path, &lists)?;
    assert_eq!(load::<Vec<ListOp>>(&path)?, lists);
    let registers =
        vec![event(1, 1, 2, RegisterOp::Swap { key: 1, from: 2, to: 3, swapped: true })];
    save(&path, &registers)?;
    assert_eq!(load::<RegisterOp>(&path)?, registers);
    save::<RegisterOp>(&path, &[])?;
    assert_eq!(load::<RegisterOp>(&path)?, []);
    Ok(())
}

#[test]
fn a_history_cut_short_is_an_error() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("history.jsonl");
    let read = |value| event(1, 1, 2, RegisterOp::Read { key: 1, value });
    save(&path, &[read(1), read(2)])?;
    let whole = std::fs::read(&path)?;
    // The last byte is the end of the last line, which may be missing.
    for length in 0..whole.len() - 1 {
        std::fs::write(&path, &whole[..length])?;
        let loaded: Result<Vec<Event<RegisterOp>>> = load(&path);
        let error = loaded.expect_err("it was accepted");
        assert!(format!("{error:#}").starts_with("the history in"), "{error:#}");
    }
    Ok(())
}
