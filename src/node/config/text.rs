//! How durations, sizes and optional values look in the configuration's text.
//!
//! *Invariant*: what is written is read back as the same value.

use std::path::PathBuf;
use std::time::Duration;

/// How an optional value that is not there is written.
const NONE: &str = "none";

fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| format!("\"{text}\" is not a duration: write one such as 500ms or 5s"))
}

fn write_duration(value: Duration) -> String {
    humantime::format_duration(value).to_string()
}

fn parse_size(text: &str) -> Result<u64, String> {
    text.parse::<bytesize::ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| format!("\"{text}\" is not a size: write one such as 64 MiB or 1048576"))
}

fn write_size(bytes: u64) -> String {
    for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{} {name}", bytes / unit);
        }
    }
    bytes.to_string()
}

/// Makes a serde `with` module of a pair of functions.
macro_rules! as_text {
    ($(#[$doc:meta])* $name:ident, $type:ty, $parse:expr, $write:expr) => {
        $(#[$doc])*
        pub mod $name {
            #[allow(unused_imports)]
            use super::*;
            use serde::{Deserialize, Deserializer, Serializer, de::Error};

            /// Reads it.
            pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<$type, D::Error> {
                let parse: fn(&str) -> Result<$type, String> = $parse;
                parse(&String::deserialize(from)?).map_err(D::Error::custom)
            }

            /// Writes it.
            pub fn serialize<S: Serializer>(value: &$type, to: S) -> Result<S::Ok, S::Error> {
                let write: fn(&$type) -> String = $write;
                to.serialize_str(&write(value))
            }
        }
    };
}

as_text!(
    /// A length of time, as in `500ms`.
    duration, Duration, parse_duration, |value| write_duration(*value)
);
as_text!(
    /// A length of time, or `none`.
    optional_duration, Option<Duration>,
    |text| if text == NONE { Ok(None) } else { parse_duration(text).map(Some) },
    |value| value.map_or(NONE.to_owned(), write_duration)
);
as_text!(
    /// A number of bytes, as in `64 MiB`.
    size, u64, parse_size, |value| write_size(*value)
);
as_text!(
    /// A number of bytes, or `none`.
    optional_size, Option<u64>,
    |text| if text == NONE { Ok(None) } else { parse_size(text).map(Some) },
    |value| value.map_or(NONE.to_owned(), write_size)
);

as_text!(
    /// A path; empty stands for none.
    path, Option<PathBuf>,
    |text| Ok(Some(text).filter(|text| !text.is_empty()).map(PathBuf::from)),
    |value| value.as_ref().map_or(String::new(), |path| path.to_string_lossy().into_owned())
);

as_text!(
    /// A text; empty stands for none.
    optional, Option<String>,
    |text| Ok(Some(text.to_owned()).filter(|text| !text.is_empty())),
    |value| value.clone().unwrap_or_default()
);

/// A node's id; 0 stands for none.
pub mod id {
    use serde::{Deserialize, Deserializer, Serializer};

    /// Reads it.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
        Ok(Some(u64::deserialize(from)?).filter(|id| *id != 0))
    }

    /// Writes it.
    pub fn serialize<S: Serializer>(value: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(value.unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::{parse_size, write_size};

    #[test]
    fn sizes_survive_a_round_trip() {
        for bytes in [0, 1, 1023, 1024, 1 << 20, (1 << 20) + 1, 3 << 30, 4 << 30] {
            assert_eq!(parse_size(&write_size(bytes)), Ok(bytes));
        }
        assert_eq!(write_size(64 << 20), "64 MiB");
    }
}
