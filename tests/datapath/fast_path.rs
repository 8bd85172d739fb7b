//! What XDP sends on by itself, past the stack: byte by byte, in turn with the tc programs over the same connections, and what it
//! leaves to them as it came.

use std::net::SocketAddr;

use dsproxy::maps::Write;
use dsproxy_common::{
    IpFamily, Protocol,
    count::{Reason, ServiceCounters},
    flow::FlowState,
    next_hop::{Routing, XdpDevice, XdpDeviceFlags},
    service::FrontendKind,
};
use dsproxy_tests::{
    lab::{
        Crossroads, DualStack,
        crossroads::{OWN_ADDRESS, WIRES},
    },
    packet::{Extension, Link, Message, Packet, Tag, difference, flags, verify},
    prog::{Counted, Hook, Verdict, of_family},
};

use crate::world::{Expected, Flow, Served, World, endpoint, node, on_ethernet, outsider, packet};

/// A client's port within the range of masqueraded packets, where it is kept.
const KEPT: u16 = 50_000;

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// A node with two devices. The client is behind the first, as is the backend, unless a test routes it to the second.
struct Site {
    crossroads: Crossroads,
    near: u32,
    far: u32,
}

impl Site {
    /// Makes it, and tells XDP in `world` of it.
    fn of(world: &mut World) -> Self {
        let own = |family| node(family).to_string();
        let addresses =
            DualStack { v4: own(IpFamily::V4).parse().expect("IPv4"), v6: own(IpFamily::V6).parse().expect("IPv6") };
        let crossroads = Crossroads::build(addresses).expect("a namespace");
        let [near, far] = WIRES.map(|device| crossroads.index(device).expect("a device"));
        let site = Self { crossroads, near, far };
        let [device, _] = WIRES;
        site.route(outsider(world.family, 0), 3, device);
        site.route(endpoint(world.family, 1), 2, device);
        // A frame has to come by a device that takes some.
        site.crossroads.namespace().run(|| world.datapath.attach_xdp(device)).expect("entered").expect("attached");
        site.allow(world, XdpDeviceFlags::TRANSMITS | XdpDeviceFlags::TAKES_REDIRECTED);
        site.vouch(world, 1);
        site
    }

    /// Lets XDP use both devices, in these ways.
    fn allow(&self, world: &mut World, flags: u16) {
        let [a, b, c, d, e, f] = OWN_ADDRESS;
        let address = [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes);
        for index in [self.near, self.far] {
            world.datapath.next_hops().set_device(index, XdpDevice { address, flags }).expect("written");
        }
    }

    /// Tells XDP that the kernel's routing has changed so often.
    fn vouch(&self, world: &mut World, epoch: u32) {
        let lease = world.now().wrapping_add(100_000);
        world.datapath.next_hops().set_routing(Routing { epoch, lease }).expect("written");
    }

    /// Routes to `destination` by the neighbour with this number.
    fn route(&self, destination: SocketAddr, number: u8, device: &str) {
        let [near, _] = WIRES;
        let network = if device == near {
            of_family(IpFamily::of(destination.ip()), "172.30.0.", "fd00:172::")
        } else {
            of_family(IpFamily::of(destination.ip()), "169.254.7.", "fd00:7::")
        };
        let via = format!("{network}{number}");
        self.crossroads.route(&destination.ip().to_string(), &via, device).expect("a route");
    }

