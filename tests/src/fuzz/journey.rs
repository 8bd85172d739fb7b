//! A connection from its first packet on: each packet is what came of the one before, or the answer to it.

use std::net::SocketAddr;

use dsproxy_common::Protocol;
use fastrand::Rng;

use crate::packet::flags::{ACK, FIN, PSH, RST, SYN};

/// Who sends a packet, with which flags.
const TCP: [(Sender, u8); 8] = [
    (Sender::Client, SYN),
    (Sender::Backend, SYN | ACK),
    (Sender::Client, ACK),
    (Sender::Client, PSH | ACK),
    (Sender::Backend, ACK),
    (Sender::Client, ACK),
    (Sender::Backend, PSH | ACK),
    (Sender::Client, ACK),
];

/// How it goes on, any of these.
const LATER: [(Sender, u8); 8] = [
    (Sender::Client, ACK),
    (Sender::Client, ACK),
    (Sender::Backend, ACK),
    (Sender::Backend, ACK),
    (Sender::Client, FIN | ACK),
    (Sender::Backend, FIN | ACK),
    (Sender::Backend, RST),
    (Sender::Client, SYN),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    Client,
    Backend,
}

/// Where a packet of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// In front of XDP, if it may meet that.
    Arriving,
    /// In front of the stack.
    Entering,
    /// Behind it.
    Leaving,
}

/// A connection under way.
#[derive(Clone, Debug)]
pub(super) struct Journey {
    pub(super) protocol: Protocol,
    pub(super) stage: Stage,
    pub(super) sender: Sender,
    pub(super) flags: u8,
    /// Another node sends the client's packets, and those that open say this VIP.
    says: Option<SocketAddr>,
    /// The ends that the packet has now.
    pub(super) ends: (SocketAddr, SocketAddr),
    /// What the client sends to the VIP, and what came of it behind everything.
    client: (SocketAddr, SocketAddr),
    backend: Option<(SocketAddr, SocketAddr)>,
    turn: usize,
}

impl Journey {
    pub(super) fn new(protocol: Protocol, client: SocketAddr, vip: SocketAddr) -> Self {
        Self {
            protocol,
            stage: Stage::Arriving,
            sender: Sender::Client,
            flags: SYN,
            says: None,
            ends: (client, vip),
            client: (client, vip),
            backend: None,
            turn: 0,
        }
    }

    /// To a backend, which is to answer by `vip`.
    pub(super) fn direct(protocol: Protocol, client: SocketAddr, backend: SocketAddr, vip: SocketAddr) -> Self {
        Self { says: Some(vip), ..Self::new(protocol, client, backend) }
    }

    /// The VIP that the packet says.
    pub(super) fn says(&self) -> Option<SocketAddr> {
        let opens = self.protocol != Protocol::Tcp || self.flags == SYN;
        let is_from_node = self.sender == Sender::Client && self.stage != Stage::Leaving;
        self.says.filter(|_| opens && is_from_node)
    }

    /// The packet has gone on with these ends. False when the connection is over.
    pub(super) fn went_on(&mut self, ends: (SocketAddr, SocketAddr), was_sent: bool, random: &mut Rng) -> bool {
        self.ends = ends;
        match self.stage {
            Stage::Arriving if !was_sent => self.stage = Stage::Entering,
            Stage::Entering => self.stage = Stage::Leaving,
            Stage::Arriving | Stage::Leaving => {
                if self.sender == Sender::Client {
                    self.backend = Some(ends);
                }
                return self.next_turn(random);
            }
        }
        true
    }

    fn next_turn(&mut self, random: &mut Rng) -> bool {
        self.turn += 1;
        (self.sender, self.flags) = *TCP.get(self.turn).unwrap_or(&LATER[random.usize(..LATER.len())]);
        self.stage = Stage::Arriving;
        self.ends = match (self.sender, self.backend) {
            (Sender::Client, _) => self.client,
            (Sender::Backend, Some((source, destination))) => (destination, source),
            (Sender::Backend, None) => return false,
        };
        self.turn < 40
    }
}
