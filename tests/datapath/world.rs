//! A small world for a test: one family, one kind of device, programs and maps of its own, and Services, clients and
//! endpoints by number.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Mutex, PoisonError},
};

use dsproxy::{
    maps::{Capacities, FrontendAddress, Write},
    model::ObjectName,
    resolve::{Distribution, Reach, ResolvedEndpoint, ResolvedFamily, ResolvedFrontend, ResolvedPort, ServicePortName},
};
use dsproxy_common::{
    IpFamily, Protocol,
    count::{Reason, ServiceCounters},
    event::EventFilter,
    next_hop::Routing,
    service::FrontendKind,
    settings::Settings,
};
use dsproxy_tests::{
    packet::{Link, Packet, difference, verify},
    prog::{Counted, Datapath, Hook, Outcome, Side, SkBuff, Verdict, of_family, slot},
};
use ipnet::IpNet;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// Enough for every test; small maps load faster.
pub(crate) const CAPACITIES: Capacities = Capacities {
    services: 32,
    frontends: 64,
    backends: 1024,
    slots: 262_144,
    connections: 4096,
    brief_connections: 4096,
    affinities: 1024,
    source_ranges: 64,
};

/// The port on every VIP, and the endpoints' unless a test says otherwise.
pub(crate) const PORT: u16 = 80;
pub(crate) const TARGET_PORT: u16 = 8080;

/// A place to run packets in.
pub(crate) struct World {
    pub(crate) datapath: Datapath,
    pub(crate) family: IpFamily,
    pub(crate) link: Link,
    served: BTreeMap<ServicePortName, ResolvedPort>,
    settings: Settings,
}

/// Runs `body` for each family and kind of device, each time with nothing served and no connections.
pub(crate) fn everywhere(body: impl Fn(&mut World)) {
    in_idle_world(|world| everywhere_in(world, body));
}

/// As `everywhere`, on devices with an Ethernet header alone.
pub(crate) fn on_ethernet(body: impl Fn(&mut World)) {
    in_idle_world(|world| {
        for family in IpFamily::ALL {
            world.start_over(family, Link::Ethernet);
            body(world);
        }
    });
}

fn in_idle_world(body: impl FnOnce(&mut World)) {
    let idle = || IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    let found = idle().pop();
    let mut world = found.unwrap_or_else(|| World::new(&CAPACITIES));
    body(&mut world);
    idle().push(world);
}

/// As `everywhere`, with maps of these sizes.
pub(crate) fn everywhere_with(capacities: &Capacities, body: impl Fn(&mut World)) {
    everywhere_in(&mut World::new(capacities), body);
}

/// Has the test run its packets on this CPU from now on.
pub(crate) fn stay_on(cpu: usize) {
    let mut one = CpuSet::new();
    one.set(cpu).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &one).expect("a CPU to stay on");
}

/// Worlds of the usual size that no test uses now: the verifier takes seconds over the programs of each. One in which a test has
/// failed does not come back.
static IDLE: Mutex<Vec<World>> = Mutex::new(Vec::new());

fn everywhere_in(world: &mut World, body: impl Fn(&mut World)) {
    for family in IpFamily::ALL {
        for link in Link::ALL {
            world.start_over(family, link);
            body(world);
        }
    }
}

/// A service port of both families, by number.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    number: u8,
    protocol: Protocol,
    target_port: u16,
    active: Vec<u16>,
    draining: Vec<u16>,
    /// Which of them are on this node.
    local: Vec<u16>,
    distribution: Distribution,
    kind: FrontendKind,
    inside: Reach,
    outside: Reach,
    affinity: Option<u32>,
    source_ranges: Option<Vec<IpNet>>,
    is_at_node: bool,
    is_nowhere: bool,
}

impl Served {
    pub(crate) fn new(number: u8, protocol: Protocol) -> Self {
        Self {
            number,
            protocol,
            target_port: TARGET_PORT,
            active: Vec::new(),
            draining: Vec::new(),
            local: Vec::new(),
            distribution: Distribution::List,
            kind: FrontendKind::ClusterIp,
            inside: Reach::Cluster,
            outside: Reach::Cluster,
            affinity: None,
            source_ranges: None,
            is_at_node: false,
            is_nowhere: false,
        }
    }

    /// Its endpoints are on no node.
    pub(crate) fn nowhere(self) -> Self {
        Self { is_nowhere: true, ..self }
    }

