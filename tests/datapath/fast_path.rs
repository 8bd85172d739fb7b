//! What XDP sends on by itself, past the stack: byte by byte, in turn with the tc programs over the same connections, and what it
//! leaves to them as it came.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU32, Ordering},
};

use dsproxy_common::{
    IpFamily, Protocol, cached_flow,
    count::{Reason, ServiceCounters},
    flow::FlowState,
    layout::capacity,
    next_hop::{Mac, NextHop, Routing, XdpDevice, XdpDeviceFlags},
    service::FrontendKind,
    settings::SettingFlags,
};
use dsproxy_tests::{
    packet::{Dissection, Extension, Link, Message, Packet, Tag, difference, flags, verify},
    prog::{Counted, Entry, Hook, LOOPBACK, Verdict, of_family},
};

use crate::world::{Expected, Flow, Served, World, endpoint, node, on_ethernet, outsider, packet, stay_on};

/// A client's port within the range of masqueraded packets, where it is kept.
const KEPT: u16 = 50_000;

/// As many flows are remembered as by default.
const FLOW_MASK: u32 = cached_flow::places_in_half(capacity::CACHED_FLOWS) - 1;

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// What every frame that comes to the node has as its destination, and that leaves it as its source.
const OWN_ADDRESS: Mac = [0x0200u16.to_be(), 0, 0x0002u16.to_be()];

/// Another device, of which XDP is told as well.
const FAR: u32 = 7;

/// XDP's view of the node. Everything comes and goes by one device, unless a test says otherwise.
pub(crate) struct Site {
    /// How often the kernel's routing had changed before, in other tests: what they left remembered is good no more.
    first_epoch: u32,
}

impl Site {
    /// Tells XDP in `world` of it.
    fn of(world: &mut World) -> Self {
        static TESTS: AtomicU32 = AtomicU32::new(1);
        let site = Self { first_epoch: TESTS.fetch_add(1, Ordering::Relaxed) * 100 };
        site.allow(world, XdpDeviceFlags::TRANSMITS | XdpDeviceFlags::TAKES_REDIRECTED);
        site.vouch(world, 1);
        site
    }

    /// Lets XDP use both devices, in these ways.
    fn allow(&self, world: &mut World, flags: u16) {
        for index in [LOOPBACK, FAR] {
            let device = XdpDevice { address: OWN_ADDRESS, flags, mtu: 1500, ..XdpDevice::default() };
            world.datapath.next_hops().set_device(index, device).expect("written");
        }
    }

    /// Tells XDP that the kernel's routing has changed so often in this test.
    fn vouch(&self, world: &mut World, changes: u32) {
        let epoch = self.first_epoch + changes;
        let lease = world.now().wrapping_add(100_000);
        world.datapath.next_hops().set_routing(Routing { epoch, lease, flow_mask: FLOW_MASK }).expect("written");
    }

    /// Runs a frame, and compares everything.
    #[track_caller]
    fn run(&self, world: &World, what: &str, input: &[u8], verdict: Verdict, output: &[u8], counted: &Counted) {
        let found = world.datapath.run_frame(input).unwrap_or_else(|error| panic!("{world}: {what}: {error}"));
        if let Some(difference) = difference(Link::Ethernet, output, &found.packet) {
            panic!("{world}: {what}: {:?}: another packet came out\n{difference}{:?}", found.verdict, found.counted);
        }
        assert_eq!((found.verdict, &found.counted), (verdict, counted), "{world}: {what}");
    }

    /// `input` is sent on as `output`, which is what it is but for the addresses, the hop and the frame.
    #[track_caller]
    fn sends_on(&self, world: &World, input: &Packet, output: &Packet, verdict: Verdict, counted: &Counted) {
        let output = output.clone().hop_limit(63).turned_round().to_bytes();
        verify(Link::Ethernet, &output).expect("an expected packet with right checksums");
        self.run(world, "it is sent on", &input.clone().to_bytes(), verdict, &output, counted);
    }

    /// `input` goes on to the stack as it came.
    #[track_caller]
    fn leaves_alone(&self, world: &World, what: &str, input: &Packet) {
        let bytes = input.clone().to_bytes();
        self.run(world, what, &bytes, Verdict::Pass, &bytes, &Counted::nothing());
    }
}

