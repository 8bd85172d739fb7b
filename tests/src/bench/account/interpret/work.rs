//! What a program does for a packet: instructions, and calls by what they cost.

use std::{collections::BTreeMap, fmt};

/// A call of one kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::bench) enum Call {
    /// A lookup in an array, which the kernel makes instructions of.
    Array,
    /// A look at a place of the flows that XDP remembers, in an array as well.
    Flows,
    /// A hash lookup that finds something, in the map of this name.
    Found(String),
    /// A hash lookup that finds nothing.
    Missed(String),
    /// A search in a trie.
    Trie,
    /// A new key entered.
    Inserted(String),
    /// The value of a key that is there replaced.
    Replaced(String),
    /// A key removed.
    Removed(String),
    /// A removal that found nothing.
    RemovedNothing(String),
    /// The transport checksum made right.
    Checksum,
    /// A random number.
    Random,
    /// The number of a network namespace or socket.
    Cookie,
    /// The time, which the kernel makes one instruction of.
    Jiffies,
    /// The number of the CPU, likewise since Linux 6.10.
    Processor,
    /// A program that is not there was called, as nobody listens.
    NoProgram,
    /// Headers made readable.
    Pull,
    /// The packet handed to another device.
    Redirect,
}

/// What one packet takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::bench) struct Work {
    /// Instructions of the program, as they are compiled: before the kernel puts its own in place of some calls.
    pub(in crate::bench) instructions: u64,
    /// How many calls of each kind.
    pub(in crate::bench) calls: BTreeMap<Call, u32>,
}

impl Work {
    pub(super) fn add(&mut self, call: Call) {
        *self.calls.entry(call).or_default() += 1;
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} instructions", self.instructions)?;
        self.calls.iter().try_for_each(|(call, count)| write!(f, ", {count} {call:?}"))
    }
}
