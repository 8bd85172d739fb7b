//! The counters at one moment.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    time::Instant,
};

use anyhow::Context as _;
use dsproxy_common::{
    IpFamily,
    count::{Reason, ServiceCounters, ServiceDrops},
};

use crate::{
    datapath::open_connections,
    inspect::{
        Live,
        fill::{self, MapFill},
        filter::FlowFilter,
    },
    jiffies,
    maps::kernel::KernelMaps,
};

/// What was counted, up to one moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    /// All of them, by the name of the service port, which outlives its id.
    pub(super) services: BTreeMap<String, Counted>,
    /// Those that are shown; none if all are. What is shown next may be hidden now, and yet has to be known then.
    pub(super) shown: Option<BTreeSet<String>>,
    pub(super) packets: BTreeMap<(Reason, Option<IpFamily>), u64>,
}

/// What was counted for a service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) counters: ServiceCounters,
    pub(super) drops: ServiceDrops,
    /// The connections that are open.
    pub(super) open: u64,
}

impl Sample {
    /// Reads what was counted. What `filter` takes is shown.
    pub(super) fn read(live: &Live, filter: &FlowFilter) -> anyhow::Result<Self> {
        let maps = &live.maps;
        let settings = maps.settings()?;
        let now = jiffies::now(settings.jiffies_per_second).context("read the clock")?;
        let open = open_connections::by_service(&live.bpffs, &settings, now).context("read the connections")?;
        let taken = taken(maps, filter)?;
        let mut shown = taken.as_ref().map(|_| BTreeSet::new());
        let mut services = BTreeMap::new();
        let at = Instant::now();
        for (id, name) in maps.names()? {
            if let (Some(taken), Some(shown)) = (&taken, &mut shown)
                && taken.contains(&id)
            {
                shown.insert(name.clone());
            }
            let open = open.get(&id).copied().unwrap_or_default();
            let (counters, drops) = (maps.service_counters(id)?, maps.service_drops(id)?);
            services.insert(name, Counted { counters, drops, open });
        }
        let packets = maps.counters()?.into_iter().map(|(reason, family, count)| ((reason, family), count)).collect();
        Ok(Self { at, services, shown, packets })
    }

    /// Whether the service port of this name is shown.
    pub(super) fn shows(&self, name: &str) -> bool {
        self.shown.as_ref().is_none_or(|shown| shown.contains(name))
    }
}

/// The service ports of which a frontend is taken by `filter`; none if all are. What is counted is counted for all of its frontends
/// together.
fn taken(maps: &KernelMaps, filter: &FlowFilter) -> anyhow::Result<Option<BTreeSet<u32>>> {
    if filter.takes_all() {
        return Ok(None);
    }
    let names: HashMap<u32, String> = maps.names()?.into_iter().collect();
    let mut endpoints: HashMap<(IpFamily, u32), Vec<SocketAddr>> = HashMap::new();
    for (family, _, record) in maps.backends()? {
        endpoints.entry((family, record.service)).or_default().push((record.address, record.port).into());
    }
    let taken = maps.frontends()?.into_iter().filter(|(address, frontend)| {
        let family = address.family();
        let mut addresses = endpoints.get(&(family, frontend.service)).cloned().unwrap_or_default();
        addresses.push((address.address, address.port).into());
        let name = names.get(&frontend.service).map(String::as_str).unwrap_or_default();
        filter.takes(address.protocol, name, family, &addresses)
    });
    Ok(Some(taken.map(|(_, frontend)| frontend.service).collect()))
}

/// How full the maps are that have a limit, the fullest first.
pub(super) fn fill(live: &Live) -> anyhow::Result<Vec<MapFill>> {
    let mut maps = fill::fill(live, &BTreeSet::new())?;
    maps.retain(|map| map.share().is_some());
    maps.sort_by(|a, b| b.share().unwrap_or_default().total_cmp(&a.share().unwrap_or_default()));
    Ok(maps)
}