/// A connection from outside to a Service with a backend on another node, and what is known of it.
pub(crate) struct Crossing {
    site: Site,
    pub(crate) flow: Flow,
    pub(crate) backend: SocketAddr,
    /// The node's end of it.
    pub(crate) node: SocketAddr,
}

impl Crossing {
    /// Opens it through the stack, and has it confirmed; TCP at least is then where XDP takes it up.
    pub(crate) fn open(world: &mut World, protocol: Protocol, port: u16) -> Self {
        let crossing = Self::open_halfway(world, protocol, port);
        crossing.enters(world, flags::ACK, false);
        crossing.answers(world, flags::ACK);
        crossing
    }

    /// Opens it through the stack.
    fn open_halfway(world: &mut World, protocol: Protocol, port: u16) -> Self {
        // Another CPU would remember nothing of what this one has sent on.
        stay_on(0);
        let site = Site::of(world);
        let served = Served::new(1, protocol).kind(FrontendKind::NodePort).active([1]);
        let flow = Flow { client: outsider(world.family, port), ..world.flow(&served, port) };
        let node = SocketAddr::new(node(world.family), port);
        let crossing = Self { site, flow, backend: endpoint(world.family, 1), node };
        crossing.enters(world, flags::SYN, true);
        crossing.answers(world, flags::SYN | flags::ACK);
        crossing
    }

    /// The client's packets leave by `device`, as far as the entry knows.
    fn leads_to(&self, world: &mut World, device: u32) {
        let (protocol, client) = (self.flow.protocol, self.flow.client);
        let change = |next_hop: &mut NextHop| next_hop.device = device;
        world.datapath.connections().change_next_hop(protocol, client, self.backend, change).expect("an entry");
    }

    pub(crate) fn request(&self, wanted: u8) -> Packet {
        packet(self.flow.protocol, self.flow.client, self.flow.vip, wanted)
    }

    pub(crate) fn answer(&self, wanted: u8) -> Packet {
        packet(self.flow.protocol, self.backend, self.node, wanted)
    }

    /// The client's packet goes through the stack.
    #[track_caller]
    fn enters(&self, world: &World, wanted: u8, is_first: bool) {
        let input = self.request(wanted);
        let inside = input.clone().to(self.backend);
        let entered = if is_first { Expected::Opened } else { Expected::Forwarded };
        let entered = entered(self.flow.service, inside.clone());
        world.send("the client sends", Hook::NodeIngress, &input, &entered);
        let leaving = inside.turned_round();
        let outside = leaving.clone().from(self.node);
        world.send("it leaves", Hook::NodeEgress, &leaving, &Expected::Rewritten(Reason::Masqueraded, outside));
    }

    /// The backend's goes through the stack.
    #[track_caller]
    fn answers(&self, world: &World, wanted: u8) {
        let input = self.answer(wanted);
        let inside = input.clone().to(self.flow.client);
        let entered = Expected::Rewritten(Reason::Unmasqueraded, inside.clone());
        world.send("the backend answers", Hook::NodeIngress, &input, &entered);
        let leaving = inside.turned_round();
        let left = Expected::Replied(self.flow.service, leaving.clone().from(self.flow.vip));
        world.send("the answer leaves", Hook::NodeEgress, &leaving, &left);
    }

    /// The client's packet is sent on.
    #[track_caller]
    pub(crate) fn crosses(&self, world: &World, input: &Packet, verdict: Verdict) {
        let bytes = input.to_bytes().len() as u64;
        let counters = ServiceCounters { packets: 1, bytes, ..ServiceCounters::default() };
        let counted = Counted::nothing()
            .packets(Reason::SentToBackend, Some(world.family), 1)
            .service(self.flow.service, &counters);
        let output = input.clone().from(self.node).to(self.backend);
        self.site.sends_on(world, input, &output, verdict, &counted);
    }

