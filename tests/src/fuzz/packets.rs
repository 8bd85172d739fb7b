//! What is thrown: connections from their first packet on, packets of flows that were seen before, errors about them, fragments,
//! strangers, and bytes without any sense; some of each made wrong.

mod make;

use std::net::SocketAddr;

use dsproxy_common::{IpFamily, Protocol};
use fastrand::Rng;

use super::{
    journey::{Journey, Sender, Stage},
    scene::{CLIENT_PORTS, NODE_PORT, Scene},
    step::{Change, Place, Step},
};
use crate::{
    model::{Model, SIXTEENTHS, State},
    packet::{Dissection, Link, Message, Packet},
    prog::{Hook, SkBuff, TestRun, Verdict},
};

/// How many flows are kept in mind, and how many connections are under way.
const TALKS: usize = 64;
const JOURNEYS: usize = 4;

/// How often time passes in a scene at most: each time, a sixteenth of a second more than whole ones.
const MOST_PASSED: u64 = SIXTEENTHS - 2;

type Ends = (SocketAddr, SocketAddr);

/// A flow that was seen.
#[derive(Clone, Copy, Debug)]
struct Talk {
    protocol: Protocol,
    ends: Ends,
}

pub(super) struct Packets<'s> {
    scene: &'s Scene,
    random: Rng,
    frontends: Vec<(Protocol, SocketAddr)>,
    talks: Vec<Talk>,
    journeys: Vec<Journey>,
    /// The connection that the last packet was of.
    under_way: Option<usize>,
    /// How often time has passed.
    passed: u64,
}

impl<'s> Packets<'s> {
    pub(super) fn of(scene: &'s Scene, random: Rng) -> Self {
        let frontends = [scene.frontends(), scene.direct_frontends(), scene.direct_frontends()].concat();
        Self { scene, random, frontends, talks: Vec::new(), journeys: Vec::new(), under_way: None, passed: 0 }
    }

    /// What happens next.
    pub(super) fn next(&mut self, model: &Model) -> Step {
        self.under_way = None;
        match self.random.u16(..1000) {
            0..8 => return self.change(),
            8..16 => {
                let entries = model.entries();
                if let Some((leaves, protocol, source, destination)) = self.random.choice(entries) {
                    return Step::Evict { leaves, protocol, source, destination };
                }
            }
            16..36 if self.passed < MOST_PASSED => return self.pass(),
            _ => {}
        }
        let (place, bytes) = match self.random.u8(..100) {
            0..58 => self.advance(),
            58..75 => self.talk(),
            75..85 => self.error(),
            85..90 => self.echo(),
            90..96 => self.stranger(),
            _ => self.nonsense(),
        };
        let buffer = SkBuff { segments: self.segments(place), device: self.device(place), ..SkBuff::default() };
        Step::Packet { place, bytes, buffer }
    }

    /// What came of it.
    pub(super) fn saw(&mut self, step: &Step, seen: Option<&TestRun>) {
        let (Step::Packet { place, buffer, .. }, Some(seen)) = (step, seen) else { return };
        let is_past_stack = seen.verdict == Verdict::Redirect && buffer.device != 0;
        let went = (is_past_stack || matches!(seen.verdict, Verdict::Pass | Verdict::Transmit))
            .then(|| talk_of(place.link(), &seen.packet))
            .flatten();
        if let Some(talk) = went {
            let (source, destination) = talk.ends;
            for ends in [(source, destination), (destination, source)] {
                let talk = Talk { ends, ..talk };
                if self.talks.len() < TALKS {
                    self.talks.push(talk);
                } else {
                    let place = self.random.usize(..TALKS);
                    self.talks[place] = talk;
                }
            }
        }
        let Some(index) = self.under_way.take() else { return };
        let was_sent = seen.verdict == Verdict::Transmit;
        let goes_on = went.is_some_and(|talk| self.journeys[index].went_on(talk.ends, was_sent, &mut self.random));
        if !goes_on {
            self.journeys.swap_remove(index);
        }
    }

    /// Time passes: a second and some, or as long as something takes to be over.
    fn pass(&mut self) -> Step {
        let states = State::ALL.map(State::lifetime);
        let seconds = match self.random.u8(..4) {
            0 => 1,
            1 => 4,
            2 => 61,
            _ => states[self.random.usize(..states.len())],
        };
        self.passed += 1;
        // Never just a second, however often: what really passes is not to matter.
        Step::Pass(u64::from(seconds) * SIXTEENTHS + 1)
    }

