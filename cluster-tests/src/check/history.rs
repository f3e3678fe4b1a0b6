//! A history in a file (JSON lines: how many operations there are, then one a line), so that a run that failed is kept, can be
//! looked at, and can be checked again.
//!
//! *Invariant*: what is loaded is what was saved; a file that is cut short or damaged is an error.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Event;

/// The first line.
#[derive(Serialize, Deserialize)]
struct Heading {
    operations: usize,
}

/// Writes a history into a new file, or over an old one.
pub fn save<Op: Serialize>(path: &Path, history: &[Event<Op>]) -> Result<()> {
    let written = || -> Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        serde_json::to_writer(&mut file, &Heading { operations: history.len() })?;
        for event in history {
            file.write_all(b"\n")?;
            serde_json::to_writer(&mut file, event)?;
        }
        file.write_all(b"\n")?;
        file.flush()?;
        Ok(())
    };
    written().with_context(|| format!("the history could not be kept in {}", path.display()))
}

/// Reads a history that [`save`] wrote.
pub fn load<Op: DeserializeOwned>(path: &Path) -> Result<Vec<Event<Op>>> {
    let read = || -> Result<Vec<Event<Op>>> {
        let mut lines = BufReader::new(File::open(path)?).split(b'\n');
        let first = lines.next().context("it is empty")??;
        let heading: Heading = serde_json::from_slice(&first).context("its first line")?;
        let mut history = Vec::new();
        for line in lines {
            let event = serde_json::from_slice(&line?);
            history.push(event.with_context(|| format!("operation {}", history.len()))?);
        }
        let (is, was) = (history.len(), heading.operations);
        ensure!(is == was, "it has {is} operations, and {was} were saved");
        Ok(history)
    };
    read().with_context(|| format!("the history in {} could not be read", path.display()))
}
