//! What a call costs: measured by programs that do nothing else, with keys and values of the maps' own types, in tables that the processor's
//! caches hold and in others that they do not.

use std::collections::HashMap;

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData},
    programs::{ProgramFd, SchedClassifier},
};
use dsproxy_bench_ebpf::Keys;
use dsproxy_common::IpFamily;

use super::{
    super::{BenchError, statistics::Sorted},
    interpret::Call,
};
use crate::{
    packet::{Link, Packet, flags},
    prog::{self, Verdict, of_family},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dsproxy-price-ebpf"));

const KEYS: &str = "KEYS";
const SEQUENCE: &str = "SEQUENCE";

/// The tables of connections, whose size is told.
const TABLES: [&str; 4] = ["FORWARD_V4", "FORWARD_V6", "EGRESS_V4", "EGRESS_V6"];

/// How many keys are in rotation, by their logarithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Rotation(pub(super) u32);

impl Rotation {
    pub(super) const ONE: Self = Self(0);
    /// As many as a short life of connections is measured with at a time: the caches hold them.
    pub(super) const FEW: Self = Self(10);
    pub(super) const MANY: Self = Self(16);
    pub(super) const MOST: Self = Self(20);

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::ONE => "1 key",
            Self::FEW => "1 k keys",
            Self::MANY => "64 k keys",
            _ => "1 M keys",
        }
    }

    fn mask(self) -> u32 {
        (1 << self.0) - 1
    }
}

/// A call that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Item {
    Array,
    /// A look at one of the two places of a flow that XDP remembers.
    Flows,
    FindForward,
    FindEgress,
    FindFrontend,
    /// A search for what is not there, and was searched for before: of two in two tables, one.
    Miss,
    /// The same for a key that nobody has asked for yet. The processor waits for both at the same time.
    MissNew,
    /// One by itself.
    MissAlone,
    /// A key entered that was just searched for, while there is room.
    EnterForward,
    EnterEgress,
    /// A key removed that was entered lately.
    RemoveForward,
    RemoveEgress,
    Checksum,
    Random,
}

impl Item {
    pub(super) const ALL: [Self; 14] = [
        Self::Array,
        Self::Flows,
        Self::FindForward,
        Self::FindEgress,
        Self::FindFrontend,
        Self::Miss,
        Self::MissNew,
        Self::MissAlone,
        Self::EnterForward,
        Self::EnterEgress,
        Self::RemoveForward,
        Self::RemoveEgress,
        Self::Checksum,
        Self::Random,
    ];

    /// What it is called in figures.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Array => "array lookup, counter added to",
            Self::Flows => "look at one of two places of XDP's flows",
            Self::FindForward => "hash lookup, forward entry",
            Self::FindEgress => "hash lookup, egress entry",
            Self::FindFrontend => "hash lookup, frontend",
            Self::Miss => "hash lookup in vain, of two",
            Self::MissNew => "the same, the first of its key",
            Self::MissAlone => "the same, by itself",
            Self::EnterForward => "forward entry entered",
            Self::EnterEgress => "egress entry entered",
            Self::RemoveForward => "forward entry removed",
            Self::RemoveEgress => "egress entry removed",
            Self::Checksum => "checksum helper",
            Self::Random => "random number",
        }
    }

    fn program(self, family: IpFamily) -> &'static str {
        match self {
            Self::Array => "array",
            Self::Flows => of_family(family, "look_at_flows_v4", "look_at_flows_v6"),
            Self::Miss | Self::MissNew => of_family(family, "miss_v4", "miss_v6"),
            Self::FindForward | Self::MissAlone => of_family(family, "find_forward_v4", "find_forward_v6"),
            Self::FindEgress => of_family(family, "find_egress_v4", "find_egress_v6"),
            Self::FindFrontend => of_family(family, "find_frontend_v4", "find_frontend_v6"),
            Self::EnterForward => of_family(family, "enter_forward_v4", "enter_forward_v6"),
            Self::EnterEgress => of_family(family, "enter_egress_v4", "enter_egress_v6"),
            Self::RemoveForward => of_family(family, "remove_forward_v4", "remove_forward_v6"),
            Self::RemoveEgress => of_family(family, "remove_egress_v4", "remove_egress_v6"),
            Self::Checksum => "checksum",
            Self::Random => "random",
        }
    }

    /// The program that makes the same key and does nothing with it.
    fn floor(self, family: IpFamily) -> &'static str {
        match self {
            Self::Array | Self::Flows | Self::Checksum | Self::Random => "number",
            Self::FindFrontend => of_family(family, "frontend_key_v4", "frontend_key_v6"),
            _ => of_family(family, "key_v4", "key_v6"),
        }
    }

    /// The program that enters its keys before.
    fn filling(self, family: IpFamily) -> Option<&'static str> {
        match self {
            Self::FindForward | Self::RemoveForward => Some(of_family(family, "enter_forward_v4", "enter_forward_v6")),
            Self::FindEgress | Self::RemoveEgress => Some(of_family(family, "enter_egress_v4", "enter_egress_v6")),
            Self::FindFrontend => Some(of_family(family, "enter_frontend_v4", "enter_frontend_v6")),
            _ => None,
        }
    }

    /// What its program says when all went well.
    fn verdict(self) -> Verdict {
        // `TC_ACT_STOLEN`, for there was nothing to be found.
        if self == Self::MissAlone { Verdict::Other(4) } else { Verdict::Pass }
    }

    /// The first of its keys, if each is to be another.
    fn first_of_many(self) -> Option<u32> {
        match self {
            Self::MissNew => Some(1 << 29),
            Self::MissAlone => Some(1 << 26),
            Self::EnterForward | Self::EnterEgress => Some(1 << 28),
            Self::RemoveForward | Self::RemoveEgress => Some(1 << 27),
            _ => None,
        }
    }

    /// How many calls its program makes.
    fn calls(self) -> f64 {
        if matches!(self, Self::Miss | Self::MissNew | Self::Flows) { 2.0 } else { 1.0 }
    }

    /// Whether its price depends on how many keys are in rotation, so that it is measured with each number.
    fn is_of(self, rotation: Rotation) -> bool {
        matches!(self, Self::Flows | Self::FindForward | Self::FindEgress | Self::Miss) || rotation == Rotation::ONE
    }
}

