//! The programs and the model side by side, in one scene.

mod change;

use std::collections::BTreeMap;

use dsproxy::{
    maps::{Capacities, Write},
    resolve::ResolvedPort,
};
use dsproxy_common::{
    IpFamily, Protocol, cached_flow,
    count::Reason,
    event::EventFilter,
    flow::FlowState,
    layout::capacity,
    next_hop::{Routing, XdpDevice, XdpDeviceFlags},
    settings::{SettingFlags, Settings},
};
use ipnet::IpNet;

use super::{
    ground,
    scene::{AddressOf, Scene},
    step::{Change, Place, Step},
};
use crate::{
    model::{Arrival, Device, Fate, Model, Node, Objection, SIXTEENTHS, Seen, Served, SnatPorts, State},
    packet::{difference, show},
    prog::{Counted, Datapath, Entry, Hook, LOOPBACK, ProgError, SkBuff, TestRun, Verdict, repeat_frame, run_once},
};

/// Far more than a scene needs, for tables of the kernel evict before they are full.
const CAPACITIES: Capacities = Capacities {
    services: 16,
    frontends: 64,
    backends: 4096,
    slots: 262_144,
    connections: 16_384,
    brief_connections: 16_384,
    affinities: 16_384,
    source_ranges: 256,
};

/// How many ticks a second is said to have: more than pass in a scene, so that time passes only when entries are made older.
const SECOND: u32 = 1 << 13;

/// Counters are read once in so many packets: that takes longer than a packet.
const BATCH: u32 = 16;

/// As by default.
const FLOW_MASK: u32 = cached_flow::places_in_half(capacity::CACHED_FLOWS) - 1;

pub(super) struct Site {
    datapath: Datapath,
    /// How many ticks a second of the kernel's clock has.
    hertz: u32,
    told: Settings,
    stage: Option<Stage>,
    epoch: u32,
    /// Counters are compared after so many packets.
    batch: u32,
}

/// What stands now.
struct Stage {
    scene: Scene,
    model: Model,
    ports: Vec<ResolvedPort>,
    before: Counted,
    expected: Counted,
    pending: u32,
    reasons: BTreeMap<Reason, u64>,
    left_by_xdp: u64,
    past_stack: u64,
}

/// What came of a step.
pub(super) enum Outcome {
    /// What should; with it what was seen of a packet.
    Right(Option<TestRun>),
    /// The kernel does not run a program on such a packet.
    NotTaken,
    /// It cannot be told.
    Unknowable,
    /// Something else, and what.
    Wrong(String),
}

impl Site {
    pub(super) fn load() -> Result<Self, ProgError> {
        let mut datapath = Datapath::load(&CAPACITIES)?;
        datapath.listen()?;
        datapath.shorten()?.hold(&ground::held())?;
        let told = datapath.maps().settings()?;
        let hertz = told.jiffies_per_second;
        Ok(Self { datapath, hertz, told, stage: None, epoch: 0, batch: BATCH })
    }

    /// Compares counters after each packet from now on.
    pub(super) fn compare_each(&mut self) {
        self.batch = 1;
    }

    pub(super) fn model(&self) -> &Model {
        &self.stage.as_ref().expect("a scene").model
    }

    pub(super) fn reasons(&self) -> BTreeMap<Reason, u64> {
        self.stage.as_ref().map(|stage| stage.reasons.clone()).unwrap_or_default()
    }

    pub(super) fn left_by_xdp(&self) -> u64 {
        self.stage.as_ref().map_or(0, |stage| stage.left_by_xdp)
    }

    pub(super) fn past_stack(&self) -> u64 {
        self.stage.as_ref().map_or(0, |stage| stage.past_stack)
    }