    fn change(&mut self) -> Step {
        let number = self.random.usize(..self.scene.ports.len());
        let (family, index) = (self.family(), self.random.usize(..3));
        Step::Change(match self.random.u8(..12) {
            0..3 => Change::Drains(number, family, index),
            3..6 => Change::Goes(number, family, index),
            6..8 => Change::Closes(number, family, index),
            8 => Change::Ends(number),
            _ => Change::Routing,
        })
    }

    fn family(&mut self) -> IpFamily {
        IpFamily::ALL[self.random.usize(..2)]
    }

    /// The next packet of a connection.
    fn advance(&mut self) -> (Place, Vec<u8>) {
        if self.journeys.len() < JOURNEYS && self.random.u8(..3) == 0 || self.journeys.is_empty() {
            let Some((protocol, vip)) = self.random.choice(self.frontends.clone()) else { return self.stranger() };
            let client = self.client(IpFamily::of(vip.ip()));
            let journey = match self.told_by_another_node(protocol, vip) {
                Some((backend, vip)) => Journey::direct(protocol, client, backend, vip),
                None => Journey::new(protocol, client, vip),
            };
            self.journeys.push(journey);
        }
        let index = self.random.usize(..self.journeys.len());
        let journey = self.journeys[index].clone();
        self.under_way = Some(index);
        let (source, destination) = journey.ends;
        // A packet comes by the device that its sender is behind, and leaves by the one that its receiver is.
        let of = match journey.stage {
            Stage::Leaving => destination.ip(),
            Stage::Arriving | Stage::Entering => source.ip(),
        };
        let is_pods = self.scene.is_pod(of) && self.random.u8(..16) != 0;
        let plain = self.random.u8(..8) != 0;
        let link = if plain { Link::Ethernet } else { Link::None };
        let place = match journey.stage {
            Stage::Arriving if self.scene.xdp.is_some() && !is_pods && link == Link::Ethernet => Place::Xdp,
            Stage::Arriving => {
                // Nothing but the stack is there.
                self.journeys[index].stage = Stage::Entering;
                Place::Tc(if is_pods { Hook::Ingress } else { Hook::NodeIngress }, link)
            }
            Stage::Entering => Place::Tc(if is_pods { Hook::Ingress } else { Hook::NodeIngress }, link),
            Stage::Leaving => Place::Tc(if is_pods { Hook::Egress } else { Hook::NodeEgress }, link),
        };
        let packet = self.packet(journey.protocol, (source, destination), journey.flags);
        let packet = match journey.says() {
            Some(vip) => packet.saying(vip),
            None => packet,
        };
        let packet = if plain && journey.sender == Sender::Client { packet } else { self.dress(packet, 6) };
        self.finished(place, packet, 12)
    }

    /// A backend here and the VIP that another node says to it: mostly `vip` and one of its backends.
    fn told_by_another_node(&mut self, protocol: Protocol, vip: SocketAddr) -> Option<(SocketAddr, SocketAddr)> {
        if !self.scene.rules.accepts_direct || self.random.bool() {
            return None;
        }
        let family = IpFamily::of(vip.ip());
        let backends = self.scene.backends(family, protocol, |frontend| frontend == vip);
        let others = self.scene.backends(family, protocol, |_| true);
        let among = if self.random.u8(..8) == 0 { others } else { backends };
        let backend = self.random.choice(among)?;
        let vip = match self.random.u8(..8) {
            0 => SocketAddr::new(self.address(family), vip.port()),
            1 => SocketAddr::new(self.scene.places[&family].outsiders[0], NODE_PORT),
            _ => vip,
        };
        Some((backend, vip))
    }

    /// A packet of a flow that was seen, anywhere.
    fn talk(&mut self) -> (Place, Vec<u8>) {
        let Some(Talk { protocol, ends }) = self.random.choice(self.talks.clone()) else { return self.advance() };
        let flags = self.flags();
        let packet = self.packet(protocol, ends, flags);
        let packet = self.dress(packet, 3);
        let place = self.place();
        self.finished(place, packet, 3)
    }

