//! `/metrics`. Everything is read at the moment of the scrape, so that no gauge can drift from what it tells.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};
use tracing::warn;

use crate::{
    attachments::Report,
    datapath::{attach::Attachment, bpffs::Bpffs, map_entries, map_memory, open_connections},
    health,
    maps::{MapError, MapKind, MapStore as _, kernel::KernelMaps},
    model::IpFamily,
    progress::Progress,
    source::{SourceStatus, Trouble, WatchStatus},
};

mod kube_proxy;
mod service_series;

use self::service_series::{Counted, ServiceSeries, Told};

/// Where the service port's name stands, for all that have no series of their own. No Service is in a namespace without a name.
const OTHERS: &str = "other";

/// What metrics are read from.
pub struct Observed {
    /// The maps.
    pub maps: KernelMaps,
    /// Where they are pinned.
    pub bpffs: Bpffs,
    /// How far they are.
    pub progress: Arc<Progress>,
    /// How the source fares.
    pub source: Arc<SourceStatus>,
    /// What is attached.
    pub attached: Arc<Report>,
    /// The sockets of health checks.
    pub health_check_ports: Arc<health::Report>,
}

/// The registry.
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// Metrics of the maps, the reconciler, the source and what is attached.
    ///
    /// At most `most_services` service ports have series of their own.
    pub fn new(observed: Observed, node: String, most_services: usize) -> Self {
        let mut root = Registry::default();
        let theirs = kube_proxy::KubeProxyMetrics(Arc::clone(&observed.progress));
        root.sub_registry_with_prefix("kubeproxy").register_collector(Box::new(theirs));
        let registry = root.sub_registry_with_prefix("dsproxy");
        registry.register_with_unit(
            "sync_duration",
            "The time from taking up changes to the last map write for them",
            Unit::Seconds,
            observed.progress.sync_duration(),
        );
        registry.register(
            "build",
            "The version that runs, and the node it runs for",
            Info::new([("version", env!("CARGO_PKG_VERSION").to_owned()), ("node", node)]),
        );
        registry.register_collector(Box::new(State::new(observed, most_services)));
        Self { registry: root }
    }

    /// All metrics as text.
    ///
    /// # Errors
    ///
    /// When the text cannot be written.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut encoded = String::new();
        text::encode(&mut encoded, &self.registry)?;
        Ok(encoded)
    }
}

struct State {
    maps: KernelMaps,
    bpffs: Bpffs,
    series: Mutex<ServiceSeries>,
    progress: Arc<Progress>,
    source: Arc<SourceStatus>,
    attached: Arc<Report>,
    health_check_ports: Arc<health::Report>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.packets(&mut encoder)?;
        self.services(&mut encoder)?;
        self.reconciler(&mut encoder)?;
        self.lag(&mut encoder)?;
        self.source(&mut encoder)?;
        self.attachments(&mut encoder)?;
        self.health_check_ports(&mut encoder)
    }
}