    /// Runs a frame that came by the first device, and compares everything.
    #[track_caller]
    fn run(&self, world: &World, what: &str, input: &[u8], verdict: Verdict, output: &[u8], counted: &Counted) {
        let run = || world.datapath.run_frame(self.near, input);
        let found = self.crossroads.namespace().run(run).expect("entered");
        let found = found.unwrap_or_else(|error| panic!("{world}: {what}: {error}"));
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
struct Crossing {
    site: Site,
    flow: Flow,
    backend: SocketAddr,
    /// The node's end of it.
    node: SocketAddr,
}

impl Crossing {
    /// Opens it through the stack, and has it confirmed.
    fn open(world: &mut World, protocol: Protocol, port: u16) -> Self {
        let site = Site::of(world);
        let served = Served::new(1, protocol).kind(FrontendKind::NodePort).active([1]);
        let flow = Flow { client: outsider(world.family, port), ..world.flow(&served, port) };
        let node = SocketAddr::new(node(world.family), port);
        let crossing = Self { site, flow, backend: endpoint(world.family, 1), node };
        crossing.enters(world, flags::SYN, true);
        crossing.answers(world, flags::SYN | flags::ACK);
        crossing.enters(world, flags::ACK, false);
        crossing
    }

    fn request(&self, wanted: u8) -> Packet {
        packet(self.flow.protocol, self.flow.client, self.flow.vip, wanted)
    }

    fn answer(&self, wanted: u8) -> Packet {
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
        let outside = inside.clone().from(self.node);
        world.send("it leaves", Hook::NodeEgress, &inside, &Expected::Rewritten(Reason::Masqueraded, outside));
    }

    /// The backend's goes through the stack.
    #[track_caller]
    fn answers(&self, world: &World, wanted: u8) {
        let input = self.answer(wanted);
        let inside = input.clone().to(self.flow.client);
        let entered = Expected::Rewritten(Reason::Unmasqueraded, inside.clone());
        world.send("the backend answers", Hook::NodeIngress, &input, &entered);
        let left = Expected::Replied(self.flow.service, inside.clone().from(self.flow.vip));
        world.send("the answer leaves", Hook::NodeEgress, &inside, &left);
    }

    /// The client's packet is sent on.
    #[track_caller]
    fn crosses(&self, world: &World, input: &Packet, verdict: Verdict) {
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
    fn crosses_back(&self, world: &World, input: &Packet, verdict: Verdict) {
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

#[test]
fn by_another_device_where_the_route_leads_there() {
    for protocol in BOTH {
        on_ethernet(|world| {
            let crossing = Crossing::open(world, protocol, KEPT);
            let [_, far] = WIRES;
            crossing.site.route(crossing.backend, 2, far);
            crossing.crosses(world, &crossing.request(flags::ACK), Verdict::Redirect);
            crossing.crosses_back(world, &crossing.answer(flags::ACK), Verdict::Transmit);
        });
    }
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

#[test]
fn the_end_of_a_connection_is_seen() {
    on_ethernet(|world| {
        let crossing = Crossing::open(world, Protocol::Tcp, KEPT);
        crossing.crosses(world, &crossing.request(flags::FIN | flags::ACK), Verdict::Transmit);
        crossing.crosses_back(world, &crossing.answer(flags::FIN | flags::ACK), Verdict::Transmit);
        crossing.crosses(world, &crossing.request(flags::ACK), Verdict::Transmit);
        // The next one from the same port is another.
        crossing.site.leaves_alone(world, "a new connection", &crossing.request(flags::SYN));
        let input = crossing.request(flags::SYN);
        let opened = Expected::Opened(crossing.flow.service, input.clone().to(crossing.backend));
        world.send("a new connection", Hook::NodeIngress, &input, &opened);
    });
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
fn without_a_way_that_is_known_the_stack_finds_one() {
    on_ethernet(|world| {
        let crossing = Crossing::open(world, Protocol::Tcp, KEPT);
        let request = crossing.request(flags::ACK);
        let backend = crossing.backend.ip();
        let neighbour = of_family(world.family, "172.30.0.77", "fd00:172::77");
        let [near, _] = WIRES;
        let no_neighbour = format!("route replace {backend} via {neighbour} dev {near}");
        let no_route = format!("route replace unreachable {backend}");
        for (epoch, change) in [(10, no_neighbour), (11, no_route)] {
            crossing.site.crossroads.change(std::slice::from_ref(&change)).expect("a route");
            crossing.site.vouch(world, epoch);
            for _ in 0..2 {
                crossing.site.leaves_alone(world, &change, &request);
            }
            if epoch == 11 {
                crossing
                    .site
                    .crossroads
                    .change(&[format!("route del unreachable {backend}")])
                    .expect("a route that goes");
            }
        }
        crossing.site.route(crossing.backend, 2, near);
        crossing.site.leaves_alone(world, "nobody has told of the route", &request);
        crossing.site.vouch(world, 12);
        crossing.crosses(world, &request, Verdict::Transmit);
    });
}

#[test]
fn a_way_is_kept_until_somebody_tells_of_a_change() {
    on_ethernet(|world| {
        let crossing = Crossing::open(world, Protocol::Udp, KEPT);
        let [_, far] = WIRES;
        let request = crossing.request(0);
        crossing.crosses(world, &request, Verdict::Transmit);
        crossing.site.route(crossing.backend, 2, far);
        crossing.crosses(world, &request, Verdict::Transmit);
        crossing.site.vouch(world, 2);
        crossing.crosses(world, &request, Verdict::Redirect);
    });
}

#[test]
fn when_nobody_vouches_for_routes_everything_is_the_stacks() {
    on_ethernet(|world| {
        let crossing = Crossing::open(world, Protocol::Tcp, KEPT);
        let request = crossing.request(flags::ACK);
        crossing.crosses(world, &request, Verdict::Transmit);
        // The kernel's clock may be some ticks behind the one that is read.
        let lease = world.now().wrapping_sub(1_000);
        for routing in [Routing { epoch: 1, lease }, Routing { epoch: 0, lease: lease.wrapping_add(100_000) }] {
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
        let [_, far] = WIRES;
        crossing.site.route(crossing.backend, 2, far);
        let (request, answer) = (crossing.request(flags::ACK), crossing.answer(flags::ACK));
        crossing.site.allow(world, XdpDeviceFlags::TRANSMITS);
        crossing.site.leaves_alone(world, "nothing can be redirected", &request);
        crossing.crosses_back(world, &answer, Verdict::Transmit);
        crossing.site.allow(world, XdpDeviceFlags::TAKES_REDIRECTED);
        crossing.site.vouch(world, 2);
        crossing.crosses(world, &request, Verdict::Redirect);
        crossing.site.leaves_alone(world, "nothing comes out", &answer);
    });
}

#[test]
fn an_entry_that_is_over_is_not_followed() {
    on_ethernet(|world| {
        let crossing = Crossing::open(world, Protocol::Udp, KEPT);
        crossing.crosses(world, &crossing.request(0), Verdict::Transmit);
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

/// The answer to what a pod of this node sent to the world, masqueraded.
#[test]
fn the_answer_to_a_pod_is_the_stacks() {
    on_ethernet(|world| {
        let crossing = Crossing::open(world, Protocol::Tcp, KEPT);
        let masquerade = Write::Masquerade { device: 0, address: node(world.family) };
        world.datapath.write(&[masquerade]).expect("written");
        // Without the frontend's entry it is like one.
        let removed = world.datapath.connections().remove(
            dsproxy_tests::prog::Entry::Reply,
            Protocol::Tcp,
            crossing.backend,
            crossing.flow.client,
        );
        assert!(removed.expect("a table that can be written"));
        crossing.site.leaves_alone(world, "for a pod", &crossing.answer(flags::ACK));
    });
}
