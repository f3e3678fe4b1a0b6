//! Updates as files: what their names mean, a directory of them, and running a text of many
//! statements so that an error names its place.
//!
//! *Invariant*: no text of a file begins or ends a transaction.

use std::path::Path;

use super::update::Module;
use crate::cluster::database::Tx;
use crate::cluster::error::{DatabaseError, Error};
use crate::driver::sql;

/// A schema's directory has at most so many files.
const FILES_MAX: usize = 9999;

/// An error shows so many characters of a statement's first line.
const SHOWN_MAX: usize = 80;

/// The number in `NNNN_WORDS.sql`.
pub(super) fn parse_name(file: &str) -> Result<u64, Error> {
    let number = file.strip_suffix(".sql").and_then(|stem| {
        let (digits, words) = stem.split_once('_')?;
        let is_word = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let good = digits.len() == 4
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && !words.is_empty()
            && words.chars().all(is_word);
        digits.parse().ok().filter(|number| good && *number > 0)
    });
    number.ok_or_else(|| {
        let text = "is no update: name it NNNN_WORDS.sql, 0001_first.sql for one";
        Error::other(format!("{file} {text}"))
    })
}

impl Module {
    /// The module of the SQL files in a directory: as [`Module::files`]. What does not end in
    /// `.sql` is left alone.
    ///
    /// # Errors
    ///
    /// The directory or a file cannot be read, or as [`Module::files`].
    pub fn read(name: &str, dir: &Path) -> Result<Module, Error> {
        let failed = |path: &Path, error| Error::File(format!("{}: {error}", path.display()));
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(|error| failed(dir, error))? {
            let path = entry.map_err(|error| failed(dir, error))?.path();
            let Some(file) = path.file_name().and_then(|file| file.to_str()) else { continue };
            if !file.ends_with(".sql") {
                continue;
            }
            if files.len() == FILES_MAX {
                let text = format!("{} has more than {FILES_MAX} updates", dir.display());
                return Err(Error::File(text));
            }
            let text = std::fs::read_to_string(&path).map_err(|error| failed(&path, error))?;
            files.push((file.to_owned(), text));
        }
        Module::files(name, files)
    }
}

/// Runs the statements of a text one after the other.
///
/// # Errors
///
/// [`Error::Statement`]: one failed; those before it were done.
pub async fn script(tx: &mut dyn Tx, file: &str, text: &str) -> Result<(), Error> {
    // A byte order mark is a blank to SQLite.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (number, piece) in (1..).zip(sql::pieces(text)) {
        let done = match sql::control(piece.text) {
            Some(sql::Control::Begin | sql::Control::Commit | sql::Control::Rollback) => {
                let text = "it runs in a transaction already, which it neither begins nor ends";
                Err(DatabaseError::refused(text))
            }
            _ => tx.execute(piece.text, Vec::new()).await,
        };
        done.map_err(|source| Error::Statement {
            file: file.to_owned(),
            number,
            line: piece.line,
            statement: shown(piece.text),
            source,
        })?;
    }
    Ok(())
}

fn shown(statement: &str) -> String {
    let line = statement.lines().next().unwrap_or_default().trim_end();
    match line.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}...", line.get(..end).unwrap_or_default()),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files() {
        assert_eq!(parse_name("0001_nodes.sql").unwrap(), 1);
        assert_eq!(parse_name("0120_a-b_c.2.sql").unwrap(), 120);
        for bad in [
            "0000_x.sql",
            "1_x.sql",
            "0001.sql",
            "0001_.sql",
            "x.sql",
            "0001_a b.sql",
            "00a1_x.sql",
        ] {
            let error = parse_name(bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{bad} is no update")), "{error}");
        }
    }

    #[test]
    fn gaps_and_twins_name_the_file() {
        let files = |names: &[&str]| {
            let files: Vec<(&str, &str)> = names.iter().map(|name| (*name, "")).collect();
            Module::files("app", files).map(|module| module.len())
        };
        assert_eq!(files(&["0002_b.sql", "0001_a.sql"]), Ok(2));
        let error = files(&["0001_a.sql", "0003_c.sql"]).unwrap_err().to_string();
        assert_eq!(error, "updates map misses version 2: 0003_c.sql is number 3");
        let error = files(&["0001_a.sql", "0001_b.sql"]).unwrap_err().to_string();
        assert_eq!(error, "0001_a.sql and 0001_b.sql both have the number 1");
    }

    #[test]
    fn a_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("0001_a.sql"), "CREATE TABLE a(x)").unwrap();
        std::fs::write(dir.path().join("README.md"), "no update").unwrap();
        assert_eq!(Module::read("app", dir.path()).unwrap().len(), 1);
        std::fs::write(dir.path().join("two.sql"), "").unwrap();
        assert!(Module::read("app", dir.path()).unwrap_err().to_string().starts_with("two.sql"));
        let absent = Module::read("app", &dir.path().join("absent")).unwrap_err().to_string();
        assert!(absent.contains("absent: "), "{absent}");
    }
}
