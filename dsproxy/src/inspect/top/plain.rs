//! One interval as text, or as JSON, for scripts.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{
    SortBy,
    rates::{Rates, ServiceRate, sort},
};
use crate::inspect::{
    View,
    columns::Columns,
    fill::MapFill,
    human::{bit_rate, rate, span},
};

/// What `dsproxy top --once` prints. Rates are by the second.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Plain {
    interval_seconds: f64,
    /// How many service ports there are, of which those with the most are told.
    service_ports: usize,
    services: Vec<Service>,
    drops: Vec<Drop>,
    maps: Vec<MapFill>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Service {
    name: String,
    open_connections: u64,
    connections: f64,
    packets: f64,
    bytes: f64,
    reply_packets: f64,
    reply_bytes: f64,
    /// By reason; those that are not here were none.
    drops: BTreeMap<&'static str, f64>,
    #[serde(skip)]
    dropped: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Drop {
    reason: &'static str,
    family: Option<String>,
    packets: f64,
    total: u64,
}

impl Plain {
    /// The first `limit` service ports, sorted.
    pub(super) fn new(rates: &Rates, by: SortBy, limit: usize, maps: Vec<MapFill>) -> Self {
        let mut services: Vec<_> = rates.services.iter().collect();
        sort(&mut services, by);
        let services = services.into_iter().take(limit).map(|service| Service {
            name: service.name.clone(),
            open_connections: service.open,
            connections: service.connections,
            packets: service.packets,
            bytes: service.bytes,
            reply_packets: service.reply_packets,
            reply_bytes: service.reply_bytes,
            drops: service.drops.iter().map(|(reason, rate)| (reason.name(), *rate)).collect(),
            dropped: dropped(service),
        });
        let drops = rates.drops.iter().map(|drop| Drop {
            reason: drop.reason.name(),
            family: drop.family.map(|family| family.to_string()),
            packets: drop.packets,
            total: drop.total,
        });
        Self {
            interval_seconds: rates.over.as_secs_f64(),
            service_ports: rates.services.len(),
            services: services.collect(),
            drops: drops.collect(),
            maps,
        }
    }
}

impl View for Plain {
    fn table(&self) -> String {
        let Self { interval_seconds, service_ports, services, drops, maps } = self;
        let over = span(Duration::try_from_secs_f64(*interval_seconds).unwrap_or_default());
        let mut text = format!("{} of {service_ports} service ports, over {over}\n\n", services.len());
        let mut columns = Columns::new(&[
            "SERVICE PORT",
            "OPEN",
            "CONNECTIONS/s",
            "PACKETS/s",
            "REPLIES/s",
            "TO BACKENDS",
            "TO CLIENTS",
            "DROPS/s",
        ]);
        for service in services {
            columns.row([
                service.name.clone(),
                service.open_connections.to_string(),
                rate(service.connections),
                rate(service.packets),
                rate(service.reply_packets),
                format!("{}/s", bit_rate(service.bytes)),
                format!("{}/s", bit_rate(service.reply_bytes)),
                service.dropped.clone(),
            ]);
        }
        text += &columns.text();
        let mut columns = Columns::new(&["DROPPED", "FAMILY", "PACKETS/s", "ALL"]);
        for Drop { reason, family, packets, total } in drops {
            let family = family.clone().unwrap_or_default();
            columns.row([(*reason).to_owned(), family, rate(*packets), total.to_string()]);
        }
        text += "\n";
        text += &columns.text();
        let mut columns = Columns::new(&["MAP", "FAMILY", "ENTRIES", "FULL"]);
        for map in maps {
            let number = |number: Option<String>| number.unwrap_or_default();
            columns.row([
                map.map.to_owned(),
                map.family.clone().unwrap_or_default(),
                number(map.entries.map(|entries| entries.to_string())),
                number(map.share().map(|share| format!("{:.1}%", share * 100.0))),
            ]);
        }
        text += "\n";
        text += &columns.text();
        text
    }
}

/// The drops of a service port in one cell, the most first.
fn dropped(service: &ServiceRate) -> String {
    let parts: Vec<_> =
        service.drops.iter().map(|(reason, drops)| format!("{} {}", rate(*drops), reason.name())).collect();
    if parts.is_empty() { rate(0.0) } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::{super::rates::tests::rates, *};

    #[test]
    fn the_busiest_are_printed() {
        let plain = Plain::new(&rates(), SortBy::Bytes, 2, Vec::new());
        let text = plain.table();
        assert!(text.starts_with("2 of 4 service ports, over 2s\n"), "{text}");
        assert!(text.contains("a/steady:x/TCP   4      2") && !text.contains("b/new"), "{text}");
        let json = serde_json::to_value(&plain).expect("JSON");
        assert_eq!(json["services"][0]["replyBytes"], 100_000.0);
        assert_eq!(json["drops"][0]["reason"], "no-port");
        assert!(text.contains("   10 no-endpoint, 2 source-range\n"), "{text}");
        assert_eq!(json["services"][0]["drops"]["source-range"], 2.0);
    }
}
