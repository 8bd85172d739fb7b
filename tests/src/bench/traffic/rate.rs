//! How many packets a second are forwarded: UDP from outside to the port of a node, whose backend is on another, in small packets.
//!
//! The sender is the kernel itself, on the processor that forwards as well, so that a rate is the inverse of the work; what making and
//! counting a packet takes is in the figures of all variants alike, the floor's too. It makes packets in one of two ways: as frames of XDP
//! (`live`), which take turns among flows, or by its packet generator (`pktgen`), as network cards bring them and flows at random.

use std::net::SocketAddr;

use dsproxy_common::{IpFamily, Protocol, count::Reason};

use super::{
    super::{
        BenchError, Figure,
        path::{Path, Range},
    },
    figures::{MANY_SERVICES, RATE_SHARE, RULES},
    live::{Live, Sent},
    one_armed,
    pktgen::Pktgen,
    processor_time::{Confined, ProcessorClock},
    stage::{Stage, Way},
    variant::FORWARDING_VARIANTS as VARIANTS,
};
use crate::lab::{Namespace, Outside, Side, like_hardware, link_address};

/// What makes the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Frames of XDP.
    LiveFrames,
    /// The kernel's packet generator.
    Pktgen,
}

impl Source {
    /// The name of the part, by which plots and tables find these figures.
    pub(in crate::bench) fn part(self) -> &'static str {
        match self {
            Self::LiveFrames => "rate",
            Self::Pktgen => "pktgen",
        }
    }

    /// How the names of figures begin.
    fn title(self) -> &'static str {
        match self {
            Self::LiveFrames => "forwarded by NodePort",
            Self::Pktgen => "pktgen, by NodePort",
        }
    }
}

/// How much is measured.
#[derive(Clone, Debug)]
pub struct RateEffort {
    /// What makes the packets.
    pub source: Source,
    /// How many rounds; each measures everything once.
    pub rounds: u32,
    /// How many packets for one measurement.
    pub packets: u32,
    /// How many Services there are; everything is measured with each of these numbers.
    pub services: Vec<u32>,
}

/// The way that packets take.
const WAY: Way = Way::NodePort;

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
    /// How many were made.
    sent: Vec<f64>,
    /// How many arrived, translated.
    arrived: Vec<f64>,
}

/// Where packets come from and go to.
pub(super) struct Course {
    pub(super) source: SocketAddr,
    /// From how many ports of the source.
    pub(super) flows: Range,
    pub(super) target: SocketAddr,
    /// The link-layer address of the node's device.
    pub(super) gateway: [u8; 6],
}

/// What makes packets, and counts those that arrive.
enum Sender {
    Live(Live),
    Pktgen(Pktgen, Live),
}

impl Sender {
    /// A sender in `stage`, which is not `served` by XDP by anything else yet, or at all.
    fn start(source: Source, stage: &Stage, has_own_xdp: bool) -> Result<Self, BenchError> {
        let client = stage.client(WAY);
        let mut live = Live::load()?;
        let far = stage.lab().node(Side::B);
        live.count_at(far.namespace(), far.interface(), WAY.target())?;
        match source {
            Source::LiveFrames => {
                live.take_at(client, Outside::INTERFACE)?;
                if !has_own_xdp {
                    live.take_at(stage.lab().node(Stage::SIDE).namespace(), Outside::GATEWAY_INTERFACE)?;
                }
                Ok(Self::Live(live))
            }
            Source::Pktgen => {
                like_hardware(client, Outside::INTERFACE)?;
                Ok(Self::Pktgen(Pktgen::take(client, Outside::INTERFACE)?, live))
            }
        }
    }

    fn send(&mut self, client: &Namespace, course: &Course, packets: u32) -> Result<Sent, BenchError> {
        match self {
            Self::Live(live) => live.send(client, Outside::INTERFACE, &course.path(), packets),
            Self::Pktgen(pktgen, live) => pktgen.send(client, course, packets, live),
        }
    }
}