    /// Its frontend stands at the node's address.
    pub(crate) fn at_node(self) -> Self {
        Self { is_at_node: true, ..self }
    }

    /// What kind its frontend is. The VIP's address stays what it is for a ClusterIP: nothing in the programs depends on it.
    pub(crate) fn kind(self, kind: FrontendKind) -> Self {
        Self { kind, ..self }
    }

    /// Which endpoints are on this node.
    pub(crate) fn local(self, local: impl IntoIterator<Item = u16>) -> Self {
        Self { local: local.into_iter().collect(), ..self }
    }

    /// Clients inside and outside the cluster reach these.
    pub(crate) fn reach(self, inside: Reach, outside: Reach) -> Self {
        Self { inside, outside, ..self }
    }

    /// A client stays with its endpoint for so many seconds.
    pub(crate) fn affinity(self, seconds: u32) -> Self {
        Self { affinity: Some(seconds), ..self }
    }

    /// Only clients in these are let through.
    pub(crate) fn source_ranges(self, ranges: impl IntoIterator<Item = IpNet>) -> Self {
        Self { source_ranges: Some(ranges.into_iter().collect()), ..self }
    }

    pub(crate) fn active(self, active: impl IntoIterator<Item = u16>) -> Self {
        Self { active: active.into_iter().collect(), ..self }
    }

    pub(crate) fn draining(self, draining: impl IntoIterator<Item = u16>) -> Self {
        Self { draining: draining.into_iter().collect(), ..self }
    }

    pub(crate) fn target_port(self, target_port: u16) -> Self {
        Self { target_port, ..self }
    }

    pub(crate) fn maglev(self) -> Self {
        Self { distribution: Distribution::Maglev, ..self }
    }

    pub(crate) fn frontend(&self, family: IpFamily) -> FrontendAddress {
        let address = if self.is_at_node { node(family) } else { vip(family, self.number).ip() };
        FrontendAddress { address, port: PORT, protocol: self.protocol }
    }

    pub(crate) fn resolved(&self) -> ResolvedPort {
        let Self {
            number,
            protocol,
            target_port,
            active,
            draining,
            local,
            distribution,
            kind,
            inside,
            outside,
            affinity,
            source_ranges,
            is_at_node: _,
            is_nowhere: _,
        } = self;
        let endpoints = |family| {
            let numbers =
                active.iter().map(|number| (number, true)).chain(draining.iter().map(|number| (number, false)));
            let mut endpoints: Vec<ResolvedEndpoint> = numbers
                .map(|(number, takes_new)| {
                    let is_local = local.contains(number);
                    ResolvedEndpoint {
                        address: endpoint(family, *number).ip(),
                        port: *target_port,
                        is_local,
                        is_on_node: !self.is_nowhere,
                        in_cluster_list: takes_new,
                        in_local_list: takes_new && is_local,
                    }
                })
                .collect();
            endpoints.sort_unstable_by_key(|endpoint| (endpoint.address, endpoint.port));
            endpoints
        };
        ResolvedPort {
            name: ServicePortName {
                service: ObjectName::new("default", &format!("service-{number}")),
                port: "".into(),
                protocol: *protocol,
            },
            affinity: *affinity,
            families: IpFamily::ALL
                .into_iter()
                .map(|family| ResolvedFamily {
                    family,
                    frontends: vec![ResolvedFrontend {
                        address: self.frontend(family),
                        kind: *kind,
                        inside: *inside,
                        outside: *outside,
                        checks_source: source_ranges.is_some(),
                    }],
                    endpoints: endpoints(family),
                    distribution: *distribution,
                    source_ranges: source_ranges
                        .iter()
                        .flatten()
                        .filter(|range| family_of(range) == family)
                        .copied()
                        .collect(),
                })
                .collect(),
        }
    }
}

fn family_of(range: &IpNet) -> IpFamily {
    IpFamily::of(range.addr())
}

/// The node's address that masqueraded packets leave with.
pub(crate) fn node(family: IpFamily) -> IpAddr {
    of_family(family, Ipv4Addr::new(172, 30, 0, 1).into(), Ipv6Addr::new(0xfd00, 0x172, 0, 0, 0, 0, 0, 1).into())
}

/// A client that is no pod, by its port.
pub(crate) fn outsider(family: IpFamily, port: u16) -> SocketAddr {
    let v4 = Ipv4Addr::new(192, 0, 2, 9).into();
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9).into();
    SocketAddr::new(of_family(family, v4, v6), port)
}

