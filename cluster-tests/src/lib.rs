//! Tests of Quire with real processes: see `tests/`.