    /// The backend's is.
    #[track_caller]
    pub(crate) fn crosses_back(&self, world: &World, input: &Packet, verdict: Verdict) {
        let bytes = input.to_bytes().len() as u64;
        let counters = ServiceCounters { reply_packets: 1, reply_bytes: bytes, ..ServiceCounters::default() };
        let counted = Counted::nothing()
            .packets(Reason::SentToClient, Some(world.family), 1)
            .service(self.flow.service, &counters);
        let output = input.clone().from(self.flow.vip).to(self.flow.client);
        self.site.sends_on(world, input, &output, verdict, &counted);
    }
}

#[test]
fn a_connection_goes_on_past_the_stack_and_through_it_in_turn() {
    for protocol in BOTH {
        on_ethernet(|world| {
            let crossing = Crossing::open(world, protocol, KEPT);
            for _ in 0..3 {
                crossing.crosses(world, &crossing.request(flags::ACK), Verdict::Transmit);
                crossing.crosses_back(world, &crossing.answer(flags::ACK | flags::PSH), Verdict::Transmit);
                crossing.enters(world, flags::ACK, false);
                crossing.answers(world, flags::ACK);
            }
            let empty = |packet: Packet| packet.payload(&[]);
            crossing.crosses(world, &empty(crossing.request(flags::ACK)), Verdict::Transmit);
            crossing.crosses_back(world, &crossing.answer(flags::ACK).payload(&[0xa5; 1400]), Verdict::Transmit);
        });
    }
}

/// Answers do not come by this node, and the client's address stays. Datagrams have each to say the VIP, for which tc makes room.
#[test]
fn what_backends_answer_directly_is_sent_on_with_the_clients_address() {
    for protocol in BOTH {
        on_ethernet(|world| {
            world.configure(|settings| settings.flags |= SettingFlags::DIRECT_TCP | SettingFlags::DIRECT_UDP);
            let site = Site::of(world);
            let served = Served::new(1, protocol).kind(FrontendKind::NodePort).active([1]);
            let flow = Flow { client: outsider(world.family, KEPT), ..world.flow(&served, KEPT) };
            let crossing = Crossing { site, flow, backend: endpoint(world.family, 1), node: flow.client };
            let through_stack = |world: &World, wanted, is_first| {
                let input = crossing.request(wanted);
                let inside = input.clone().to(crossing.backend);
                let entered = if is_first { Expected::Opened } else { Expected::Forwarded };
                world.send("it enters", Hook::NodeIngress, &input, &entered(flow.service, inside.clone()));
                let leaving = inside.turned_round();
                let expected = if wanted == flags::SYN || protocol == Protocol::Udp {
                    Expected::Lengthened(Reason::SentDirect, leaving.clone().saying(flow.vip))
                } else {
                    Expected::Rewritten(Reason::SentDirect, leaving.clone())
                };
                world.send("it leaves", Hook::NodeEgress, &leaving, &expected);
            };
            through_stack(world, flags::SYN, true);
            crossing.site.leaves_alone(world, "what is not confirmed", &crossing.request(flags::ACK));
            for _ in 0..2 {
                through_stack(world, flags::ACK, false);
                if protocol == Protocol::Udp {
                    crossing.site.leaves_alone(world, "a datagram", &crossing.request(0));
                } else {
                    crossing.crosses(world, &crossing.request(flags::ACK | flags::PSH), Verdict::Transmit);
                    crossing.crosses(world, &crossing.request(flags::ACK), Verdict::Transmit);
                }
            }
            crossing.site.leaves_alone(world, "its end", &crossing.request(flags::FIN | flags::ACK));
        });
    }
}

#[test]
fn by_another_device_where_the_stack_uses_that() {
    for protocol in BOTH {
        on_ethernet(|world| {
            let crossing = Crossing::open(world, protocol, KEPT);
            crossing.leads_to(world, FAR);
            crossing.crosses(world, &crossing.request(flags::ACK), Verdict::Redirect);
            crossing.crosses_back(world, &crossing.answer(flags::ACK), Verdict::Transmit);
        });
    }
}