/// The VIP of a service by its number.
pub(crate) fn vip(family: IpFamily, number: u8) -> SocketAddr {
    let v4 = Ipv4Addr::new(10, 96, 0, number).into();
    let v6 = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()).into();
    SocketAddr::new(of_family(family, v4, v6), PORT)
}

/// An endpoint by its number, at the usual port.
pub(crate) fn endpoint(family: IpFamily, number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    let v4 = Ipv4Addr::new(10, 244, high, low).into();
    let v6 = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0x1234, 0, 0, number).into();
    SocketAddr::new(of_family(family, v4, v6), TARGET_PORT)
}

/// A client by its port.
pub(crate) fn client(family: IpFamily, port: u16) -> SocketAddr {
    let v4 = Ipv4Addr::new(10, 244, 200, 7).into();
    let v6 = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0xabcd, 200, 7).into();
    SocketAddr::new(of_family(family, v4, v6), port)
}

/// A packet of `protocol`; the flags are TCP's.
pub(crate) fn packet(protocol: Protocol, source: SocketAddr, destination: SocketAddr, flags: u8) -> Packet {
    match protocol {
        Protocol::Tcp => Packet::tcp(source, destination).flags(flags),
        Protocol::Udp => Packet::udp(source, destination),
        Protocol::Sctp => Packet::sctp(source, destination),
    }
}

/// What is to become of a packet.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    /// The first of a connection: it becomes this packet.
    Opened(u32, Packet),
    /// One more of a connection: it becomes this packet.
    Forwarded(u32, Packet),
    /// From a backend: it becomes this packet.
    Replied(u32, Packet),
    /// It becomes this packet, for this reason, and no service port's counters know of it.
    Rewritten(Reason, Packet),
    /// Likewise, and the packet is longer than it was.
    Lengthened(Reason, Packet),
    /// It becomes this packet, which goes back by the device it came by; it was this service port's, if any's.
    Answered(Option<u32>, Reason, Packet),
    /// It goes on as it came.
    Passed(Reason),
    /// It goes no further; it was this service port's, if any's.
    Dropped(Option<u32>, Reason),
}

/// A packet, where it meets the programs, and what is to become of it.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) hook: Hook,
    pub(crate) input: Packet,
    pub(crate) expected: Expected,
}

impl World {
    fn new(capacities: &Capacities) -> Self {
        let mut datapath = Datapath::load(capacities).expect("programs that load");
        let settings = datapath.maps().settings().expect("settings");
        let masquerade = IpFamily::ALL.map(|family| Write::Masquerade { device: 0, address: node(family) });
        datapath.write(&masquerade).expect("addresses that can be written");
        Self { datapath, family: IpFamily::V4, link: Link::Ethernet, served: BTreeMap::new(), settings }
    }

    fn start_over(&mut self, family: IpFamily, link: Link) {
        (self.family, self.link) = (family, link);
        for port in std::mem::take(&mut self.served).into_values() {
            self.datapath.withdraw(&port).expect("a service that goes");
        }
        self.datapath.connections().clear().expect("a table that can be cleared");
        self.datapath.set_settings(&self.settings).expect("settings");
        self.datapath.events().ask_for(&EventFilter::default()).expect("a filter that can be written");
        let next_hops = self.datapath.next_hops();
        next_hops.set_routing(Routing::default()).expect("routing");
        for device in next_hops.devices().expect("devices").into_keys() {
            next_hops.remove_device(device).expect("a device that goes");
        }
    }

    pub(crate) fn serve(&mut self, served: &Served) -> u32 {
        let port = served.resolved();
        let service = self.datapath.serve(&port).expect("a service that fits");
        self.served.insert(port.name.clone(), port);
        service
    }

    /// The id of a service port that is served.
    pub(crate) fn service(&self, served: &Served) -> u32 {
        let wanted = served.frontend(self.family);
        let frontends = self.datapath.maps().frontends().expect("frontends");
        let found = frontends.into_iter().find(|(address, _)| *address == wanted);
        found.unwrap_or_else(|| panic!("{self}: nothing is served at {wanted}")).1.service
    }

    /// Serves `served`, and gives a flow to it from the client at `port`.
    pub(crate) fn flow(&mut self, served: &Served, port: u16) -> Flow {
        let service = self.serve(served);
        Flow { protocol: served.protocol, client: self.client(port), vip: self.vip(served.number), service }
    }