    /// An ICMP error about a packet of a flow that was seen.
    fn error(&mut self) -> (Place, Vec<u8>) {
        let Some(Talk { protocol, ends }) = self.random.choice(self.talks.clone()) else { return self.advance() };
        let family = IpFamily::of(ends.0.ip());
        let echo = self.random.u8(..8) == 0;
        let about = if echo {
            let identifier = CLIENT_PORTS[self.random.usize(..CLIENT_PORTS.len())];
            let message = if self.random.bool() {
                Message::EchoRequest { identifier, sequence: 1 }
            } else {
                Message::EchoReply { identifier, sequence: 1 }
            };
            Packet::icmp(ends.0.ip(), ends.1.ip(), message)
        } else {
            let flags = self.flags();
            self.packet(protocol, ends, flags)
        };
        let about = self.dress(about, 4);
        let reporter = if self.random.bool() { ends.1.ip() } else { self.address(family) };
        let receiver = if self.random.u8(..8) == 0 { self.address(family) } else { ends.0.ip() };
        let message = [
            Message::HostUnreachable,
            Message::PortUnreachable,
            Message::TooBig { mtu: 1400 },
            Message::TimeExceeded,
            Message::ParameterProblem { pointer: 6 },
            Message::Other { kind: self.random.u8(..16), code: 0, rest: 0 },
        ][self.random.usize(..6)];
        let least = if family == IpFamily::V4 { 20 } else { 40 };
        let quoted = self.random.usize(least..120);
        let mut packet = Packet::icmp(reporter, receiver, message).quoting(&about, quoted);
        if self.random.u8(..8) == 0 {
            packet = self.dress(packet, 2);
        }
        let place = self.place();
        self.finished(place, packet, 4)
    }

    /// Whoever asks for an echo, or gives one.
    fn echo(&mut self) -> (Place, Vec<u8>) {
        let family = self.family();
        let (source, destination) = (self.address(family), self.address(family));
        let identifier = match self.random.u8(..4) {
            0 => 0,
            1 => self.random.u16(..),
            _ => CLIENT_PORTS[self.random.usize(..CLIENT_PORTS.len())],
        };
        let message = match self.random.u8(..5) {
            0..2 => Message::EchoRequest { identifier, sequence: 7 },
            2..4 => Message::EchoReply { identifier, sequence: 7 },
            _ => Message::Other { kind: self.random.u8(..), code: self.random.u8(..3), rest: self.random.u32(..) },
        };
        let packet = Packet::icmp(source, destination, message);
        let packet = self.dress(packet, 4);
        let place = self.place();
        self.finished(place, packet, 6)
    }

    /// A packet between any two, of any protocol.
    fn stranger(&mut self) -> (Place, Vec<u8>) {
        let family = self.family();
        let (source, destination) = (self.address(family), self.address(family));
        let ports = [80, 53, 8080, 30_080, 40_000, 50_000, 60_001];
        let mut port = || ports[self.random.usize(..ports.len())];
        let ends = (SocketAddr::new(source, port()), SocketAddr::new(destination, port()));
        let packet = if self.random.u8(..4) == 0 {
            Packet::other(self.random.u8(..), source, destination)
        } else {
            let protocol = Protocol::ALL[self.random.usize(..3)];
            let flags = self.flags();
            self.packet(protocol, ends, flags)
        };
        let packet = self.dress(packet, 3);
        let place = self.place();
        self.finished(place, packet, 3)
    }

    /// Bytes, some of which begin as IP does.
    fn nonsense(&mut self) -> (Place, Vec<u8>) {
        let place = self.place();
        let mut bytes: Vec<u8> = (0..self.random.u8(14..120)).map(|_| self.random.u8(..)).collect();
        let at = match place.link() {
            Link::Ethernet => {
                let kinds = [[0x08, 0x00], [0x86, 0xdd], [0x81, 0x00], [0x08, 0x06]];
                bytes[12..14].copy_from_slice(&kinds[self.random.usize(..4)]);
                14
            }
            Link::None => 0,
        };
        if let Some(first) = bytes.get_mut(at) {
            *first = [0x45, 0x46, 0x60, 0x6f][self.random.usize(..4)];
        }
        (place, bytes)
    }
}

/// The flow of a packet.
fn talk_of(link: Link, packet: &[u8]) -> Option<Talk> {
    let Dissection { network, transport, .. } = Dissection::of(link, packet);
    let (network, transport) = (network?, transport?);
    let protocol = Protocol::from_number(network.protocol)?;
    let ends = (
        SocketAddr::new(network.source, transport.source),
        SocketAddr::new(network.destination, transport.destination),
    );
    Some(Talk { protocol, ends })
}