/// The programs.
struct Programs {
    object: Ebpf,
    keys: Array<MapData, Keys>,
    sequence: Array<MapData, u32>,
    packet: bytes::Bytes,
}

impl Programs {
    /// With tables of so many entries.
    fn load(entries: u32) -> Result<Self, BenchError> {
        let mut loader = EbpfLoader::new();
        for name in TABLES {
            loader.map_max_entries(name, entries);
        }
        let mut object = loader.load(OBJECT).map_err(BenchError::Wrapper)?;
        let mut take = |name| object.take_map(name).ok_or(BenchError::Missing { name });
        let failed = |name| move |source| BenchError::WrapperMap { name, source };
        let keys = take(KEYS)?.try_into().map_err(failed(KEYS))?;
        let sequence = take(SEQUENCE)?.try_into().map_err(failed(SEQUENCE))?;
        let ends = (([10, 0, 0, 1], 1).into(), ([10, 0, 0, 2], 2).into());
        let packet = Packet::tcp(ends.0, ends.1).flags(flags::ACK).payload(&[0; 26]).on(Link::Ethernet).to_bytes();
        Ok(Self { object, keys, sequence, packet })
    }

    fn program(&mut self, name: &'static str) -> Result<&ProgramFd, BenchError> {
        let failed = |source| BenchError::WrapperProgram { name, source };
        let program: &mut SchedClassifier =
            self.object.program_mut(name).ok_or(BenchError::Missing { name })?.try_into().map_err(failed)?;
        if program.fd().is_err() {
            program.load().map_err(failed)?;
        }
        program.fd().map_err(failed)
    }

