//! How many packets a second go through one veth pair and back out of it: live frames from one end, which a program at the other end
//! sends back.
//!
//! Once that is a program that does nothing else, which is the most that a veth can; and once it is the daemon's, for a client and a
//! backend that are both behind this device. What comes back is counted where it was sent, so that the share of the one in the other holds
//! whatever the machine is.

use dsproxy_common::{IpFamily, Protocol, count::Reason};

use super::{
    super::{
        BenchError, Figure,
        path::{Path, Range},
    },
    live::{Live, Sent},
    processor_time::{Confined, ProcessorClock},
    rate::RateEffort,
    variant::{sent_on, wait_until_served},
};
use crate::lab::{
    Daemon, DaemonOptions, DualStack, Lab, Manifests, Outside, ServiceManifest, Side, add_address, link_address,
};

/// The name of the part, by which tables find these figures.
pub(in crate::bench) const PART: &str = "one veth pair";

/// The share of a bare program's rate that is aimed at: 2.6 of 3.8 million packets a second.
const SHARE: f64 = 2.6 / 3.8;

/// The node's port, and the backend's.
const NODE_PORT: u16 = 30_001;
const TARGET_PORT: u16 = 8080;

/// An address of the host outside beside the client's: the backend's.
const BACKEND: DualStack = DualStack::outside(77);

const SOURCE_PORT: u16 = 50_000;

/// How many packets go first, for which neighbours are found and connections made.
const WARM_UP: u32 = 1000;

/// The share of packets that XDP has to have sent on.
const LEAST_BY_XDP: f64 = 0.99;

/// The share of packets that has to come back before a rate is believed.
const LEAST_RETURNED: f64 = 0.9;

/// The pair and what is at its other end.
struct Pair {
    lab: Lab,
    outside: Outside,
    live: Live,
}

/// What one variant did, round by round.
#[derive(Default)]
struct Samples {
    rates: Vec<f64>,
    /// Processor time for a packet, in us.
    times: Vec<f64>,
    lost: Vec<f64>,
}

impl Pair {
    /// A pair whose near end counts packets to `port`.
    fn build(port: u16) -> Result<Self, BenchError> {
        let lab = Lab::new()?;
        let outside = lab.add_outside()?;
        add_address(outside.namespace(), Outside::INTERFACE, BACKEND)?;
        let mut live = Live::load()?;
        live.count_at(outside.namespace(), Outside::INTERFACE, port)?;
        Ok(Self { lab, outside, live })
    }

    fn send(&mut self, family: IpFamily, packets: u32) -> Result<Sent, BenchError> {
        let Self { lab, outside, live } = self;
        send(live, lab, outside, family, packets)
    }
}

/// Sends `packets` of one flow to the node's port.
fn send(live: &mut Live, lab: &Lab, outside: &Outside, family: IpFamily, packets: u32) -> Result<Sent, BenchError> {
    let node = lab.node(Side::A);
    let gateway = link_address(node.namespace(), Outside::GATEWAY_INTERFACE)?;
    let source = (outside.addresses().socket(family, SOURCE_PORT), Range::ONE);
    let target = (node.addresses().socket(family, NODE_PORT), Range::ONE);
    let path = Path::new("through the pair", Protocol::Udp, source, target, Reason::Forwarded).towards(gateway);
    live.send(outside.namespace(), Outside::INTERFACE, &path, packets)
}

impl Samples {
    /// Notes what `send` does.
    fn add(
        &mut self,
        variant: &'static str,
        clock: &ProcessorClock,
        send: impl FnOnce() -> Result<Sent, BenchError>,
    ) -> Result<(), BenchError> {
        let before = clock.now()?;
        let sent = send()?;
        self.note(variant, sent, clock.now()?.saturating_sub(before).as_secs_f64())
    }

    fn note(&mut self, variant: &'static str, sent: Sent, spent: f64) -> Result<(), BenchError> {
        let Sent { sent, arrived, elapsed } = sent;
        let share = arrived as f64 / f64::from(sent);
        if share < LEAST_RETURNED {
            return Err(BenchError::Lost { variant, sent, arrived });
        }
        self.rates.push(arrived as f64 / elapsed.as_secs_f64());
        self.times.push(spent * 1e6 / arrived as f64);
        self.lost.push((1.0 - share) * 100.0);
        Ok(())
    }
}

