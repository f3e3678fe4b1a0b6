//! The bytes of `docs/format.md`, pinned.