    /// Takes down what stands, and puts `scene` up.
    pub(super) fn prepare(&mut self, scene: &Scene) -> Result<(), ProgError> {
        self.take_down()?;
        let mut writes = Vec::new();
        for (network, flags) in &scene.networks {
            writes.push(Write::Network { network: *network, flags: *flags });
        }
        for (family, places) in &scene.places {
            let everything: IpNet = match family {
                IpFamily::V4 => "0.0.0.0/0".parse().expect("a network"),
                IpFamily::V6 => "::/0".parse().expect("a network"),
            };
            writes.push(Write::ServiceNetwork { family: *family, network: Some(everything) });
            if let Some(of) = scene.has_address {
                let device = if of == AddressOf::Device { LOOPBACK } else { 0 };
                writes.push(Write::Masquerade { device, address: places.node });
            }
        }
        self.datapath.write(&writes)?;
        // Where ClusterIPs are is told with the rules.
        self.told = self.datapath.maps().settings()?;
        let mut served = Vec::new();
        for port in &scene.ports {
            let id = self.datapath.serve(port)?;
            served.push(Served { id, port: port.clone(), local: Scene::local(port) });
        }
        self.tell(scene)?;
        self.listen(scene.is_observed)?;
        self.vouch(scene.xdp.is_some())?;
        if let Some(mtu) = scene.xdp {
            let flags = XdpDeviceFlags::TRANSMITS | XdpDeviceFlags::TAKES_REDIRECTED;
            let device = XdpDevice {
                address: [0x0200u16.to_be(), 0, 0x0002u16.to_be()],
                flags,
                mtu: mtu.into(),
                ..XdpDevice::default()
            };
            self.datapath.next_hops().set_device(LOOPBACK, device)?;
        }
        let addresses: BTreeMap<_, _> = scene.places.iter().map(|(family, places)| (*family, places.node)).collect();
        let node = Node {
            served,
            networks: scene.networks.clone(),
            own: if scene.has_address == Some(AddressOf::Node) { addresses.clone() } else { BTreeMap::new() },
            addresses: if scene.has_address.is_some() { addresses } else { BTreeMap::new() },
            rules: scene.rules.clone(),
            shortcut: scene.has_shortcut.then(ground::shortcut),
            xdp: scene.xdp.map(|mtu| (self.epoch, mtu)),
        };
        self.stage = Some(Stage {
            scene: scene.clone(),
            model: Model::new(node),
            ports: scene.ports.clone(),
            before: self.datapath.counted()?,
            expected: Counted::nothing(),
            pending: 0,
            reasons: BTreeMap::new(),
            left_by_xdp: 0,
            past_stack: 0,
        });
        Ok(())
    }

    fn take_down(&mut self) -> Result<(), ProgError> {
        self.datapath.connections().clear()?;
        self.datapath.connections().forget_affinities()?;
        let Some(stage) = self.stage.take() else { return Ok(()) };
        for port in stage.ports {
            self.datapath.withdraw(&port)?;
        }
        // Or more and more would be taken for what it is not.
        self.datapath.retire_filters()?;
        let mut writes: Vec<Write> =
            stage.scene.networks.iter().map(|(network, _)| Write::RemoveNetwork { network: *network }).collect();
        if let Some(of) = stage.scene.has_address {
            let device = if of == AddressOf::Device { LOOPBACK } else { 0 };
            writes.extend(IpFamily::ALL.map(|family| Write::RemoveMasquerade { family, device }));
        }
        self.datapath.write(&writes)
    }

    /// Tells the programs the rules.
    fn tell(&mut self, scene: &Scene) -> Result<(), ProgError> {
        let rules = &scene.rules;
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let range = |ports: &SnatPorts| [*ports.start(), *ports.end()];
        let mut lifetimes = [0; FlowState::COUNT];
        for state in State::ALL {
            lifetimes[usize::from(number(state).number())] = state.lifetime() * SECOND;
        }
        let wanted = Settings {
            jiffies_per_second: SECOND,
            lifetimes,
            flags: flag(rules.masquerade_all, SettingFlags::MASQUERADE_ALL)
                | flag(rules.masquerade_egress, SettingFlags::MASQUERADE_EGRESS)
                | flag(rules.reset_gone, SettingFlags::RESET_GONE)
                | flag(rules.inside_by_network, SettingFlags::INSIDE_BY_NETWORK)
                | flag(rules.direct.contains(&Protocol::Tcp), SettingFlags::DIRECT_TCP)
                | flag(rules.direct.contains(&Protocol::Udp), SettingFlags::DIRECT_UDP)
                | flag(rules.accepts_direct, SettingFlags::ACCEPT_DIRECT)
                | flag(scene.has_shortcut, SettingFlags::POD_SHORTCUT)
                | flag(rules.beside_others, SettingFlags::BESIDE_OTHERS),
            snat_ports: range(&rules.snat_ports),
            offered_ports: range(&rules.offered_ports),
            refusals_per_second: if rules.answers { u32::MAX } else { 0 },
            ..self.told
        }
        .with_port_waits(true);
        if wanted != self.told {
            self.datapath.set_settings(&wanted)?;
            self.told = wanted;
        }
        Ok(())
    }