/// One sample: labels and value.
type Sample<const LABELS: usize> = ([(&'static str, String); LABELS], u64);

fn counters<const LABELS: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = Sample<LABELS>>,
) -> Result<(), fmt::Error> {
    family(encoder, name, help, samples, ConstCounter::new)
}

fn gauges<const LABELS: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = Sample<LABELS>>,
) -> Result<(), fmt::Error> {
    family(encoder, name, help, samples, |value| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn family<const LABELS: usize, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = Sample<LABELS>>,
    metric: impl Fn(u64) -> M,
) -> Result<(), fmt::Error> {
    let mut samples = samples.into_iter().peekable();
    let Some((_, first)) = samples.peek() else { return Ok(()) };
    let kind = metric(*first).metric_type();
    let mut encoder = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in samples {
        let metric = metric(value);
        if LABELS == 0 {
            // Without braces around nothing.
            return metric.encode(encoder);
        }
        metric.encode(encoder.encode_family(&labels)?)?;
    }
    Ok(())
}

fn family_label(family: Option<IpFamily>) -> (&'static str, String) {
    ("ip_family", family.map_or_else(String::new, |family| family.to_string()))
}

fn trouble_label(trouble: Trouble) -> (&'static str, String) {
    ("trouble", trouble.name().to_owned())
}

fn seconds_of(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl State {
    fn new(observed: Observed, most_services: usize) -> Self {
        let Observed { maps, bpffs, progress, source, attached, health_check_ports } = observed;
        let series = Mutex::new(ServiceSeries::new(most_services));
        Self { maps, bpffs, series, progress, source, attached, health_check_ports }
    }

    fn packets(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let samples = self.maps.counters().unwrap_or_else(|error| {
            warn!(%error, "metrics without packet counters");
            Vec::new()
        });
        let samples = samples.into_iter().map(|(reason, family, count)| {
            let verdict = if reason.is_drop() { "drop" } else { "pass" };
            ([("reason", reason.name().to_owned()), ("verdict", verdict.to_owned()), family_label(family)], count)
        });
        counters(encoder, "packets", "Packets by what became of them", samples)
    }

    fn services(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let told = self.told().unwrap_or_else(|error| {
            warn!(%error, "metrics without Services");
            Vec::new()
        });
        let mut connections = Vec::new();
        let mut packets = Vec::new();
        let mut bytes = Vec::new();
        let mut drops = Vec::new();
        for ([namespace, service, port, protocol], Counted { traffic, drops: dropped }) in told {
            let labels = [("namespace", namespace), ("service", service), ("port", port), ("protocol", protocol)];
            let directed = |direction: &str| {
                let [namespace, service, port, protocol] = labels.clone();
                [namespace, service, port, protocol, ("direction", direction.to_owned())]
            };
            packets.push((directed("to_backend"), traffic.packets));
            packets.push((directed("to_client"), traffic.reply_packets));
            bytes.push((directed("to_backend"), traffic.bytes));
            bytes.push((directed("to_client"), traffic.reply_bytes));
            // From the first drop on: a series for each reason of each service port would be as many again, nearly all of them zero.
            drops.extend(dropped.iter().filter(|(_, count)| *count > 0).map(|(reason, count)| {
                let [namespace, service, port, protocol] = labels.clone();
                ([namespace, service, port, protocol, ("reason", reason.name().to_owned())], count)
            }));
            connections.push((labels, traffic.connections));
        }
        counters(encoder, "service_connections", "Connections opened, by service port", connections)?;
        counters(encoder, "service_packets", "Packets translated, by service port", packets)?;
        counters(encoder, "service_bytes", "Bytes translated, by service port", bytes)?;
        let help =
            "Packets dropped, and calls of sockets refused, by service port and reason; no series before the first";
        counters(encoder, "service_drops", help, drops)
    }

    /// The names and counters that are told, those of all others together. All or none: what is missing once would count as new the
    /// next time. Read and told under one lock, for a scrape that told of less than the one before would seem to begin anew.
    fn told(&self) -> Result<Vec<([String; 4], Counted)>, MapError> {
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names = self.maps.names()?;
        names.sort_unstable();
        // While the map is written one may be met twice.
        names.dedup();
        let counted = names.into_iter().map(|(id, name)| {
            let (traffic, drops) = (self.maps.service_counters(id)?, self.maps.service_drops(id)?);
            Ok((name, Counted { traffic, drops }))
        });
        let Told { own, others } = series.tell(counted.collect::<Result<_, MapError>>()?);
        let others = others.map(|counted| (["", OTHERS, "", ""].map(str::to_owned), counted));
        Ok(own.into_iter().map(|(name, counted)| (name_parts(&name), counted)).chain(others).collect())
    }

    fn lag(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let waiting = self.progress.lag().waiting_since;
        let waits = waiting.map_or(0.0, |since| Instant::now().saturating_duration_since(since).as_secs_f64());
        let name = "oldest_change_waiting";
        let help = "How long the oldest change waits that is not in the maps; 0 while nothing does";
        let metric = ConstGauge::new(waits);
        metric.encode(encoder.encode_descriptor(name, help, Some(&Unit::Seconds), metric.metric_type())?)
    }

    fn memory(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let memory = map_memory::pinned(&self.bpffs).unwrap_or_else(|error| {
            warn!(%error, "metrics without the memory of maps");
            BTreeMap::new()
        });
        let of = |map: MapKind, family| {
            let maps = map.kernel_maps(family);
            let bytes = maps.iter().filter_map(|name| memory.get(*name)).sum();
            (!maps.is_empty()).then(|| ([("map", map.name().to_owned()), family_label(family)], bytes))
        };
        let families = [None, Some(IpFamily::V4), Some(IpFamily::V6)];
        let bytes =
            MapKind::ALL.into_iter().flat_map(|map| families.into_iter().filter_map(move |family| of(map, family)));
        gauges(encoder, "map_bytes", "The kernel's memory for maps", bytes)
    }

    fn reconciler(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = self.progress.snapshot();
        let (writes, failures) = self.progress.totals();
        let capacities = self.maps.capacities();
        gauges(
            encoder,
            "synced",
            "1 once the maps have held all that the source listed",
            [([], snapshot.synced.into())],
        )?;
        gauges(encoder, "services", "Services of the source", [([], snapshot.services as u64)])?;
        gauges(encoder, "endpoint_slices", "EndpointSlices of the source", [([], snapshot.slices as u64)])?;
        gauges(
            encoder,
            "services_failed",
            "Services not served as they should be",
            [([], snapshot.failed.len() as u64)],
        )?;
        gauges(encoder, "frontend_conflicts", "Frontends that two Services want", [([], snapshot.conflicts as u64)])?;
        counters(encoder, "map_writes", "Writes to maps", [([], writes)])?;
        counters(encoder, "service_failures", "Attempts at a Service that failed", [([], failures)])?;
        let full = self.progress.full();
        let full = MapKind::ALL.into_iter().filter_map(|map| {
            // From the beginning, so that the first refusal is an increase.
            let may_be_full = capacities.of(map).is_some() && !map.is_made_by_programs();
            let count = full.get(&map).copied().or(may_be_full.then_some(0))?;
            Some(([("map", map.name().to_owned())], count))
        });
        counters(encoder, "map_full", "Writes refused because a map had no room", full)?;

        let label = |map: MapKind, family| [("map", map.name().to_owned()), family_label(family)];
        let written = snapshot
            .fill
            .iter()
            .flat_map(|(family, fill)| fill.iter().map(|(map, used)| (label(*map, Some(*family)), u64::from(*used))));
        let tables = self.tables();
        let made = IpFamily::ALL.into_iter().flat_map(|family| {
            let tables = &tables;
            MapKind::ALL.into_iter().filter_map(move |map| {
                // Which are walked already.
                let table = tables.iter().find(|table| (table.kind, table.family) == (map, family));
                let entries = match table {
                    Some(table) => table.entries,
                    None => map_entries::made_by_programs(&self.bpffs, map, family).ok()??,
                };
                Some((label(map, Some(family)), entries as u64))
            })
        });
        let services = [(label(MapKind::Services, None), snapshot.service_ports as u64)];
        let entries = services.into_iter().chain(written);
        gauges(encoder, "map_entries", "Entries in use", entries)?;
        let help = "Entries of maps in which the least recently used gives way, those included that no longer count";
        gauges(encoder, "lru_map_entries", help, made)?;
        let open = tables.iter().map(|table| (label(table.kind, Some(table.family)), table.open as u64));
        gauges(encoder, "open_connections", "Entries of open connections among them", open)?;
        let capacities = MapKind::ALL
            .into_iter()
            .filter_map(|map| Some(([("map", map.name().to_owned())], capacities.of(map)?.into())));
        gauges(encoder, "map_capacity", "Entries a map has room for, in each family", capacities)?;
        self.memory(encoder)
    }

    fn tables(&self) -> Vec<open_connections::Table> {
        open_connections::read_tables(&self.bpffs, &self.maps).unwrap_or_else(|error| {
            warn!(error = format!("{error:#}"), "metrics without the number of open connections");
            Vec::new()
        })
    }

    fn source(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        gauges(encoder, "source_connected", "1 while the source answers", [([], self.source.connected().into())])?;
        counters(encoder, "source_failures", "Failed lists, watches and reads", [([], self.source.failures())])?;
        let watches = self.source.watches();
        let of = |watch: &WatchStatus| ("resource", watch.resource.to_owned());
        gauges(
            encoder,
            "source_watch_working",
            "1 while a resource is watched",
            watches.iter().map(|watch| ([of(watch)], watch.works.into())),
        )?;
        let troubled = watches.iter().filter_map(|watch| Some((watch, watch.trouble?)));
        gauges(
            encoder,
            "source_watch_trouble_since_timestamp_seconds",
            "Since when something is the matter with a resource, and what at last; there is none while it is well",
            troubled.map(|(watch, trouble)| ([of(watch), trouble_label(trouble)], seconds_of(watch.since))),
        )?;
        counters(
            encoder,
            "source_watch_failures",
            "Failed lists and watches, by resource and class",
            watches.iter().flat_map(|watch| {
                watch.failures.iter().map(|(trouble, count)| ([of(watch), trouble_label(*trouble)], *count))
            }),
        )?;
        gauges(
            encoder,
            "source_objects_held_back",
            "Objects that are kept although the last list lacked them, until the API server has confirmed it",
            watches.iter().map(|watch| ([of(watch)], watch.held_back as u64)),
        )?;
        counters(
            encoder,
            "objects_rejected",
            "Objects left out because they make no sense",
            [([], self.source.rejected())],
        )?;
        counters(
            encoder,
            "object_parts_skipped",
            "Ports and endpoints left out of objects because they make no sense",
            [([], self.source.skipped())],
        )
    }

    fn attachments(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        // Not by interface: they come and go with pods.
        let mut attached = BTreeMap::new();
        for Attachment { direction, kind, .. } in self.attached.attachments() {
            *attached.entry((direction, kind)).or_default() += 1;
        }
        let attached = attached.into_iter().map(|((direction, kind), count)| {
            ([("direction", direction.to_string()), ("kind", kind.to_string())], count)
        });
        gauges(encoder, "attached", "Programs on interfaces", attached)?;
        let (failing, failures) = self.attached.failures();
        gauges(
            encoder,
            "interfaces_failed",
            "Interfaces that could not be followed at the last attempt",
            [([], failing as u64)],
        )?;
        gauges(
            encoder,
            "data_path_gone",
            "1 once what was pinned has been removed under the daemon, which then serves nothing",
            [([], u64::from(self.attached.is_taken_away()))],
        )?;
        counters(encoder, "attach_failures", "Failed attempts to attach", [([], failures)])
    }

    fn health_check_ports(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (failing, failures) = self.health_check_ports.failures();
        gauges(
            encoder,
            "health_check_ports_failed",
            "Sockets for the healthCheckNodePort of a Service that could not be opened at the last attempt",
            [([], failing as u64)],
        )?;
        counters(encoder, "health_check_port_failures", "Failed attempts to open such a socket", [([], failures)])?;
        gauges(
            encoder,
            "health_check_port_conflicts",
            "Services whose healthCheckNodePort another Service has",
            [([], self.health_check_ports.conflicts() as u64)],
        )
    }
}

/// Namespace, name, port and protocol in the name of a service port.
fn name_parts(name: &str) -> [String; 4] {
    let (service, port) = name.split_once(':').unwrap_or((name, ""));
    let (namespace, service) = service.split_once('/').unwrap_or(("", service));
    let (port, protocol) = port.rsplit_once('/').unwrap_or((port, ""));
    [namespace, service, port, protocol].map(str::to_owned)
}
