//! The texts of a connection's prepared statements, by their ids. What is prepared is the text:
//! SQLite prepares it again wherever it runs.
//!
//! *Invariant*: they have a bound, in number and in bytes; the next id is the lowest that is free.

use std::sync::Arc;

use crate::base::limits;

/// See the module.
#[derive(Default)]
pub struct Statements {
    texts: Vec<Option<Arc<str>>>,
    /// Of all of them.
    bytes: usize,
}

impl Statements {
    /// Keeps a text; its id, or why there is no room for it.
    pub fn add(&mut self, sql: &str) -> Result<u32, String> {
        let finalize = "finalize those that are not needed any more";
        let at = self.texts.iter().position(Option::is_none).unwrap_or(self.texts.len());
        if at >= limits::PREPARED_STATEMENTS_MAX {
            return Err(format!("this connection has {at} prepared statements: {finalize}"));
        }
        let (bytes, max) = (self.bytes.saturating_add(sql.len()), limits::PREPARED_BYTES_MAX);
        if bytes > max {
            return Err(format!(
                "the texts of this connection's prepared statements would come to {bytes} bytes, \
                 of {max} at most: {finalize}"
            ));
        }
        match self.texts.get_mut(at) {
            Some(slot) => *slot = Some(sql.into()),
            None => self.texts.push(Some(sql.into())),
        }
        self.bytes = bytes;
        Ok(u32::try_from(at).unwrap_or(u32::MAX))
    }

    /// A text.
    pub fn get(&self, statement: u32) -> Option<Arc<str>> {
        let at = usize::try_from(statement).ok()?;
        self.texts.get(at)?.clone()
    }

    /// Forgets a text. Whether it was there.
    pub fn remove(&mut self, statement: u32) -> bool {
        let slot = usize::try_from(statement).ok().and_then(|at| self.texts.get_mut(at));
        let text = slot.and_then(Option::take);
        self.bytes -= text.as_ref().map_or(0, |text| text.len());
        text.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_there_may_be() {
        let mut statements = Statements::default();
        for id in 0..limits::PREPARED_STATEMENTS_MAX {
            assert_eq!(statements.add("SELECT 1"), Ok(u32::try_from(id).unwrap()));
        }
        assert!(statements.add("SELECT 1").unwrap_err().contains("4096 prepared statements"));
        assert!(statements.remove(7) && !statements.remove(7));
        assert_eq!((statements.get(7), statements.add("SELECT 2")), (None, Ok(7)));
        assert_eq!(statements.get(7).as_deref(), Some("SELECT 2"));
    }
}