    /// Has the programs tell of all packets, or of none.
    fn listen(&mut self, is_observed: bool) -> Result<(), ProgError> {
        let until = dsproxy::jiffies::now(self.hertz).expect("a clock").wrapping_add(100_000).max(1);
        let everything = EventFilter { reasons: u64::MAX, until, ..EventFilter::default() };
        let events = self.datapath.events();
        events.ask_for(&if is_observed { everything } else { EventFilter::default() })?;
        while events.pop().is_ok_and(|event| event.is_some()) {}
        Ok(())
    }

    /// What was told of a packet that ended so; none if that is right.
    fn check_events(&mut self, reason: Option<Reason>) -> Option<String> {
        let wanted = reason.filter(|_| self.stage().scene.is_observed);
        let told = std::iter::from_fn(|| self.datapath.events().pop().expect("events of ours")).collect::<Vec<_>>();
        let reasons: Vec<_> = told.iter().filter_map(|event| Reason::from_number(event.reason)).collect();
        (reasons != Vec::from_iter(wanted)).then(|| format!("expected {wanted:?} to be told, found {told:?}"))
    }

    /// Has the kernel's routing change.
    fn vouch(&mut self, is_used: bool) -> Result<(), ProgError> {
        self.epoch += 1;
        let now = dsproxy::jiffies::now(self.hertz).expect("a clock");
        let routing = Routing {
            epoch: if is_used { self.epoch } else { 0 },
            lease: now.wrapping_add(100_000),
            // Every other time two places for all flows, so that they take them from each other.
            flow_mask: if self.epoch.is_multiple_of(2) { 0 } else { FLOW_MASK },
        };
        Ok(self.datapath.next_hops().set_routing(routing)?)
    }

    /// Has `step` happen to both.
    pub(super) fn take(&mut self, step: &Step) -> Result<Outcome, ProgError> {
        match step {
            Step::Packet { place, bytes, buffer } => self.throw(*place, bytes, buffer),
            Step::Pass(sixteenths) => {
                let ticks = *sixteenths as u32 * (SECOND / SIXTEENTHS as u32);
                self.datapath.connections().grow_older(ticks)?;
                self.stage().model.pass(*sixteenths);
                // What XDP remembers is not to be got at; as after some seconds, the stack has its turn.
                self.change(Change::Routing)?;
                Ok(Outcome::Right(None))
            }
            Step::Evict { leaves, protocol, source, destination } => {
                let Some(named) = Protocol::from_number(*protocol) else { return Ok(Outcome::Right(None)) };
                let entry = if *leaves { Entry::Reply } else { Entry::Forward };
                self.datapath.connections().remove(entry, named, *source, *destination)?;
                self.stage().model.forget(*leaves, *protocol, *source, *destination);
                Ok(Outcome::Right(None))
            }
            Step::Change(change) => {
                self.change(*change)?;
                Ok(Outcome::Right(None))
            }
        }
    }

    fn stage(&mut self) -> &mut Stage {
        self.stage.as_mut().expect("a scene")
    }