/// Measures both, in turns, and says what share of the one the other is.
///
/// # Errors
///
/// When a lab or the daemon fails, or packets do not come back, or not by XDP.
pub(super) fn measure(effort: &RateEffort, mut progress: impl FnMut(&str)) -> Result<Vec<Figure>, BenchError> {
    let RateEffort { source: _, rounds, packets, services: _ } = effort;
    let mut bare = Pair::build(NODE_PORT)?;
    bare.live.reflect_at(bare.lab.node(Side::A).namespace(), Outside::GATEWAY_INTERFACE)?;
    let mut served = Pair::build(TARGET_PORT)?;
    let manifests = Manifests::create(served.lab.directory().join("manifests"))?;
    manifests.write(&service())?;
    let arguments = ["--xdp", "native"].map(str::to_owned).into();
    let Pair { lab, outside, live } = &mut served;
    let daemon = Daemon::start(lab, &manifests, DaemonOptions { arguments, ..DaemonOptions::default() })?;
    wait_until_served(&daemon, IpFamily::ALL.len())?;
    let clock = ProcessorClock::new()?;
    let mut figures = Vec::new();
    for family in IpFamily::ALL {
        progress(&format!("one veth pair, {family}"));
        let (mut of_bare, mut of_served) = (Samples::default(), Samples::default());
        for _ in 0..*rounds {
            let _confined = Confined::to_one()?;
            bare.send(family, WARM_UP)?;
            of_bare.add("XDP_TX alone", &clock, || bare.send(family, *packets))?;
            // The neighbour is found, and the stack has seen the flow.
            send(live, lab, outside, family, WARM_UP)?;
            let before = sent_on(&daemon, family)?;
            of_served.add("dsproxy", &clock, || send(live, lab, outside, family, *packets))?;
            let by_xdp = sent_on(&daemon, family)? - before;
            if (by_xdp as f64) < f64::from(*packets) * LEAST_BY_XDP {
                return Err(BenchError::Lost { variant: "dsproxy, by XDP", sent: *packets, arrived: by_xdp });
            }
        }
        figures.extend(of_family(family, of_bare, of_served));
    }
    Ok(figures)
}

/// The Service, whose endpoint is behind the device that its clients come by.
fn service() -> ServiceManifest {
    ServiceManifest::new("bench", "one-armed")
        .dual_stack(DualStack::cluster_ip(1))
        .port(Protocol::Udp, 80, TARGET_PORT)
        .node_port(NODE_PORT)
        .backends([BACKEND])
}

fn of_family(family: IpFamily, bare: Samples, served: Samples) -> Vec<Figure> {
    let name = |variant: &str, what: &str| format!("one veth pair, {family}, 1 flow, {variant}: {what}");
    let shares: Vec<f64> = served.rates.iter().zip(&bare.rates).map(|(served, bare)| served / bare).collect();
    let mut figures = Vec::new();
    for (variant, Samples { rates, times, lost }) in [("XDP_TX alone", bare), ("dsproxy", served)] {
        figures.push(Figure::of_samples(name(variant, "rate"), "/s", rates).higher_is_better());
        figures.push(Figure::of_samples(name(variant, "CPU a packet"), "us", times));
        figures.push(Figure::of_samples(name(variant, "lost"), "%", lost));
    }
    let share = Figure::of_samples(name("dsproxy", "rate, share of XDP_TX alone"), "", shares);
    figures.push(share.higher_is_better().at_least(SHARE));
    figures.into_iter().map(|figure| figure.at("part", PART).at("family", family)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_the_same_round() {
        let of = |rates: [f64; 3]| Samples { rates: rates.into(), times: vec![1.0; 3], lost: vec![0.0; 3] };
        let figures = of_family(IpFamily::V6, of([4.0, 2.0, 8.0]), of([2.0, 1.0, 4.0]));
        let share = figures.iter().find(|figure| figure.aim.is_some()).expect("it has an aim");
        assert_eq!((share.minimum, share.median), (0.5, 0.5));
        assert!(!share.is_met() && share.best() == 0.5);
    }

    #[test]
    fn what_does_not_come_back_is_no_rate() {
        let sent = |arrived| Sent { sent: 100, arrived, elapsed: std::time::Duration::from_secs(1) };
        let mut samples = Samples::default();
        assert!(samples.note("x", sent(89), 1.0).is_err());
        assert!(samples.note("x", sent(95), 1.0).is_ok() && samples.lost[0] > 4.9);
    }
}