/// Measures every variant, and tells `progress` what it is at.
///
/// # Errors
///
/// When a lab or a proxy fails, or packets do not arrive.
pub fn measure_rate(effort: &RateEffort, mut progress: impl FnMut(&str)) -> Result<Vec<Figure>, BenchError> {
    let RateEffort { source, rounds, packets, services } = effort;
    let stages = VARIANTS.iter().map(|_| Stage::build()).collect::<Result<Vec<Stage>, _>>()?;
    let mut proxies = Vec::new();
    let mut senders = Vec::new();
    for (variant, stage) in VARIANTS.iter().zip(&stages) {
        senders.push(Sender::start(*source, stage, variant.has_xdp())?);
        // XDP looks whether the other ends take frames.
        proxies.push(variant.start(stage)?);
    }
    let clock = ProcessorClock::new()?;
    let mut figures = match source {
        Source::LiveFrames => one_armed::measure(effort, &mut progress)?,
        Source::Pktgen => Vec::new(),
    };
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
                    let course = Course::of(stage, family, flows, variant.is_straight())?;
                    let _confined = Confined::to_one()?;
                    let client = stage.client(WAY);
                    // Neighbours are found and connections made.
                    senders[place].send(client, &course, flows.len().max(1_000))?;
                    let before = clock.now()?;
                    let sent = senders[place].send(client, &course, *packets)?;
                    let spent = clock.now()?.saturating_sub(before);
                    samples[place].add(variant.name, sent, spent.as_secs_f64())?;
                }
            }
            figures.extend(share_of_rules(*source, &samples, family, flows.len(), count));
            for (variant, samples) in VARIANTS.iter().zip(samples) {
                figures.extend(samples.figures(*source, variant.name, family, flows.len(), count));
            }
        }
    }
    Ok(figures)
}

/// What dsproxy's rate is of that of the rules in the same rounds; with many Services it is to be no less.
fn share_of_rules(source: Source, samples: &[Samples], family: IpFamily, flows: u32, services: u32) -> Option<Figure> {
    let of = |name| Some(&samples.get(VARIANTS.iter().position(|variant| variant.name == name)?)?.rates);
    let shares = of("dsproxy")?.iter().zip(of(RULES)?).map(|(own, rules)| own / rules);
    let name = figure_name(source, "dsproxy", family, flows, services, RATE_SHARE);
    let figure = Figure::of_samples(name, "", shares).higher_is_better();
    // What an emulated machine says of processors is no measure.
    let has_aim = source == Source::LiveFrames && services >= MANY_SERVICES;
    let figure = if has_aim { figure.at_least(1.0) } else { figure };
    Some(figure.at("part", source.part()).at("what", RATE_SHARE).at("services", services))
}

fn figure_name(source: Source, variant: &str, family: IpFamily, flows: u32, services: u32, what: &str) -> String {
    let many = if flows == 1 { "1 flow".to_owned() } else { format!("{flows} flows") };
    format!("{}, {family}, {many}, {services} Services, {variant}: {what}", source.title())
}

impl Course {
    /// From the host outside to the node, or straight to a pod, by the node's device.
    fn of(stage: &Stage, family: IpFamily, flows: Range, straight: bool) -> Result<Self, BenchError> {
        Ok(Self {
            source: stage.outside().addresses().socket(family, SOURCE_PORT),
            flows,
            target: stage.target(WAY, family, straight),
            gateway: link_address(stage.lab().node(Stage::SIDE).namespace(), Outside::GATEWAY_INTERFACE)?,
        })
    }

    /// The packets, framed for the node's device.
    fn path(&self) -> Path {
        let Self { source, flows, target, gateway } = *self;
        Path::new("forwarded", Protocol::Udp, (source, flows), (target, Range::ONE), Reason::Forwarded).towards(gateway)
    }
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
        self.sent.push(sent.into());
        self.arrived.push(arrived as f64);
        Ok(())
    }

    fn figures(self, source: Source, variant: &str, family: IpFamily, flows: u32, services: u32) -> Vec<Figure> {
        let Self { rates, times, lost, sent, arrived } = self;
        let name = |what: &str| figure_name(source, variant, family, flows, services, what);
        let counts = match source {
            Source::LiveFrames => Vec::new(),
            Source::Pktgen => vec![
                ("sent", Figure::of_samples(name("sent"), "", sent)),
                ("arrived", Figure::of_samples(name("arrived, translated"), "", arrived).higher_is_better()),
            ],
        };
        let figures = [
            ("rate", Figure::of_samples(name("rate"), "/s", rates).higher_is_better()),
            ("processor time", Figure::of_samples(name("CPU a packet"), "us", times)),
            ("lost", Figure::of_samples(name("lost"), "%", lost)),
        ];
        counts
            .into_iter()
            .chain(figures)
            .map(|(what, figure)| {
                figure
                    .at("part", source.part())
                    .at("way", WAY.name())
                    .at("flows", flows)
                    .at("family", family)
                    .at("services", services)
                    .at("variant", variant)
                    .at("what", what)
            })
            .collect()
    }
}
