//! Past the stack from pod to pod of the node: what has been translated for a backend, and what that answers, goes on to the neighbour that
//! routing names, and is a hop older.

use std::net::IpAddr;

use dsproxy_common::{IpFamily, count::Reason};
use ipnet::IpNet;

use super::{
    Arrival, Device, Fate, Model,
    answer::is_host,
    edit::Draft,
    parse::{Content, Parsed, Piece},
    tables::{Kind, accepts},
};
use crate::{packet::Link, prog::Verdict};

/// What is known of devices and routing.
#[derive(Clone, Debug)]
pub struct Shortcut {
    /// The devices, by index, behind which there are pods and nothing else.
    pub devices: Vec<u32>,
    /// Their link-layer address.
    pub address: [u8; 6],
    /// How packets are routed; of several the longest counts.
    pub routes: Vec<Route>,
}

/// Where packets go.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// To these addresses.
    pub network: IpNet,
    /// By this device.
    pub device: u32,
    /// The longest of them.
    pub mtu: usize,
}

impl Model {
    /// What becomes of a packet that has entered as `fate` says, where the stack may be passed by.
    pub(super) fn past_the_stack(&self, at: &Arrival<'_>, fate: Fate) -> Fate {
        let after = Arrival { bytes: &fate.packet, ..*at };
        let parsed = self.parse(&after).ok().filter(|parsed| self.may_pass_by(&after, parsed, &fate));
        let Some(Parsed { network, .. }) = parsed else { return fate };
        let hop = network.l3 + if network.family == IpFamily::V4 { 8 } else { 7 };
        if fate.packet[hop] <= 1 {
            return fate;
        }
        let mut draft = Draft { bytes: fate.packet.clone(), either_zero: fate.either_zero.clone() };
        draft.bytes[hop] -= 1;
        draft.mend_header(&fate.packet, network.l3, network.l4, network.family);
        Fate { verdict: Verdict::Redirect, packet: draft.bytes, either_zero: draft.either_zero, ..fate }
    }

    fn may_pass_by(&self, at: &Arrival<'_>, parsed: &Parsed, fate: &Fate) -> bool {
        let Some(shortcut) = &self.node.shortcut else { return false };
        let is_request = match fate.reason {
            Some((Reason::Opened | Reason::Forwarded, _)) => true,
            Some((Reason::NotService, _)) => false,
            _ => return false,
        };
        if at.device != Device::Pod || at.link != Link::Ethernet || parsed.network.l3 != 14 {
            return false;
        }
        // A request is for the node, and an answer goes the way of the request.
        let is_for_one = at.bytes[0] & 1 == 0 && (!is_request || at.bytes[..6] == shortcut.address);
        let (source, destination) = (parsed.network.source, parsed.network.destination);
        let is_masqueraded = self.node.rules.masquerade_all || source == destination;
        let is_plain = matches!(parsed.content, Content::Tcp(_) | Content::Udp | Content::Sctp)
            && parsed.network.piece == Piece::Whole
            && !parsed.has_options();
        let is_wanted = is_for_one && !is_masqueraded && is_plain && is_host(source);
        is_wanted && (is_request || self.answers_by_vip(parsed)) && shortcut.leads(at, destination)
    }

    /// Whether a VIP becomes the source of the packet where it leaves.
    fn answers_by_vip(&self, parsed: &Parsed) -> bool {
        self.tables.egress.get(&parsed.flow()).is_some_and(|held| {
            let is_anothers = accepts(parsed.flags()) && held.state.may_be_over();
            held.kind == Kind::Reply && !is_anothers && !self.is_over(held.state, held.seen)
        })
    }
}

impl Shortcut {
    /// Whether a packet to `destination` goes from one of the devices to another, which takes it.
    fn leads(&self, at: &Arrival<'_>, destination: IpAddr) -> bool {
        let routes = self.routes.iter().filter(|route| route.network.contains(&destination));
        routes.max_by_key(|route| route.network.prefix_len()).is_some_and(|route| {
            let is_pods = [at.index, route.device].iter().all(|device| self.devices.contains(device));
            // Of an aggregate it is the segments that have to fit, and those of a test do.
            let fits = at.is_aggregate || at.bytes.len() - 14 <= route.mtu;
            is_pods && at.index != route.device && fits
        })
    }
}
