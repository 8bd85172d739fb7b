//! A filter as user space keeps it: which bits are set, for how many frontends or backends, and when a bit may go.
//!
//! A bit outlives what it was set for by a day: TCP connections through a Service that was deleted go on, as they do with
//! kube-proxy, and the bit is what leads their packets to the connection table.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use dsproxy_common::{Addr4, Addr6, Port, Protocol, filter::FilterBit, service::FrontendKey};

use crate::maps::FrontendAddress;

/// How long a bit stays set for nothing: as long as an idle established connection counts.
pub const RETIREMENT: Duration = Duration::from_secs(24 * 60 * 60);

/// The bit of a frontend.
pub fn filter_bit(address: &FrontendAddress) -> FilterBit {
    backend_bit(address.address, address.port, address.protocol)
}

/// The bit of a backend, whose protocol is that of its service port.
pub fn backend_bit(address: IpAddr, port: u16, protocol: Protocol) -> FilterBit {
    let (port, protocol) = (Port::new(port), protocol.number());
    match address {
        IpAddr::V4(address) => FilterBit::of(&FrontendKey::<Addr4>::new(address.into(), port, protocol)),
        IpAddr::V6(address) => FilterBit::of(&FrontendKey::<Addr6>::new(address.into(), port, protocol)),
    }
}

/// A word of a filter.
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    value: u64,
    /// The bits that there is a frontend or backend for.
    used: u64,
}

/// The filter of one family.
#[derive(Debug)]
pub(super) struct Filter {
    words: HashMap<u32, Word>,
    /// How many frontends or backends a bit is set for, where it is for more than one.
    shared: HashMap<FilterBit, u32>,
    idle: HashMap<FilterBit, Instant>,
    idle_since: BTreeSet<(Instant, FilterBit)>,
}

impl Filter {
    /// The filter whose words that are not zero are `words`. Every bit is idle since `now` until a use is entered.
    pub(super) fn new(words: impl Iterator<Item = (u32, u64)>, now: Instant) -> Self {
        let mut filter = Self {
            words: words.map(|(index, value)| (index, Word { value, used: 0 })).collect(),
            shared: HashMap::new(),
            idle: HashMap::new(),
            idle_since: BTreeSet::new(),
        };
        for (index, word) in &filter.words {
            for position in (0..u64::BITS).filter(|position| word.value >> position & 1 != 0) {
                let bit = FilterBit::at(*index, position);
                filter.idle.insert(bit, now);
                filter.idle_since.insert((now, bit));
            }
        }
        filter
    }

    pub(super) fn word(&self, index: u32) -> u64 {
        self.words.get(&index).map_or(0, |word| word.value)
    }

    pub(super) fn applied(&mut self, index: u32, value: u64) {
        let cleared = self.word(index) & !value;
        for position in (0..u64::BITS).filter(|position| cleared >> position & 1 != 0) {
            self.set_idle(FilterBit::at(index, position), None);
        }
        self.words.entry(index).or_default().value = value;
    }

    /// Enters a frontend or backend with this bit.
    pub(super) fn added(&mut self, bit: FilterBit) {
        let word = self.words.entry(bit.word()).or_default();
        if word.used & bit.mask() != 0 {
            *self.shared.entry(bit).or_insert(1) += 1;
        }
        word.used |= bit.mask();
        self.set_idle(bit, None);
    }

    /// Enters that one of those with this bit is gone.
    pub(super) fn removed(&mut self, bit: FilterBit, now: Instant) {
        if let Some(count) = self.shared.get_mut(&bit) {
            *count -= 1;
            if *count == 1 {
                self.shared.remove(&bit);
            }
        } else if let Some(word) = self.words.get_mut(&bit.word()).filter(|word| word.used & bit.mask() != 0) {
            word.used &= !bit.mask();
            self.set_idle(bit, Some(now));
        }
    }

    /// The words as they are to be once the bits that have been idle for long enough at `now` are cleared.
    pub(super) fn retirable(&self, now: Instant) -> BTreeMap<u32, u64> {
        let mut words = BTreeMap::new();
        let old = self.idle_since.iter().take_while(|(since, _)| now.saturating_duration_since(*since) >= RETIREMENT);
        for (_, bit) in old {
            *words.entry(bit.word()).or_insert_with(|| self.word(bit.word())) &= !bit.mask();
        }
        words
    }

    fn set_idle(&mut self, bit: FilterBit, since: Option<Instant>) {
        let before = match since {
            Some(since) => {
                self.idle_since.insert((since, bit));
                self.idle.insert(bit, since)
            }
            None => {
                let before = self.idle.remove(&bit);
                // After a start all bits that were found are idle for a moment.
                if self.idle.len() < self.idle.capacity() / 8 {
                    self.idle.shrink_to_fit();
                }
                before
            }
        };
        if let Some(before) = before.filter(|before| Some(*before) != since) {
            self.idle_since.remove(&(before, bit));
        }
    }
}