    fn throw(&mut self, place: Place, bytes: &[u8], buffer: &SkBuff) -> Result<Outcome, ProgError> {
        let ran = match place {
            Place::Tc(hook, link) => run_once(self.datapath.program(hook, link)?, bytes, buffer),
            Place::Xdp => repeat_frame(self.datapath.xdp_program()?, bytes, 1),
        };
        let run = match ran {
            Err(ProgError::Run(error)) if error.raw_os_error() == Some(libc::EINVAL) && is_too_short(bytes) => {
                return Ok(Outcome::NotTaken);
            }
            ran => ran?,
        };
        let (hook, device) = match place {
            Place::Tc(hook @ (Hook::Ingress | Hook::Egress), _) => (Some(hook), Device::Pod),
            Place::Tc(hook, _) => (Some(hook), Device::Node),
            Place::Xdp => (None, Device::Node),
        };
        let SkBuff { segments, device: index, .. } = *buffer;
        let at = Arrival { bytes, link: place.link(), device, index, is_aggregate: segments.is_some() };
        let seen = Seen { verdict: run.verdict, packet: &run.packet };
        let stage = self.stage();
        let judged = match hook {
            Some(Hook::Ingress | Hook::NodeIngress) => stage.model.ingress(&at, &seen),
            Some(Hook::Egress | Hook::NodeEgress) => stage.model.egress(&at, &seen),
            None => stage.model.xdp(&at, &seen),
        };
        let fate = match judged {
            Ok(fate) => fate,
            Err(Objection::Unknowable) => return Ok(Outcome::Unknowable),
            Err(Objection::Wrong(why)) => {
                let shown = show(at.link, &run.packet);
                return Ok(Outcome::Wrong(format!("{why}\nfound {:?}\n{shown}", run.verdict)));
            }
        };
        if !fate.is(&seen) {
            let what = difference(at.link, &fate.packet, &run.packet).unwrap_or_default();
            let Fate { verdict, reason, .. } = fate;
            let counted = self.datapath.counted()?.since(&self.stage().before);
            let found = run.verdict;
            let why =
                format!("expected {verdict:?} ({reason:?}), found {found:?}; counted of late: {counted:?}\n{what}");
            return Ok(Outcome::Wrong(why));
        }
        stage.expect(&fate);
        if let Some(why) = self.check_events(fate.reason.map(|(reason, _)| reason)) {
            return Ok(Outcome::Wrong(why));
        }
        let stage = self.stage();
        if stage.pending >= self.batch
            && let Some(why) = self.check_counters()?
        {
            return Ok(Outcome::Wrong(why));
        }
        Ok(Outcome::Right(Some(run)))
    }

    /// Holds what was counted since the last time against what should have been.
    pub(super) fn check_counters(&mut self) -> Result<Option<String>, ProgError> {
        let now = self.datapath.counted()?;
        let stage = self.stage();
        let counted = now.since(&stage.before);
        let expected = std::mem::replace(&mut stage.expected, Counted::nothing());
        (stage.before, stage.pending) = (now, 0);
        Ok((counted != expected).then(|| format!("expected to be counted\n  {expected:?}\nfound\n  {counted:?}")))
    }
}

impl Stage {
    fn expect(&mut self, fate: &Fate) {
        self.pending += 1;
        let is_answer = fate.reason.is_some_and(|(reason, _)| reason.is_answer());
        self.past_stack += u64::from(fate.verdict == Verdict::Redirect && !is_answer);
        let expected = std::mem::replace(&mut self.expected, Counted::nothing());
        let expected = match fate.reason {
            Some((reason, family)) => {
                *self.reasons.entry(reason).or_default() += 1;
                expected.packets(reason, family, 1)
            }
            None => {
                self.left_by_xdp += 1;
                expected
            }
        };
        let expected = match fate.service {
            Some((service, counters)) => expected.more_of_service(service, &counters),
            None => expected,
        };
        self.expected = match (fate.drop_of, fate.reason) {
            (Some(service), Some((reason, _))) => expected.drops(service, reason, 1),
            _ => expected,
        };
    }
}

/// Whether the kernel's test refuses a frame: one shorter than a link-layer header, or that bears the `EtherType` of IP in the usual
/// place and less than an IP header behind.
fn is_too_short(bytes: &[u8]) -> bool {
    match bytes.get(12..14) {
        Some([0x08, 0x00]) => bytes.len() < 14 + 20,
        Some([0x86, 0xdd]) => bytes.len() < 14 + 40,
        Some(_) => bytes.len() < 14,
        None => true,
    }
}

/// What the model calls a state, as it is numbered in the maps.
fn number(state: State) -> FlowState {
    match state {
        State::Opening => FlowState::Opening,
        State::Answered => FlowState::Answered,
        State::Established => FlowState::Established,
        State::ClientClosed => FlowState::ClientClosed,
        State::BackendClosed => FlowState::BackendClosed,
        State::Closing => FlowState::Closing,
        State::Reset => FlowState::Reset,
        State::Stateless => FlowState::Stateless,
    }
}
