//! Reads that need not go to the leader: where they go, and what happens when a member cannot
//! serve one.
//!
//! Members are asked in turn. One that fails is left out for a while; after [`TRIES`] of them the
//! leader is asked, as for any other call.
//!
//! *Invariant*: only a call that reads leaves the leader, and never one at lease level: a lease is
//! the leader's alone.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Inner;
use super::call::{Answer, Call, Effect, Op, Setback, Target};
use super::error::DriverError;
use crate::wire::{ReadLevel, code};

/// How many members are asked before the leader.
const TRIES: usize = 2;

/// How long one of them may take at most before another is asked, if the call has longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who serves the reads of a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadFrom {
    /// The leader.
    #[default]
    Leader,
    /// All members in turn: linearizable reads go to voters and stand-bys, local ones to spares as
    /// well; reads at lease level, and all writes, to the leader.
    Any,
}

/// Whether another member may do better.
fn elsewhere(setback: &Setback) -> bool {
    match setback {
        Setback::Again(_) => true,
        Setback::Fail(DriverError::Sqlite { code, message }) => {
            // Its copy is damaged, or it has not heard of the database yet.
            *code == code::CORRUPT || message.starts_with("no database ")
        }
        Setback::Fail(_) => false,
    }
}

impl Inner {
    /// Asks members in turn, if the call may be served by any. `None`: the leader is to be asked.
    pub(super) async fn read_from_any(
        &self,
        call: Call<'_>,
        op: &Op,
        collect: Option<usize>,
    ) -> Result<Option<Answer>, DriverError> {
        let Target::Leader(leaders) = &self.target else { return Ok(None) };
        let spares = match call.level.level {
            ReadLevel::Local => true,
            ReadLevel::Linearizable => false,
            ReadLevel::Lease => return Ok(None),
        };
        let reads = call.effect == Effect::Read && call.database.is_some();
        if call.from == ReadFrom::Leader || !reads || call.opens_transaction {
            return Ok(None);
        }
        for _ in 0..TRIES {
            let Some(member) = leaders.pick(spares, call.deadline).await else { return Ok(None) };
            self.counters.spread_reads.add();
            let deadline = call.deadline.min(Instant::now() + PATIENCE);
            let call = Call { deadline, ..call };
            let setback = match self.attempt(&member, true, call, op, collect).await {
                Ok(answer) => return Ok(Some(answer)),
                Err(setback) if elsewhere(&setback) => setback,
                Err(Setback::Fail(error)) => return Err(error),
                Err(Setback::Again(_)) => return Ok(None),
            };
            self.counters.spread_fallbacks.add();
            self.leave_out(leaders, &member, &setback);
        }
        Ok(None)
    }

    fn leave_out(&self, leaders: &super::leader::Leaders, member: &Arc<str>, why: &Setback) {
        tracing::debug!(%member, ?why, "a member could not serve a read");
        leaders.avoid(member);
        self.pool.forget(member);
    }
}