/// Ports of the range may be other connections', and one of the client's another VIP's.
#[test]
fn ports_are_replaced_as_the_stack_does() {
    on_ethernet(|world| {
        for protocol in BOTH {
            let site = Site::of(world);
            let served = Served::new(1, protocol).kind(FrontendKind::NodePort).active([1]);
            let client = outsider(world.family, 2_000);
            let flow = Flow { client, ..world.flow(&served, 2_000) };
            let request = |wanted| packet(protocol, flow.client, flow.vip, wanted);
            let backend = endpoint(world.family, 1);
            let through_stack = |hook, packet: &Packet| {
                let bytes = packet.clone().to_bytes();
                let outcome = world.datapath.run(hook, Link::Ethernet, &bytes).expect("a program that runs");
                Dissection::of(Link::Ethernet, &outcome.packet).transport.expect("a transport header")
            };
            let mut node_port = 0;
            for wanted in [flags::SYN, flags::ACK, flags::ACK] {
                through_stack(Hook::NodeIngress, &request(wanted));
                let leaving = request(wanted).to(backend).turned_round();
                node_port = through_stack(Hook::NodeEgress, &leaving).source;
                let answer = packet(protocol, backend, flow.client, wanted | flags::ACK);
                let entering = answer.clone().to(SocketAddr::new(node(world.family), node_port));
                assert_eq!(through_stack(Hook::NodeIngress, &entering).destination, 2_000);
                through_stack(Hook::NodeEgress, &answer.turned_round());
            }
            assert!(node_port >= 49_152, "{node_port} is of the range");
            let crossing = Crossing { site, flow, backend, node: SocketAddr::new(node(world.family), node_port) };
            crossing.crosses(world, &crossing.request(flags::ACK), Verdict::Transmit);
            crossing.crosses_back(world, &crossing.answer(flags::ACK), Verdict::Transmit);
            world.withdraw(&served);
        }
    });
}

#[test]
fn udp_without_a_checksum_has_none_afterwards() {
    on_ethernet(|world| {
        // IPv6 wants one (RFC 8200, section 8.1), and leaves it to the receiver to say so.
        let crossing = Crossing::open(world, Protocol::Udp, KEPT);
        if world.family == IpFamily::V4 {
            crossing.crosses(world, &crossing.request(0).without_checksum(), Verdict::Transmit);
            crossing.crosses_back(world, &crossing.answer(0).without_checksum(), Verdict::Transmit);
        }
    });
}

/// So that whoever tracks connections there sees them begin and end.
#[test]
fn what_begins_and_what_ends_is_the_stacks() {
    on_ethernet(|world| {
        let crossing = Crossing::open_halfway(world, Protocol::Tcp, KEPT);
        for wanted in [flags::SYN, flags::ACK] {
            crossing.site.leaves_alone(world, "it begins", &crossing.request(wanted));
        }
        crossing.site.leaves_alone(world, "it begins", &crossing.answer(flags::SYN | flags::ACK));
        crossing.enters(world, flags::ACK, false);
        crossing.answers(world, flags::ACK);
        crossing.crosses(world, &crossing.request(flags::ACK), Verdict::Transmit);
        crossing.crosses_back(world, &crossing.answer(flags::ACK), Verdict::Transmit);
        for wanted in [flags::FIN | flags::ACK, flags::RST] {
            crossing.site.leaves_alone(world, "it ends", &crossing.request(wanted));
            crossing.site.leaves_alone(world, "it ends", &crossing.answer(wanted));
        }
        crossing.enters(world, flags::FIN | flags::ACK, false);
    });
}

/// Another CPU may remember where its answers went.
#[test]
fn the_port_of_what_has_ended_leads_to_no_other_client_while_it_may_be_remembered() {
    on_ethernet(|world| {
        world.configure(|settings| *settings = settings.with_snat_ports([KEPT, KEPT]));
        let ending = Crossing::open(world, Protocol::Tcp, KEPT);
        ending.crosses_back(world, &ending.answer(flags::ACK), Verdict::Transmit);
        ending.enters(world, flags::FIN | flags::ACK, false);
        ending.answers(world, flags::FIN | flags::ACK);
        let client = outsider(world.family, KEPT + 1);
        let next = Crossing { flow: Flow { client, ..ending.flow }, ..ending };
        let inside = next.request(flags::SYN).to(next.backend);
        let entered = Expected::Opened(next.flow.service, inside.clone());
        world.send("the next opens", Hook::NodeIngress, &next.request(flags::SYN), &entered);
        let none = Expected::Dropped(Some(next.flow.service), Reason::SnatExhausted);
        world.send("no port is free", Hook::NodeEgress, &inside.turned_round(), &none);
        world.let_pass(1);
        next.enters(world, flags::SYN, false);
        next.answers(world, flags::SYN | flags::ACK);
    });
}

