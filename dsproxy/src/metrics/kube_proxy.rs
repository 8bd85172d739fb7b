//! kube-proxy's metrics, as far as their meaning is one here, under its names (`pkg/proxy/metrics/metrics.go`), so that
//! dashboards and alerts go on. Those of rules, of conntrack entries and of partial syncs tell of what does not exist here.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use crate::{
    model::IpFamily,
    progress::{NoLocalEndpoints, Progress},
    sync_times::{Changes, Question, SyncTimes},
};

/// Reads them at the scrape.
pub(super) struct KubeProxyMetrics(pub(super) Arc<Progress>);

impl fmt::Debug for KubeProxyMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeProxyMetrics").finish_non_exhaustive()
    }
}

impl Collector for KubeProxyMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Self(progress) = self;
        let times = progress.sync_times();
        sync(&mut encoder, times)?;
        changes(&mut encoder, times)?;
        no_local_endpoints(&mut encoder, progress.snapshot().no_local_endpoints)?;
        answers(&mut encoder, times)
    }
}

fn sync(encoder: &mut DescriptorEncoder<'_>, times: &SyncTimes) -> Result<(), fmt::Error> {
    let seconds = Some(&Unit::Seconds);
    let of_families = IpFamily::ALL.map(|family| [("ip_family", family.to_string())]);
    let mut duration = encoder.encode_descriptor(
        "sync_proxy_rules_duration",
        "The time from taking up changes to the last map write for them",
        seconds,
        MetricType::Histogram,
    )?;
    for family in &of_families {
        times.duration().encode(duration.encode_family(family)?)?;
    }
    let mut programming = encoder.encode_descriptor(
        "network_programming_duration",
        "The time from what happened to an endpoint until the maps had it",
        seconds,
        MetricType::Histogram,
    )?;
    for family in IpFamily::ALL {
        let label = [("ip_family", family.to_string())];
        times.programming(family).encode(programming.encode_family(&label)?)?;
    }
    for (name, help, value) in [
        ("sync_proxy_rules_last_timestamp", "The last time when the maps held everything", times.last_synced()),
        ("sync_proxy_rules_last_queued_timestamp", "The last time when a change came", times.last_queued()),
    ] {
        let mut gauge = encoder.encode_descriptor(name, help, seconds, MetricType::Gauge)?;
        for family in &of_families {
            ConstGauge::new(value).encode(gauge.encode_family(family)?)?;
        }
    }
    Ok(())
}

fn changes(encoder: &mut DescriptorEncoder<'_>, times: &SyncTimes) -> Result<(), fmt::Error> {
    type OfFamily = for<'a> fn(&'a SyncTimes, IpFamily) -> &'a Changes;
    let kinds: [(&str, &str, OfFamily); 2] = [
        ("service", "Services", |times, _| times.services()),
        ("endpoint", "EndpointSlices", |times, family| times.endpoints(family)),
    ];
    for (name, objects, of) in kinds {
        let total = format!("sync_proxy_rules_{name}_changes");
        let help = format!("Changes of {objects}");
        let mut counter = encoder.encode_descriptor(&total, &help, None, MetricType::Counter)?;
        for family in IpFamily::ALL {
            let label = [("ip_family", family.to_string())];
            ConstCounter::new(of(times, family).total()).encode(counter.encode_family(&label)?)?;
        }
        let pending = format!("sync_proxy_rules_{name}_changes_pending");
        let help = format!("Changes of {objects} that are not in the maps yet");
        let mut gauge = encoder.encode_descriptor(&pending, &help, None, MetricType::Gauge)?;
        for family in IpFamily::ALL {
            let label = [("ip_family", family.to_string())];
            let value = i64::try_from(of(times, family).pending()).unwrap_or(i64::MAX);
            ConstGauge::new(value).encode(gauge.encode_family(&label)?)?;
        }
    }
    Ok(())
}

/// A gauge, whatever its name says: it is kube-proxy's.
fn no_local_endpoints(encoder: &mut DescriptorEncoder<'_>, counts: NoLocalEndpoints) -> Result<(), fmt::Error> {
    let mut gauge = encoder.encode_descriptor(
        "sync_proxy_rules_no_local_endpoints_total",
        "Service ports whose traffic policy keeps packets to this node, which has none of their endpoints",
        None,
        MetricType::Gauge,
    )?;
    for family in IpFamily::ALL {
        for (policy, count) in [("internal", counts.internal(family)), ("external", counts.external(family))] {
            let labels = [("ip_family", family.to_string()), ("traffic_policy", policy.to_owned())];
            ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX)).encode(gauge.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn answers(encoder: &mut DescriptorEncoder<'_>, times: &SyncTimes) -> Result<(), fmt::Error> {
    let answers = times.answers();
    for (question, name, help) in [
        (Question::Healthz, "proxy_healthz", "Answers of /healthz, by status"),
        (Question::Livez, "proxy_livez", "Answers of /livez, by status"),
    ] {
        let mut counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for ((_, code), count) in answers.iter().filter(|((asked, _), _)| *asked == question) {
            ConstCounter::new(*count).encode(counter.encode_family(&[("code", code.to_string())])?)?;
        }
    }
    Ok(())
}