    /// Changes what the programs are told, until the world starts over.
    pub(crate) fn configure(&mut self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.datapath.maps().settings().expect("settings");
        change(&mut settings);
        self.datapath.set_settings(&settings).expect("settings");
    }

    /// So many seconds pass in which nobody sends.
    pub(crate) fn let_pass(&mut self, seconds: u32) {
        let settings = self.datapath.maps().settings().expect("settings");
        self.datapath.connections().grow_older(seconds * settings.jiffies_per_second).expect("tables");
    }

    /// The kernel's clock.
    pub(crate) fn now(&self) -> u32 {
        let settings = self.datapath.maps().settings().expect("settings");
        dsproxy::jiffies::now(settings.jiffies_per_second).expect("a clock")
    }

    pub(crate) fn withdraw(&mut self, served: &Served) {
        let port = served.resolved();
        self.datapath.withdraw(&port).expect("a service that goes");
        self.served.remove(&port.name);
    }

    pub(crate) fn vip(&self, number: u8) -> SocketAddr {
        vip(self.family, number)
    }

    pub(crate) fn endpoint(&self, number: u16) -> SocketAddr {
        endpoint(self.family, number)
    }

    pub(crate) fn client(&self, port: u16) -> SocketAddr {
        client(self.family, port)
    }

    /// The endpoint that a new connection from `client` goes to, or, with `step`, that it goes to when so many were taken.
    pub(crate) fn choice(&self, served: &Served, client: SocketAddr, step: usize) -> SocketAddr {
        let frontend = served.frontend(self.family);
        let (record, endpoints) = self.datapath.slots(frontend, Side::Inside).expect("a frontend that is there");
        let destination = SocketAddr::new(frontend.address, frontend.port);
        let slot = slot(served.protocol, client, destination, record.count).expect("one family");
        let (address, port) = endpoints[(slot as usize + step) % endpoints.len()];
        SocketAddr::new(address, port)
    }

    /// Runs every case, each with no connections but its own.
    #[track_caller]
    pub(crate) fn check(&mut self, cases: &[Case]) {
        for Case { name, hook, input, expected } in cases {
            self.datapath.connections().clear().expect("a table that can be cleared");
            self.send(name, *hook, input, expected);
        }
    }

    /// Runs `packet` and compares verdict, bytes and counters.
    #[track_caller]
    pub(crate) fn send(&self, what: &str, hook: Hook, packet: &Packet, expected: &Expected) {
        self.send_bytes(what, hook, &packet.clone().on(self.link).to_bytes(), expected, &SkBuff::default());
    }

    /// As `send`, with bytes that the builder would not make, in a buffer with these properties.
    #[track_caller]
    pub(crate) fn send_bytes(&self, what: &str, hook: Hook, bytes: &[u8], expected: &Expected, buffer: &SkBuff) {
        let (verdict, packet, counted) = self.outcome(bytes, expected);
        let found = self
            .datapath
            .run_as(hook, self.link, bytes, buffer)
            .unwrap_or_else(|error| panic!("{self}: {what}: {hook:?}: {error}"));
        let Outcome { verdict: found_verdict, packet: found_packet, counted: found_counted } = found;
        if let Some(difference) = difference(self.link, &packet, &found_packet) {
            panic!(
                "{self}: {what}: {hook:?} {found_verdict:?}: another packet came out\n{difference}{found_counted:?}"
            );
        }
        assert_eq!(found_verdict, verdict, "{self}: {what}: {hook:?}, counted {found_counted:?}");
        assert_eq!(found_counted, counted, "{self}: {what}: {hook:?}");
    }

