//! An event as it is printed.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use dsproxy_common::{
    Protocol,
    count::Reason,
    event::{Ends, Event, EventHook},
    flow::NO_SERVICE,
};
use jiff::Timestamp;
use serde::Serialize;

use crate::{boot_clock, inspect::Live};

/// Names may be given to others: after this they are asked for again.
const GOOD_FOR: Duration = Duration::from_secs(10);

/// The same, when there is none.
const MISSING_FOR: Duration = Duration::from_secs(1);

/// An event, told.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    /// RFC 3339.
    time: String,
    hook: &'static str,
    /// None of a socket's call.
    device: Option<String>,
    reason: &'static str,
    dropped: bool,
    protocol: String,
    bytes: u32,
    before: Flow,
    /// None, if it is as it was.
    after: Option<Flow>,
    name: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Flow {
    source: End,
    destination: End,
}

/// An address, and a port where there is one.
#[derive(Debug, PartialEq, Eq)]
struct End {
    address: IpAddr,
    port: u16,
}

impl Row {
    pub(super) fn new(event: &Event, names: &mut Names, live: &Live) -> anyhow::Result<Self> {
        let reason = Reason::from_number(event.reason);
        let before = Flow::new(&event.before);
        let after = Some(Flow::new(&event.after)).filter(|after| *after != before);
        Ok(Self {
            time: names.time(event.time),
            hook: EventHook::from_number(event.hook).map_or("unknown", EventHook::name),
            device: (event.device != 0).then(|| names.device(event.device)),
            reason: reason.map_or("unknown", Reason::name),
            dropped: reason.is_some_and(Reason::is_drop),
            protocol: protocol(event.protocol),
            bytes: event.length,
            before,
            after,
            name: if event.service == NO_SERVICE { None } else { names.service(event.service, live)? },
        })
    }

    /// Whether it is of a service port with `part` in its name, if it is asked for one.
    pub(super) fn is_of(&self, part: Option<&str>) -> bool {
        part.is_none_or(|part| self.name.as_deref().is_some_and(|name| name.contains(part)))
    }

    /// As a line for people.
    pub(super) fn line(&self) -> String {
        let Self { time, hook, device, reason, protocol, before, after, name, .. } = self;
        // The time of day; the day is known to who listens.
        let time = time.split_once('T').map_or(time.as_str(), |(_, time)| time.trim_end_matches('Z'));
        let device = device.as_deref().unwrap_or("-");
        let after = after.as_ref().map(|after| format!(" => {}", after.text())).unwrap_or_default();
        let name = name.as_ref().map(|name| format!("  {name}")).unwrap_or_default();
        let before = before.text();
        format!("{time} {hook:<12} {device:<15} {reason:<17} {protocol:<6} {before}{after}{name}")
    }
}

impl Flow {
    fn new(ends: &Ends) -> Self {
        let end = |address: IpAddr, port: u16| End { address: address.to_canonical(), port };
        Self {
            source: end(ends.source.into(), ends.source_port.number()),
            destination: end(ends.destination.into(), ends.destination_port.number()),
        }
    }

    fn text(&self) -> String {
        format!("{} -> {}", self.source.text(), self.destination.text())
    }
}

impl End {
    fn text(&self) -> String {
        match (self.address.is_unspecified(), self.port) {
            (true, 0) => "-".to_owned(),
            (false, 0) => self.address.to_string(),
            (_, port) => SocketAddr::new(self.address, port).to_string(),
        }
    }
}

impl Serialize for End {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

fn protocol(number: u32) -> String {
    match number {
        0 => "-".to_owned(),
        1 => "ICMP".to_owned(),
        58 => "ICMPv6".to_owned(),
        number => match u8::try_from(number).ok().and_then(Protocol::from_number) {
            Some(protocol) => protocol.to_string(),
            None => number.to_string(),
        },
    }
}

/// What numbers in events mean.
pub(super) struct Names {
    services: BTreeMap<u32, String>,
    devices: HashMap<u32, String>,
    read: Instant,
    /// When the machine was started, by the clock that people go by.
    boot: SystemTime,
}

impl Names {
    pub(super) fn read(live: &Live, now: Instant) -> anyhow::Result<Self> {
        let since_boot = boot_clock::now().context("read the clock")?;
        let boot = SystemTime::now().checked_sub(since_boot).unwrap_or(SystemTime::UNIX_EPOCH);
        let services = live.maps.names()?.into_iter().collect();
        Ok(Self { services, devices: HashMap::new(), read: now, boot })
    }

