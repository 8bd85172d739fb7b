//! How many packets a second are forwarded: UDP from outside to the port of a node, whose backend is on another, in small packets.
//!
//! The sender is the kernel itself (`live`), on the processor that forwards as well, so that a rate is the inverse of the work; what
//! making and counting a packet takes is in the figures of all variants alike, the floor's too.

use dsproxy_common::{IpFamily, Protocol, count::Reason};

use super::{
    super::{
        BenchError, Figure,
        path::{Path, Range},
    },
    live::{Live, Sent},
    processor_time::{Confined, ProcessorClock},
    stage::{Stage, Way},
    variant::FORWARDING_VARIANTS as VARIANTS,
};
use crate::lab::{Outside, Side, link_address};

/// The name of the part, by which plots and tables find these figures.
const PART: &str = "rate";

/// How much is measured.
#[derive(Clone, Debug)]
pub struct RateEffort {
    /// How many rounds; each measures everything once.
    pub rounds: u32,
    /// How many packets for one measurement.
    pub packets: u32,
    /// How many Services there are; everything is measured with each of these numbers.
    pub services: Vec<u32>,
}

/// From how many ports of the client packets come. What is masqueraded needs a port of the node for each of them.
const FLOWS: [Range; 2] = [Range::ONE, Range { ports: 12, addresses: 0 }];

/// The first port of the client's.
const SOURCE_PORT: u16 = 20_000;

/// The share of packets that has to arrive before a rate is believed.
const LEAST_ARRIVED: f64 = 0.5;

/// What was measured in the rounds.
#[derive(Default)]
struct Samples {
    /// Packets a second that arrived.
    rates: Vec<f64>,
    /// Processor time for one of them, in us.
    times: Vec<f64>,
    /// The share that was lost, in percent.
    lost: Vec<f64>,
}

/// Measures every variant, and tells `progress` what it is at.
///
/// # Errors
///
/// When a lab or a proxy fails, or packets do not arrive.
pub fn measure_rate(effort: &RateEffort, mut progress: impl FnMut(&str)) -> Result<Vec<Figure>, BenchError> {
    let RateEffort { rounds, packets, services } = effort;
    let way = Way::NodePort;
    let stages = VARIANTS.iter().map(|_| Stage::build()).collect::<Result<Vec<Stage>, _>>()?;
    let mut proxies = Vec::new();
    let mut senders = Vec::new();
    for (variant, stage) in VARIANTS.iter().zip(&stages) {
        let mut live = Live::load()?;
        live.take_at(stage.client(way), Outside::INTERFACE)?;
        if !variant.has_xdp() {
            live.take_at(stage.lab().node(Stage::SIDE).namespace(), Outside::GATEWAY_INTERFACE)?;
        }
        let far = stage.lab().node(Side::B);
        live.count_at(far.namespace(), far.interface(), way.target())?;
        senders.push(live);
        // XDP looks whether the other ends take frames.
        proxies.push(variant.start(stage)?);
    }
    let clock = ProcessorClock::new()?;
    let mut figures = Vec::new();
    for &count in services {
        for (stage, proxy) in stages.iter().zip(&mut proxies) {
            proxy.serve(stage, count)?;
        }
        for (flows, family) in FLOWS.into_iter().flat_map(|flows| IpFamily::ALL.map(|family| (flows, family))) {
            progress(&format!("{count} Services, {} flows, {family}", flows.len()));
            let mut samples: Vec<Samples> = VARIANTS.iter().map(|_| Samples::default()).collect();
            for round in 0..*rounds {
                for turn in 0..VARIANTS.len() {
                    let place = (turn + round as usize) % VARIANTS.len();
                    let (variant, stage) = (&VARIANTS[place], &stages[place]);
                    let path = path(stage, family, flows, variant.is_floor())?;
                    let _confined = Confined::to_one()?;
                    let client = stage.client(way);
                    // Neighbours are found and connections made.
                    senders[place].send(client, Outside::INTERFACE, &path, flows.len().max(1_000))?;
                    let before = clock.now()?;
                    let sent = senders[place].send(client, Outside::INTERFACE, &path, *packets)?;
                    let spent = clock.now()?.saturating_sub(before);
                    samples[place].add(variant.name, sent, spent.as_secs_f64())?;
                }
            }
            for (variant, samples) in VARIANTS.iter().zip(samples) {
                figures.extend(samples.figures(variant.name, family, flows.len(), count));
            }
        }
    }
    Ok(figures)
}

/// Packets from the host outside to the node, or straight to a pod, framed for the node's device.
fn path(stage: &Stage, family: IpFamily, flows: Range, straight: bool) -> Result<Path, BenchError> {
    let way = Way::NodePort;
    let source = stage.outside().addresses().socket(family, SOURCE_PORT);
    let target = stage.target(way, family, straight);
    let mut path = Path::new("forwarded", Protocol::Udp, (source, flows), (target, Range::ONE), Reason::Forwarded);
    let device = link_address(stage.lab().node(Stage::SIDE).namespace(), Outside::GATEWAY_INTERFACE)?;
    path.packet = device.into_iter().chain(path.packet.iter().skip(device.len()).copied()).collect();
    Ok(path)
}

impl Samples {
    fn add(&mut self, variant: &'static str, sent: Sent, spent: f64) -> Result<(), BenchError> {
        let Sent { sent, arrived, elapsed } = sent;
        let share = arrived as f64 / f64::from(sent);
        if share < LEAST_ARRIVED {
            return Err(BenchError::Lost { variant, sent, arrived });
        }
        self.rates.push(arrived as f64 / elapsed.as_secs_f64());
        self.times.push(spent * 1e6 / arrived as f64);
        self.lost.push((1.0 - share) * 100.0);
        Ok(())
    }

    fn figures(self, variant: &str, family: IpFamily, flows: u32, services: u32) -> Vec<Figure> {
        let Self { rates, times, lost } = self;
        let many = if flows == 1 { "1 flow".to_owned() } else { format!("{flows} flows") };
        let name =
            |what: &str| format!("forwarded by NodePort, {family}, {many}, {services} Services, {variant}: {what}");
        [
            ("rate", Figure::of_samples(name("rate"), "/s", rates).higher_is_better()),
            ("processor time", Figure::of_samples(name("CPU a packet"), "us", times)),
            ("lost", Figure::of_samples(name("lost"), "%", lost)),
        ]
        .into_iter()
        .map(|(what, figure)| {
            figure
                .at("part", PART)
                .at("way", Way::NodePort.name())
                .at("flows", flows)
                .at("family", family)
                .at("services", services)
                .at("variant", variant)
                .at("what", what)
        })
        .collect()
    }
}
