//! Everything the programs count, and the difference between two moments.

use std::{collections::BTreeMap, fmt};

use dsproxy::maps::{MapStore as _, kernel::KernelMaps};
use dsproxy_common::{
    IpFamily,
    count::{Reason, ServiceCounters},
};

use super::ProgError;

/// Counters that are not zero.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Counted {
    packets: BTreeMap<(Reason, Option<IpFamily>), u64>,
    services: BTreeMap<u32, [u64; 5]>,
    drops: BTreeMap<(u32, Reason), u64>,
}

impl Counted {
    /// Nothing at all.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// And `count` packets for `reason`.
    pub fn packets(mut self, reason: Reason, family: Option<IpFamily>, count: u64) -> Self {
        *self.packets.entry((reason, family)).or_default() += count;
        self
    }

    /// And these for the service port `service`.
    pub fn service(mut self, service: u32, counters: &ServiceCounters) -> Self {
        self.services.insert(service, array(counters));
        self
    }

    /// And so much more for the service port `service`.
    pub fn more_of_service(mut self, service: u32, counters: &ServiceCounters) -> Self {
        let held = self.services.entry(service).or_default();
        for (held, more) in held.iter_mut().zip(array(counters)) {
            *held += more;
        }
        self
    }

    /// And so many drops of the service port `service`.
    pub fn drops(mut self, service: u32, reason: Reason, count: u64) -> Self {
        *self.drops.entry((service, reason)).or_default() += count;
        self
    }

    /// How many packets were counted for `reason`.
    pub fn of(&self, reason: Reason, family: Option<IpFamily>) -> u64 {
        self.packets.get(&(reason, family)).copied().unwrap_or_default()
    }

    pub(super) fn read(maps: &KernelMaps) -> Result<Self, ProgError> {
        let packets = maps.counters()?.into_iter().map(|(reason, family, count)| ((reason, family), count)).collect();
        let mut services = BTreeMap::new();
        let mut drops = BTreeMap::new();
        // Ids without a name are read too: what is left of a Service that was deleted may still be counted for.
        for service in 0..maps.capacities().services {
            services.insert(service, array(&maps.service_counters(service)?));
            drops.extend(maps.service_drops(service)?.iter().map(|(reason, count)| ((service, reason), count)));
        }
        Ok(Self { packets, services, drops })
    }

    /// What was counted since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let packets = self
            .packets
            .iter()
            .map(|(key, count)| (*key, count - before.packets.get(key).copied().unwrap_or_default()));
        let services = self.services.iter().map(|(service, counts)| {
            let held = before.services.get(service).copied().unwrap_or_default();
            (*service, std::array::from_fn(|index| counts[index] - held[index]))
        });
        let drops =
            self.drops.iter().map(|(key, count)| (*key, count - before.drops.get(key).copied().unwrap_or_default()));
        Self {
            packets: packets.filter(|(_, count)| *count != 0).collect(),
            services: services.filter(|(_, counts): &(u32, [u64; 5])| *counts != [0; 5]).collect(),
            drops: drops.filter(|(_, count)| *count != 0).collect(),
        }
    }
}

fn array(counters: &ServiceCounters) -> [u64; 5] {
    let ServiceCounters { connections, packets, bytes, reply_packets, reply_bytes } = *counters;
    [connections, packets, bytes, reply_packets, reply_bytes]
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((reason, family), count) in &self.packets {
            let family = family.map_or_else(|| "no family".to_owned(), |family| family.to_string());
            write!(f, "{} {family}: {count}; ", reason.name())?;
        }
        for (service, [connections, packets, bytes, reply_packets, reply_bytes]) in &self.services {
            write!(
                f,
                "service {service}: {connections} connections, {packets} packets {bytes} bytes, \
                 {reply_packets} replies {reply_bytes} bytes; "
            )?;
        }
        for ((service, reason), count) in &self.drops {
            write!(f, "service {service}: {count} dropped, {}; ", reason.name())?;
        }
        Ok(())
    }
}
