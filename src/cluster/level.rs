//! The level of a node: which updates and which API extensions its program has.
//!
//! Two levels are compared part by part: module by module (one that a side lacks counts as version
//! 0), and the extensions as lists: one that continues the other is higher, two that part are
//! incomparable. Where a side has only the pair of the table `nodes`, the pairs are compared.
//!
//! *Invariant*: comparing is pure; equal, lower and higher mean so in every part.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};

use super::error::Error;

/// What extensions of the library itself begin with.
const INTERNAL: &str = "internal:";

/// The API extensions that a program has.
pub trait ApiExtensions: Send + Sync + 'static {
    /// How many.
    fn count(&self) -> u64;

    /// Their names in the order in which they came to be, if they have names.
    fn names(&self) -> Option<Vec<String>> {
        None
    }
}

/// So many extensions, without names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BasicApiExtensions(pub u64);

impl ApiExtensions for BasicApiExtensions {
    fn count(&self) -> u64 {
        self.0
    }
}

/// Extensions with names, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    names: Vec<String>,
    known: HashSet<String>,
}

impl Extensions {
    /// None yet.
    pub fn new() -> Extensions {
        Extensions::default()
    }

    /// Adds extensions of an application: words of `a-z` and `0-9`, joined by `_`.
    ///
    /// # Errors
    ///
    /// A name is no such word, or known already; those before it are added.
    pub fn register<N: AsRef<str>>(
        &mut self,
        names: impl IntoIterator<Item = N>,
    ) -> Result<(), Error> {
        names.into_iter().try_for_each(|name| self.add(name.as_ref(), name.as_ref()))
    }

    /// Adds extensions of the library itself: the same with `internal:` before it.
    ///
    /// # Errors
    ///
    /// As [`Extensions::register`].
    pub fn register_internal<N: AsRef<str>>(
        &mut self,
        names: impl IntoIterator<Item = N>,
    ) -> Result<(), Error> {
        names.into_iter().try_for_each(|name| {
            let name = name.as_ref();
            self.add(name, name.strip_prefix(INTERNAL).unwrap_or_default())
        })
    }

    fn add(&mut self, name: &str, words: &str) -> Result<(), Error> {
        let is_word = |word: &str| {
            !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        };
        if !words.split('_').all(is_word) {
            return Err(Error::other(format!(
                "Extension \"{name}\" is no name: write words of a-z and 0-9, joined by _ \
                 (those of the library begin with {INTERNAL})"
            )));
        }
        if !self.known.insert(name.to_owned()) {
            return Err(Error::other(format!("Extension \"{name}\" already registered")));
        }
        self.names.push(name.to_owned());
        Ok(())
    }

    /// Whether there is one of that name.
    pub fn has(&self, name: &str) -> bool {
        self.known.contains(name)
    }
}

impl ApiExtensions for Extensions {
    fn count(&self) -> u64 {
        self.names.len() as u64
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(self.names.clone())
    }
}

/// What stands beside the pair of a node, in the table `node_levels`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// How many updates of each module.
    pub modules: BTreeMap<String, u64>,
    /// The names of the extensions, if they have names.
    pub extensions: Option<Vec<String>>,
}

/// The level of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// How many updates, of all modules together.
    pub schema: u64,
    /// How many API extensions.
    pub api_extensions: u64,
    /// The parts, where they are known.
    pub detail: Option<Detail>,
}

impl Level {
    /// A level of which only the pair is known.
    pub fn pair(schema: u64, api_extensions: u64) -> Level {
        Level { schema, api_extensions, detail: None }
    }

    /// The level of these modules and extensions.
    pub fn of(modules: BTreeMap<String, u64>, extensions: &dyn ApiExtensions) -> Level {
        Level {
            schema: modules.values().sum(),
            api_extensions: extensions.count(),
            detail: Some(Detail { modules, extensions: extensions.names() }),
        }
    }

    /// The same level with a detail, unless that tells of another pair: then somebody changed the
    /// pair alone, and the pair counts.
    pub(super) fn with_detail(mut self, detail: Option<Detail>) -> Level {
        self.detail = detail.filter(|detail| {
            let names = detail.extensions.as_ref();
            let mut versions = detail.modules.values();
            // Anybody may have written there: it need not be a sum that there is.
            let sum = versions.try_fold(0_u64, |sum, version| sum.checked_add(*version));
            sum == Some(self.schema)
                && names.is_none_or(|names| names.len() as u64 == self.api_extensions)
        });
        self
    }

