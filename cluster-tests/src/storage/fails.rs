//! fails
