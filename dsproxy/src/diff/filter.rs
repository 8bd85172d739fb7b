//! The frontend filter as user space keeps it: which bits are set, for how many frontends, and when a bit may go.
//!
//! A bit outlives its frontends by a day: TCP connections through a Service that was deleted go on, as they do with
//! kube-proxy, and the bit is what leads their packets to the connection table.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use dsproxy_common::{Addr4, Addr6, Port, filter::FilterBit, service::FrontendKey};

use crate::maps::FrontendAddress;

/// How long a bit stays set without a frontend: as long as an idle established connection counts.
pub const RETIREMENT: Duration = Duration::from_secs(24 * 60 * 60);

/// The bit of a frontend.
pub fn filter_bit(address: &FrontendAddress) -> FilterBit {
    let (port, protocol) = (Port::new(address.port), address.protocol.number());
    match address.address {
        IpAddr::V4(vip) => FilterBit::of(&FrontendKey::<Addr4>::new(vip.into(), port, protocol)),
        IpAddr::V6(vip) => FilterBit::of(&FrontendKey::<Addr6>::new(vip.into(), port, protocol)),
    }
}

/// The filter of one family.
#[derive(Debug)]
pub(super) struct Filter {
    words: HashMap<u32, u64>,
    frontends: HashMap<FilterBit, u32>,
    idle: HashMap<FilterBit, Instant>,
    idle_since: BTreeSet<(Instant, FilterBit)>,
}

impl Filter {
    /// The filter whose words that are not zero are `words`. Every bit is idle since `now` until a frontend is entered.
    pub(super) fn new(words: impl Iterator<Item = (u32, u64)>, now: Instant) -> Self {
        let mut filter = Self {
            words: words.collect(),
            frontends: HashMap::new(),
            idle: HashMap::new(),
            idle_since: BTreeSet::new(),
        };
        for (index, word) in &filter.words {
            for position in (0..u64::BITS).filter(|position| word >> position & 1 != 0) {
                let bit = FilterBit::at(*index, position);
                filter.idle.insert(bit, now);
                filter.idle_since.insert((now, bit));
            }
        }
        filter
    }

    pub(super) fn word(&self, index: u32) -> u64 {
        self.words.get(&index).copied().unwrap_or_default()
    }

    pub(super) fn applied(&mut self, index: u32, value: u64) {
        let cleared = self.word(index) & !value;
        for position in (0..u64::BITS).filter(|position| cleared >> position & 1 != 0) {
            self.set_idle(FilterBit::at(index, position), None);
        }
        self.words.insert(index, value);
    }

    pub(super) fn added(&mut self, address: &FrontendAddress) {
        let bit = filter_bit(address);
        *self.frontends.entry(bit).or_default() += 1;
        self.set_idle(bit, None);
    }

    pub(super) fn removed(&mut self, address: &FrontendAddress, now: Instant) {
        let bit = filter_bit(address);
        if let Some(count) = self.frontends.get_mut(&bit) {
            *count -= 1;
            if *count == 0 {
                self.frontends.remove(&bit);
                self.set_idle(bit, Some(now));
            }
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
            None => self.idle.remove(&bit),
        };
        if let Some(before) = before.filter(|before| Some(*before) != since) {
            self.idle_since.remove(&(before, bit));
        }
    }
}