    /// How long one run of `name` takes, in ns, of `repeat` with `keys` from that of the number `sequence` on.
    fn run(
        &mut self,
        (name, verdict): (&'static str, Verdict),
        keys: Keys,
        sequence: u32,
        repeat: u32,
    ) -> Result<f64, BenchError> {
        let failed = |name| move |source| BenchError::WrapperMap { name, source };
        self.keys.set(0, keys, 0).map_err(failed(KEYS))?;
        self.sequence.set(0, sequence, 0).map_err(failed(SEQUENCE))?;
        let packet = self.packet.clone();
        let run = prog::repeat(self.program(name)?, &packet, repeat)?;
        if run.verdict != verdict {
            return Err(BenchError::Price { name });
        }
        Ok(run.duration.as_nanos() as f64)
    }
}

/// What calls cost, in ns: the least and the median of all rounds, each less what its key takes.
#[derive(Default)]
pub(super) struct Prices(pub(super) HashMap<(Item, IpFamily, Rotation), (f64, f64)>);

/// Keys that nothing is entered under.
const ABSENT: u32 = 1 << 30;

impl Prices {
    /// Measures every call with so many keys in rotation, in tables of so many entries.
    pub(super) fn measure(
        rotations: &[Rotation],
        entries: u32,
        (rounds, repeat): (u32, u32),
    ) -> Result<Self, BenchError> {
        let mut programs = Programs::load(entries)?;
        let mut wanted = Vec::new();
        for (rotation, family) in rotations.iter().flat_map(|rotation| IpFamily::ALL.map(|family| (*rotation, family)))
        {
            wanted
                .extend(Item::ALL.into_iter().filter(|item| item.is_of(rotation)).map(|item| (item, family, rotation)));
        }
        for (item, family, rotation) in &wanted {
            if let (Some(filling), None) = (item.filling(*family), item.first_of_many()) {
                let keys = Keys { first: 0, mask: rotation.mask() };
                programs.run((filling, Verdict::Pass), keys, 0, rotation.mask() + 1)?;
            }
        }
        let mut samples: Vec<[Vec<f64>; 2]> = wanted.iter().map(|_| Default::default()).collect();
        // What is entered once is not to fill the table: a quarter of it, in all rounds together.
        let once = (entries / 4 / rounds.max(1)).max(1);
        for round in 0..rounds {
            for ((item, family, rotation), [own, floor]) in wanted.iter().zip(&mut samples) {
                let (keys, sequence, repeat) = match item.first_of_many() {
                    Some(first) => (Keys { first, mask: u32::MAX }, round * once, once),
                    None => {
                        let first = if *item == Item::Miss { ABSENT } else { 0 };
                        (Keys { first, mask: rotation.mask() }, 0, repeat.max(4 * (rotation.mask() + 1)))
                    }
                };
                if let (Some(filling), Some(_)) = (item.filling(*family), item.first_of_many()) {
                    programs.run((filling, Verdict::Pass), keys, sequence, repeat)?;
                }
                floor.push(programs.run((item.floor(*family), Verdict::Pass), keys, sequence, repeat)?);
                own.push(programs.run((item.program(*family), item.verdict()), keys, sequence, repeat)?);
            }
        }
        let of = |item: Item, [own, floor]: [Vec<f64>; 2]| {
            let (own, floor, calls) = (Sorted::new(own), Sorted::new(floor), item.calls());
            ((own.minimum() - floor.minimum()) / calls, (own.median() - floor.median()) / calls)
        };
        let prices = wanted.into_iter().zip(samples).map(|(which, samples)| (which, of(which.0, samples)));
        let mut prices = Self(prices.collect());
        prices.take_searches_off();
        Ok(prices)
    }

    /// Of an entry entered the search before it is a call of its own.
    fn take_searches_off(&mut self) {
        for family in IpFamily::ALL {
            let place = |item| (item, family, Rotation::ONE);
            let Some((minimum, median)) = self.0.get(&place(Item::MissAlone)).copied() else { continue };
            for item in [Item::EnterForward, Item::EnterEgress] {
                if let Some(entered) = self.0.get_mut(&place(item)) {
                    *entered = (entered.0 - minimum, entered.1 - median);
                }
            }
        }
    }

    /// As both say.
    pub(super) fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    fn of_item(&self, item: Item, family: IpFamily, rotation: Rotation) -> f64 {
        let held = self.0.get(&(item, family, rotation)).or_else(|| self.0.get(&(item, family, Rotation::ONE)));
        held.map_or(f64::NAN, |(minimum, _)| minimum.max(0.0))
    }

    /// What a packet pays for one `call`, in ns, where so many flows are in rotation; `is_first` for the first of a connection, whose keys
    /// nobody has asked for yet.
    pub(super) fn of(&self, call: &Call, family: IpFamily, (rotation, is_first): (Rotation, bool)) -> f64 {
        let item = |item| self.of_item(item, family, rotation);
        match call {
            Call::Array => item(Item::Array),
            Call::Flows => item(Item::Flows),
            // The few frontends stay in the caches whatever comes.
            Call::Found(table) if table.starts_with("FRONTENDS") => item(Item::FindFrontend),
            Call::Found(table) if table.starts_with("EGRESS") => item(Item::FindEgress),
            Call::Found(_) | Call::Trie => item(Item::FindForward),
            Call::Missed(_) | Call::RemovedNothing(_) if is_first => item(Item::MissNew),
            Call::Missed(_) | Call::RemovedNothing(_) => item(Item::Miss),
            Call::Inserted(table) | Call::Replaced(table) if table.starts_with("EGRESS") => item(Item::EnterEgress),
            Call::Inserted(_) | Call::Replaced(_) => item(Item::EnterForward),
            Call::Removed(table) if table.starts_with("EGRESS") => item(Item::RemoveEgress),
            Call::Removed(_) => item(Item::RemoveForward),
            Call::Checksum => item(Item::Checksum),
            Call::Random => item(Item::Random),
            // One instruction in the kernel (the CPU's number since 6.10), or not there in what is measured.
            Call::Jiffies | Call::Processor | Call::NoProgram | Call::Pull | Call::Redirect | Call::Cookie => 0.0,
        }
    }
}