    fn outcome(&self, input: &[u8], expected: &Expected) -> (Verdict, bytes::Bytes, Counted) {
        let bytes = input.len() as u64;
        let output = |packet: &Packet| {
            let bytes = packet.clone().on(self.link).to_bytes();
            verify(self.link, &bytes).expect("an expected packet with right checksums");
            // Where the input was cut off, so is the output.
            bytes.slice(..input.len().min(bytes.len()))
        };
        let counted = |reason| Counted::nothing().packets(reason, self.family_of(reason), 1);
        let dropped = |service: Option<u32>, reason| match service {
            Some(service) => counted(reason).drops(service, reason, 1),
            None => counted(reason),
        };
        let none = ServiceCounters::default();
        match expected {
            Expected::Opened(service, packet) => {
                let counters = ServiceCounters { connections: 1, packets: 1, bytes, ..none };
                (Verdict::Pass, output(packet), counted(Reason::Opened).service(*service, &counters))
            }
            Expected::Forwarded(service, packet) => {
                let counters = ServiceCounters { packets: 1, bytes, ..none };
                (Verdict::Pass, output(packet), counted(Reason::Forwarded).service(*service, &counters))
            }
            Expected::Replied(service, packet) => {
                let counters = ServiceCounters { reply_packets: 1, reply_bytes: bytes, ..none };
                (Verdict::Pass, output(packet), counted(Reason::Replied).service(*service, &counters))
            }
            Expected::Rewritten(reason, packet) => (Verdict::Pass, output(packet), counted(*reason)),
            Expected::Lengthened(reason, packet) => {
                let longer = packet.clone().on(self.link).to_bytes();
                verify(self.link, &longer).expect("an expected packet with right checksums");
                (Verdict::Pass, longer, counted(*reason))
            }
            Expected::Answered(service, reason, packet) => {
                let answer = packet.clone().on(self.link).to_bytes();
                verify(self.link, &answer).expect("an answer with right checksums");
                (Verdict::Redirect, answer, dropped(*service, *reason))
            }
            Expected::Passed(reason) => (Verdict::Pass, bytes::Bytes::copy_from_slice(input), counted(*reason)),
            Expected::Dropped(service, reason) => {
                (Verdict::Drop, bytes::Bytes::copy_from_slice(input), dropped(*service, *reason))
            }
        }
    }

    fn family_of(&self, reason: Reason) -> Option<IpFamily> {
        (reason != Reason::NotIp).then_some(self.family)
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.family, self.link)
    }
}

/// A connection from a client to a service port, packet by packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) protocol: Protocol,
    pub(crate) client: SocketAddr,
    pub(crate) vip: SocketAddr,
    pub(crate) service: u32,
}

impl Flow {
    pub(crate) fn family(&self) -> IpFamily {
        IpFamily::of(self.client.ip())
    }

    fn packet(&self, source: SocketAddr, destination: SocketAddr, flags: u8) -> Packet {
        packet(self.protocol, source, destination, flags)
    }

    /// The client's packet opens a connection to `endpoint`.
    #[track_caller]
    pub(crate) fn opens(&self, world: &World, flags: u8, endpoint: SocketAddr) {
        let input = self.packet(self.client, self.vip, flags);
        let expected = Expected::Opened(self.service, input.clone().to(endpoint));
        world.send("the client opens", Hook::Ingress, &input, &expected);
    }

    /// The client's packet belongs to the connection to `endpoint`.
    #[track_caller]
    pub(crate) fn goes_on(&self, world: &World, flags: u8, endpoint: SocketAddr) {
        let input = self.packet(self.client, self.vip, flags);
        let expected = Expected::Forwarded(self.service, input.clone().to(endpoint));
        world.send("the client sends more", Hook::Ingress, &input, &expected);
    }

    /// The client's packet is dropped.
    #[track_caller]
    pub(crate) fn is_dropped(&self, world: &World, flags: u8, reason: Reason) {
        self.meets(world, flags, &Expected::Dropped(Some(self.service), reason));
    }

    /// The client's packet is passed or dropped.
    #[track_caller]
    pub(crate) fn meets(&self, world: &World, flags: u8, expected: &Expected) {
        world.send("the client sends", Hook::Ingress, &self.packet(self.client, self.vip, flags), expected);
    }

    /// The client's packet is refused.
    #[track_caller]
    pub(crate) fn is_refused(&self, world: &World, flags: u8) {
        let input = self.packet(self.client, self.vip, flags);
        let expected = Expected::Answered(Some(self.service), Reason::NoEndpoint, input.refusal());
        world.send("the client sends in vain", Hook::Ingress, &input, &expected);
    }

    /// `endpoint` answers the client.
    #[track_caller]
    pub(crate) fn replies(&self, world: &World, flags: u8, endpoint: SocketAddr) {
        let input = self.packet(endpoint, self.client, flags);
        let expected = Expected::Replied(self.service, input.clone().from(self.vip));
        world.send("the backend answers", Hook::Egress, &input, &expected);
    }

    /// A packet of `endpoint` to the client is passed as it is.
    #[track_caller]
    pub(crate) fn reply_is_not_known(&self, world: &World, flags: u8, endpoint: SocketAddr) {
        let input = self.packet(endpoint, self.client, flags);
        world.send("the backend sends", Hook::Egress, &input, &Expected::Passed(Reason::NotReply));
    }
}