#[test]
fn a_flow_that_is_not_remembered_is_looked_up_in_the_state_it_is_in() {
    on_ethernet(|world| {
        let crossing = Crossing::open(world, Protocol::Tcp, KEPT);
        crossing.enters(world, flags::FIN | flags::ACK, false);
        crossing.site.leaves_alone(world, "it is ending", &crossing.request(flags::ACK));
        crossing.site.leaves_alone(world, "it is ending", &crossing.answer(flags::ACK));
    });
}

/// Where more flows share their places than have room there, the stack's turn with one is not another's way.
#[test]
fn what_is_remembered_of_one_flow_is_not_mixed_with_another() {
    on_ethernet(|world| {
        let first = Crossing::open(world, Protocol::Tcp, KEPT);
        let second = Crossing::open(world, Protocol::Tcp, KEPT + 1);
        let ending = Crossing::open(world, Protocol::Tcp, KEPT + 2);
        let (epoch, lease) = (ending.site.first_epoch + 1, world.now().wrapping_add(100_000));
        let one_each = Routing { epoch, lease, flow_mask: 0 };
        world.datapath.next_hops().set_routing(one_each).expect("written");
        first.enters(world, flags::ACK, false);
        first.answers(world, flags::ACK);
        second.enters(world, flags::ACK, false);
        ending.enters(world, flags::FIN | flags::ACK, false);
        ending.leads_to(world, FAR);
        for _ in 0..4 {
            first.crosses(world, &first.request(flags::ACK), Verdict::Transmit);
            second.crosses(world, &second.request(flags::ACK), Verdict::Transmit);
            ending.site.leaves_alone(world, "it is ending", &ending.request(flags::ACK));
            first.crosses_back(world, &first.answer(flags::ACK), Verdict::Transmit);
            // Another clock tick, another victim.
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
}

/// In a part of the array that is its own, in either place of a flow: what one CPU has found another has to find for itself.
#[test]
fn each_cpu_remembers_for_itself() {
    on_ethernet(|world| {
        let crossings: Vec<_> = (0..2).map(|number| Crossing::open(world, Protocol::Tcp, KEPT + number)).collect();
        let (epoch, lease) = (crossings[1].site.first_epoch + 1, world.now().wrapping_add(100_000));
        for flow_mask in [0, 1, FLOW_MASK] {
            // Whatever was remembered is of another epoch.
            let epoch = epoch + 1 + flow_mask.min(2);
            world.datapath.next_hops().set_routing(Routing { epoch, lease, flow_mask }).expect("written");
            for crossing in &crossings {
                crossing.enters(world, flags::ACK, false);
                crossing.answers(world, flags::ACK);
            }
            let cross = |world: &World, cpu, verdict| {
                stay_on(cpu);
                for crossing in &crossings {
                    crossing.crosses(world, &crossing.request(flags::ACK), verdict);
                }
            };
            cross(world, 0, Verdict::Transmit);
            for crossing in &crossings {
                crossing.leads_to(world, FAR);
            }
            cross(world, 1, Verdict::Redirect);
            cross(world, 0, Verdict::Transmit);
            cross(world, 1, Verdict::Redirect);
        }
    });
}

/// What does not live until the stack's next turn is kept alive by nobody else.
#[test]
fn what_lives_for_short_is_the_stacks() {
    on_ethernet(|world| {
        let crossing = Crossing::open(world, Protocol::Udp, KEPT);
        crossing.crosses(world, &crossing.request(0), Verdict::Transmit);
        world.datapath.set_lifetimes([4 * 250; FlowState::COUNT]).expect("settings");
        std::thread::sleep(std::time::Duration::from_millis(1_300));
        crossing.site.leaves_alone(world, "a second later", &crossing.request(0));
        crossing.enters(world, 0, false);
        crossing.site.leaves_alone(world, "seen by the stack", &crossing.request(0));
    });
}

/// What the host's rules, or its IPsec policies, have come to keep from leaving as it did.
#[test]
fn what_the_stack_lets_through_no_more_is_its_own_from_its_next_turn_on() {
    for protocol in BOTH {
        on_ethernet(|world| {
            let crossing = Crossing::open(world, protocol, KEPT);
            let (request, answer) = (crossing.request(flags::ACK), crossing.answer(flags::ACK));
            crossing.crosses(world, &request, Verdict::Transmit);
            crossing.crosses_back(world, &answer, Verdict::Transmit);
            crossing.site.vouch(world, 2);
            // They enter, which keeps the entries of both directions alive, and never leave.
            std::thread::sleep(std::time::Duration::from_millis(1_100));
            for _ in 0..2 {
                let inside = request.clone().to(crossing.backend);
                let expected = Expected::Forwarded(crossing.flow.service, inside);
                world.send("it is dropped", Hook::NodeIngress, &request, &expected);
                let expected = Expected::Rewritten(Reason::Unmasqueraded, answer.clone().to(crossing.flow.client));
                world.send("it is dropped", Hook::NodeIngress, &answer, &expected);
                crossing.site.leaves_alone(world, "it was not let through", &request);
                crossing.site.leaves_alone(world, "it was not let through", &answer);
            }
        });
    }
}

/// The port of the node that the connection before had may be another's.
#[test]
fn another_connection_from_the_same_port_goes_its_own_way() {
    for end in [flags::RST, flags::FIN | flags::ACK] {
        on_ethernet(|world| {
            let crossing = Crossing::open(world, Protocol::Tcp, KEPT);
            crossing.crosses(world, &crossing.request(flags::ACK), Verdict::Transmit);
            crossing.crosses_back(world, &crossing.answer(flags::ACK), Verdict::Transmit);
            for packet in [crossing.request(end), crossing.answer(end)] {
                crossing.site.leaves_alone(world, "it ends", &packet);
            }
            crossing.enters(world, end, false);
            if end != flags::RST {
                crossing.answers(world, end);
            }
            let (request, answer) = (crossing.request(flags::SYN), crossing.answer(flags::SYN | flags::ACK));
            crossing.site.leaves_alone(world, "another begins", &request);
            crossing.site.leaves_alone(world, "another begins", &answer);
            for packet in [crossing.request(flags::ACK), crossing.answer(flags::ACK)] {
                crossing.site.leaves_alone(world, "what was remembered is of another", &packet);
            }
            crossing.enters(world, flags::SYN, true);
            crossing.answers(world, flags::SYN | flags::ACK);
            crossing.site.leaves_alone(world, "it is not confirmed", &crossing.request(flags::ACK));
        });
    }
}

/// The stack may think differently of what claims the same ends and comes by another way: strict `rp_filter` does.
#[test]
fn what_comes_by_another_device_than_before_is_the_stacks() {
    for protocol in BOTH {
        on_ethernet(|world| {
            let crossing = Crossing::open(world, protocol, KEPT);
            let (flow, backend) = (&crossing.flow, crossing.backend);
            let change = |next_hop: &mut NextHop| next_hop.ingress = FAR;
            let connections = world.datapath.connections();
            connections.change_next_hop(protocol, flow.client, backend, change).expect("an entry");
            connections.change_next_hop(protocol, backend, flow.client, change).expect("an entry");
            crossing.site.leaves_alone(world, "it came by another", &crossing.request(flags::ACK));
            crossing.site.leaves_alone(world, "it came by another", &crossing.answer(flags::ACK));
        });
    }
}

#[test]
fn a_connection_is_the_stacks_until_it_has_gone_through_it() {
    on_ethernet(|world| {
        let site = Site::of(world);
        let served = Served::new(1, Protocol::Tcp).kind(FrontendKind::NodePort).active([1]);
        let flow = Flow { client: outsider(world.family, KEPT), ..world.flow(&served, KEPT) };
        let input = packet(flow.protocol, flow.client, flow.vip, flags::SYN);
        site.leaves_alone(world, "nobody has seen it", &input);
        let inside = input.clone().to(endpoint(world.family, 1));
        world.send("it enters", Hook::NodeIngress, &input, &Expected::Opened(flow.service, inside));
        // Where the host's own rules drop it, it never leaves.
        site.leaves_alone(world, "it was not let through", &input);
    });
}

#[test]
fn what_is_not_plain_is_left_alone() {
    on_ethernet(|world| {
        let crossing = Crossing::open(world, Protocol::Tcp, KEPT);
        let (request, answer) = (crossing.request(flags::ACK), crossing.answer(flags::ACK));
        for (what, change) in [
            ("tagged", &(|packet: Packet| packet.tag(Tag::Customer(7))) as &dyn Fn(Packet) -> Packet),
            ("at its last hop", &|packet| packet.hop_limit(1)),
            ("past its last hop", &|packet| packet.hop_limit(0)),
            ("a fragment", &|packet| packet.fragment(0, true)),
            ("a later fragment", &|packet| packet.fragment(64, true)),
            ("longer than what can be sent", &|packet| packet.payload(&[0; 1600])),
            ("with options", &|packet| {
                of_family(
                    world.family,
                    packet.clone().ipv4_options(&[1; 4]),
                    packet.extension(Extension::DestinationOptions(0)),
                )
            }),
        ] {
            for packet in [&request, &answer] {
                crossing.site.leaves_alone(world, what, &change(packet.clone()));
            }
        }
        let sibling = SocketAddr::new(crossing.flow.client.ip(), KEPT + 1);
        crossing.site.leaves_alone(world, "of another connection", &request.clone().from(sibling));
        crossing.site.leaves_alone(world, "for nobody", &request.clone().to(endpoint(world.family, 9)));
        let ping = Packet::icmp(
            crossing.flow.client.ip(),
            crossing.node.ip(),
            Message::EchoRequest { identifier: KEPT, sequence: 1 },
        );
        crossing.site.leaves_alone(world, "an echo request", &ping);
        // What is asked for next is sent on all the same.
        crossing.crosses(world, &request, Verdict::Transmit);
        crossing.crosses_back(world, &answer, Verdict::Transmit);
    });
}

#[test]
fn a_frame_for_another_host_is_left_alone() {
    on_ethernet(|world| {
        let crossing = Crossing::open(world, Protocol::Tcp, KEPT);
        for is_known in [false, true] {
            for packet in [crossing.request(flags::ACK), crossing.answer(flags::ACK)] {
                let mut bytes = packet.to_bytes().to_vec();
                bytes[5] = 9;
                let what = format!("for another host, next hop known: {is_known}");
                crossing.site.run(world, &what, &bytes, Verdict::Pass, &bytes, &Counted::nothing());
            }
            crossing.crosses(world, &crossing.request(flags::ACK), Verdict::Transmit);
            crossing.crosses_back(world, &crossing.answer(flags::ACK), Verdict::Transmit);
        }
    });
}

#[test]
fn a_backend_on_this_node_is_the_stacks() {
    on_ethernet(|world| {
        let site = Site::of(world);
        let served = Served::new(1, Protocol::Tcp).kind(FrontendKind::NodePort).active([1]).local([1]);
        let flow = Flow { client: outsider(world.family, KEPT), ..world.flow(&served, KEPT) };
        let input = packet(flow.protocol, flow.client, flow.vip, flags::SYN);
        let inside = input.clone().to(endpoint(world.family, 1));
        world.send("it enters", Hook::NodeIngress, &input, &Expected::Opened(flow.service, inside));
        site.leaves_alone(world, "to a backend here", &packet(flow.protocol, flow.client, flow.vip, flags::ACK));
    });
}

#[test]
fn after_a_change_the_stack_shows_the_way_anew() {
    for protocol in BOTH {
        on_ethernet(|world| {
            let crossing = Crossing::open(world, protocol, KEPT);
            let (request, answer) = (crossing.request(flags::ACK), crossing.answer(flags::ACK));
            crossing.crosses(world, &request, Verdict::Transmit);
            crossing.crosses_back(world, &answer, Verdict::Transmit);
            crossing.leads_to(world, FAR);
            crossing.crosses(world, &request, Verdict::Transmit);
            crossing.site.vouch(world, 2);
            for _ in 0..2 {
                crossing.site.leaves_alone(world, "routing has changed", &request);
                crossing.site.leaves_alone(world, "routing has changed", &answer);
            }
            crossing.enters(world, flags::ACK, false);
            crossing.crosses(world, &request, Verdict::Transmit);
            crossing.site.leaves_alone(world, "nothing came back yet", &answer);
            crossing.answers(world, flags::ACK);
            crossing.crosses_back(world, &answer, Verdict::Transmit);
        });
    }
}

#[test]
fn when_nobody_vouches_for_routes_everything_is_the_stacks() {
    on_ethernet(|world| {
        let crossing = Crossing::open(world, Protocol::Tcp, KEPT);
        let request = crossing.request(flags::ACK);
        crossing.crosses(world, &request, Verdict::Transmit);
        // The kernel's clock may be some ticks behind the one that is read.
        let lease = world.now().wrapping_sub(1_000);
        for (epoch, lease) in [(crossing.site.first_epoch + 1, lease), (0, lease.wrapping_add(100_000))] {
            let routing = Routing { epoch, lease, flow_mask: FLOW_MASK };
            world.datapath.next_hops().set_routing(routing).expect("written");
            crossing.site.leaves_alone(world, "the word is old", &request);
        }
        crossing.site.vouch(world, 1);
        crossing.crosses(world, &request, Verdict::Transmit);
    });
}

#[test]
fn a_device_is_used_only_as_it_can_be() {
    on_ethernet(|world| {
        let crossing = Crossing::open(world, Protocol::Tcp, KEPT);
        let (request, answer) = (crossing.request(flags::ACK), crossing.answer(flags::ACK));
        for (flags_of_device, same, other) in [
            (XdpDeviceFlags::TRANSMITS, true, false),
            (XdpDeviceFlags::TAKES_REDIRECTED, false, true),
            (0, false, false),
        ] {
            crossing.site.allow(world, flags_of_device);
            crossing.site.vouch(world, 10 + u32::from(flags_of_device));
            crossing.enters(world, flags::ACK, false);
            crossing.answers(world, flags::ACK);
            if same {
                crossing.crosses_back(world, &answer, Verdict::Transmit);
            } else {
                crossing.site.leaves_alone(world, "nothing comes out", &answer);
            }
            crossing.leads_to(world, FAR);
            if other {
                crossing.crosses(world, &request, Verdict::Redirect);
            } else {
                crossing.site.leaves_alone(world, "nothing can be redirected", &request);
            }
        }
    });
}

#[test]
fn an_entry_that_is_over_is_not_followed() {
    on_ethernet(|world| {
        let crossing = Crossing::open(world, Protocol::Udp, KEPT);
        world.datapath.shorten_lifetimes([1; FlowState::COUNT]).expect("settings");
        std::thread::sleep(std::time::Duration::from_millis(50));
        crossing.site.leaves_alone(world, "expired", &crossing.request(0));
        crossing.site.leaves_alone(world, "expired", &crossing.answer(0));
    });
}

#[test]
fn a_udp_flow_leaves_a_backend_that_has_gone() {
    on_ethernet(|world| {
        let crossing = Crossing::open(world, Protocol::Udp, KEPT);
        crossing.crosses(world, &crossing.request(0), Verdict::Transmit);
        world.serve(&Served::new(1, Protocol::Udp).kind(FrontendKind::NodePort).active([2]));
        crossing.site.leaves_alone(world, "its backend has gone", &crossing.request(0));
    });
}

/// As the answer to a pod of this node, which was masqueraded and has no frontend.
#[test]
fn an_answer_that_is_for_no_frontend_is_the_stacks() {
    on_ethernet(|world| {
        let crossing = Crossing::open(world, Protocol::Tcp, KEPT);
        let (backend, client) = (crossing.backend, crossing.flow.client);
        let removed = world.datapath.connections().remove(Entry::Reply, Protocol::Tcp, backend, client);
        assert!(removed.expect("a table that can be written"));
        crossing.site.leaves_alone(world, "for a pod", &crossing.answer(flags::ACK));
    });
}