    /// Asks for names again that may be old; at once, if `is_asked_for_by_name`, for one that is new is to be asked for as well.
    pub(super) fn refresh(&mut self, live: &Live, now: Instant, is_asked_for_by_name: bool) -> anyhow::Result<()> {
        if is_asked_for_by_name || now.duration_since(self.read) >= GOOD_FOR {
            *self = Self::read(live, now)?;
        }
        Ok(())
    }

    /// Those of service ports, by id.
    pub(super) fn all(&self) -> &BTreeMap<u32, String> {
        &self.services
    }

    fn service(&mut self, id: u32, live: &Live) -> anyhow::Result<Option<String>> {
        let now = Instant::now();
        if !self.services.contains_key(&id) && now.duration_since(self.read) >= MISSING_FOR {
            *self = Self::read(live, now)?;
        }
        Ok(self.services.get(&id).cloned())
    }

    fn device(&mut self, index: u32) -> String {
        let name = || match nix::net::if_::if_indextoname(index) {
            Ok(name) => name.to_string_lossy().into_owned(),
            Err(_) => index.to_string(),
        };
        self.devices.entry(index).or_insert_with(name).clone()
    }

    fn time(&self, since_boot: u64) -> String {
        let time = self.boot + Duration::from_nanos(since_boot);
        Timestamp::try_from(time).map_or_else(|_| since_boot.to_string(), |time| format!("{time:.6}"))
    }
}

#[cfg(test)]
mod tests {
    use dsproxy_common::Port;

    use super::*;

    fn ends(source: &str, destination: &str) -> Ends {
        let address = |text: &str| {
            let socket: SocketAddr = text.parse().expect("an address and a port");
            let address = match socket.ip() {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            (address.into(), Port::new(socket.port()))
        };
        let ((source, source_port), (destination, destination_port)) = (address(source), address(destination));
        Ends { source, destination, source_port, destination_port }
    }

    fn row(before: Ends, after: Ends, protocol: u32) -> Row {
        let before = Flow::new(&before);
        Row {
            time: "2026-01-02T03:04:05.123456Z".to_owned(),
            hook: EventHook::PodIngress.name(),
            device: Some("veth1".to_owned()),
            reason: Reason::Opened.name(),
            dropped: false,
            protocol: super::protocol(protocol),
            bytes: 74,
            after: Some(Flow::new(&after)).filter(|after| *after != before),
            before,
            name: Some("shop/web:http".to_owned()),
        }
    }

    #[test]
    fn a_translation_shows_both_sides() {
        let before = ends("10.1.0.5:40000", "10.96.0.1:80");
        let shown = row(before, ends("10.1.0.5:40000", "10.1.0.7:8080"), 6);
        assert_eq!(
            shown.line(),
            "03:04:05.123456 pod-ingress  veth1           opened            TCP    \
             10.1.0.5:40000 -> 10.96.0.1:80 => 10.1.0.5:40000 -> 10.1.0.7:8080  shop/web:http"
        );
        assert!(shown.is_of(None) && shown.is_of(Some("web")) && !shown.is_of(Some("mail")));
        let json = serde_json::to_value(&shown).expect("JSON");
        assert_eq!(json["before"]["destination"], "10.96.0.1:80");
        assert_eq!(json["after"]["destination"], "10.1.0.7:8080");
    }

    #[test]
    fn what_stays_as_it_was_is_shown_once_and_without_ports_it_does_not_have() {
        let same = ends("[fd00::5]:0", "[fd00::1]:0");
        let line = row(same, same, 58).line();
        assert!(line.contains(" ICMPv6 fd00::5 -> fd00::1  shop"), "{line}");
        let line = row(Ends::default(), Ends::default(), 0).line();
        assert!(line.contains(" -      - -> -"), "{line}");
    }
}