    /// Compares it with another; `None` where they are incomparable.
    pub fn compare(&self, other: &Level) -> Option<Ordering> {
        let (schema, api) = match (&self.detail, &other.detail) {
            (Some(own), Some(theirs)) => {
                let api = match (&own.extensions, &theirs.extensions) {
                    (Some(own), Some(theirs)) => compare_lists(own, theirs)?,
                    _ => self.api_extensions.cmp(&other.api_extensions),
                };
                (compare_modules(&own.modules, &theirs.modules)?, api)
            }
            _ => {
                let schema = self.schema.cmp(&other.schema);
                (schema, self.api_extensions.cmp(&other.api_extensions))
            }
        };
        merge(schema, api)
    }

    /// The updates as messages tell them: their number, or that of each module where there are
    /// several.
    pub(super) fn schema_text(&self) -> String {
        match &self.detail {
            Some(Detail { modules, .. }) if modules.len() > 1 => {
                let each = modules.iter().map(|(name, version)| format!("{name} {version}"));
                format!("{} ({})", self.schema, each.collect::<Vec<_>>().join(", "))
            }
            _ => self.schema.to_string(),
        }
    }
}

/// Two parts' orders as one.
fn merge(one: Ordering, other: Ordering) -> Option<Ordering> {
    match (one, other) {
        (Ordering::Equal, order) | (order, Ordering::Equal) => Some(order),
        (one, other) => (one == other).then_some(one),
    }
}

fn compare_modules(
    own: &BTreeMap<String, u64>,
    theirs: &BTreeMap<String, u64>,
) -> Option<Ordering> {
    let version = |of: &BTreeMap<String, u64>, name: &str| of.get(name).copied().unwrap_or(0);
    own.keys().chain(theirs.keys()).try_fold(Ordering::Equal, |order, name| {
        merge(order, version(own, name).cmp(&version(theirs, name)))
    })
}

fn compare_lists(own: &[String], theirs: &[String]) -> Option<Ordering> {
    let one_continues = own.iter().zip(theirs).all(|(own, theirs)| own == theirs);
    one_continues.then(|| own.len().cmp(&theirs.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detailed(modules: &[(&str, u64)], extensions: &[&str]) -> Level {
        let modules = modules.iter().map(|(name, version)| ((*name).to_owned(), *version));
        let mut named = Extensions::new();
        named.register(extensions).unwrap();
        Level::of(modules.collect(), &named)
    }

    #[test]
    fn pairs() {
        use Ordering::{Equal, Greater, Less};
        let own = Level::pair(2, 1);
        for (other, expected) in [
            ((2, 1), Some(Equal)),
            ((1, 1), Some(Greater)),
            ((2, 0), Some(Greater)),
            ((1, 0), Some(Greater)),
            ((3, 1), Some(Less)),
            ((2, 2), Some(Less)),
            ((3, 2), Some(Less)),
            ((3, 0), None),
            ((1, 2), None),
        ] {
            assert_eq!(own.compare(&Level::pair(other.0, other.1)), expected, "{other:?}");
            // A module of one name is the pair.
            let (own, other) = (detailed(&[("q", 2)], &["a"]), other);
            let names = ["a", "b"];
            let names = &names[..usize::try_from(other.1).unwrap()];
            assert_eq!(own.compare(&detailed(&[("q", other.0)], names)), expected, "{other:?}");
        }
    }

    #[test]
    fn modules_and_lists() {
        use Ordering::{Equal, Greater, Less};
        let own = detailed(&[("quire", 2), ("app", 3)], &["a", "b"]);
        for (other, expected) in [
            (detailed(&[("app", 3), ("quire", 2)], &["a", "b"]), Some(Equal)),
            (detailed(&[("quire", 2)], &["a", "b"]), Some(Greater)),
            (detailed(&[("quire", 2), ("app", 4)], &["a", "b", "c"]), Some(Less)),
            // The same sums.
            (detailed(&[("quire", 3), ("app", 2)], &["a", "b"]), None),
            (detailed(&[("quire", 2), ("app", 3)], &["a", "c"]), None),
            (detailed(&[("quire", 2), ("other", 3)], &["a", "b"]), None),
            // Only a pair is known.
            (Level::pair(5, 2), Some(Equal)),
            (Level::pair(6, 2), Some(Less)),
        ] {
            assert_eq!(own.compare(&other), expected, "{other:?}");
            assert_eq!(other.compare(&own), expected.map(Ordering::reverse), "{other:?}");
        }
    }

    #[test]
    fn a_detail_of_another_pair_does_not_count() {
        let Level { detail, .. } = detailed(&[("quire", 2)], &["a"]);
        assert!(Level::pair(2, 1).with_detail(detail.clone()).detail.is_some());
        assert!(Level::pair(3, 1).with_detail(detail.clone()).detail.is_none());
        assert!(Level::pair(2, 2).with_detail(detail).detail.is_none());
    }
}
