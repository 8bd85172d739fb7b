//! Any flow, any payload: after each direction all checksums are right, computed from nothing, and a reply bears the
//! addresses that the client sent to.

use std::{
    cell::RefCell,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use dsproxy::{
    maps::FrontendAddress,
    model::ObjectName,
    resolve::{Distribution, Reach, ResolvedEndpoint, ResolvedFamily, ResolvedFrontend, ResolvedPort, ServicePortName},
};
use dsproxy_common::{IpFamily, Protocol, service::FrontendKind};
use dsproxy_tests::{
    packet::{Dissection, Link, Packet, Tag, verify},
    prog::{Datapath, Hook, Verdict},
};
use proptest::{prelude::*, test_runner::TestRunner};

use crate::world::CAPACITIES;

/// A flow and how it is dressed up.
#[derive(Clone, Debug)]
struct Sample {
    protocol: Protocol,
    client: SocketAddr,
    vip: SocketAddr,
    backend: SocketAddr,
    link: Link,
    tags: u8,
    options: Vec<u8>,
    payload: Vec<u8>,
    answer: Vec<u8>,
    has_checksum: bool,
}

fn address(family: IpFamily) -> BoxedStrategy<IpAddr> {
    match family {
        IpFamily::V4 => any::<u32>().prop_map(|bits| Ipv4Addr::from(bits).into()).boxed(),
        IpFamily::V6 => any::<u128>().prop_map(|bits| Ipv6Addr::from(bits).into()).boxed(),
    }
}

/// Any port but zero, which no Service and no endpoint may have.
fn end(family: IpFamily) -> impl Strategy<Value = SocketAddr> {
    (address(family), 1_u16..).prop_map(|(address, port)| SocketAddr::new(address, port))
}

fn sample() -> impl Strategy<Value = Sample> {
    let family = prop_oneof![Just(IpFamily::V4), Just(IpFamily::V6)];
    let payload = || proptest::collection::vec(any::<u8>(), 0..80);
    family
        .prop_flat_map(move |family| {
            (
                (end(family), end(family), end(family)),
                prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)],
                prop_oneof![Just(Link::Ethernet), Just(Link::None)],
                0_u8..3,
                proptest::collection::vec(any::<u8>(), 0..40),
                (payload(), payload()),
                // Over IPv6 there is no UDP without a checksum.
                any::<bool>().prop_map(move |bit| bit || family == IpFamily::V6),
            )
        })
        .prop_map(|((client, vip, backend), protocol, link, tags, options, (payload, answer), has_checksum)| Sample {
            protocol,
            client,
            vip,
            backend,
            link,
            tags,
            options,
            payload,
            answer,
            has_checksum,
        })
        .prop_filter("three ends that differ", |sample| {
            sample.client != sample.vip && sample.client != sample.backend && sample.vip != sample.backend
        })
        .prop_filter("no kernel test with this source: it is taken for an EtherType", |sample| {
            sample.link == Link::Ethernet || sample.client.is_ipv6() && sample.backend.is_ipv6() || {
                let looks_like_ip = |end: &SocketAddr| match end.ip() {
                    IpAddr::V4(address) => matches!(address.octets()[..2], [0x08, 0x00] | [0x86, 0xdd]),
                    IpAddr::V6(_) => false,
                };
                !looks_like_ip(&sample.client) && !looks_like_ip(&sample.backend)
            }
        })
}

impl Sample {
    fn port(&self) -> ResolvedPort {
        ResolvedPort {
            name: ServicePortName {
                service: ObjectName::new("default", "any"),
                port: "".into(),
                protocol: self.protocol,
            },
            affinity: None,
            families: vec![ResolvedFamily {
                family: IpFamily::of(self.vip.ip()),
                frontends: vec![ResolvedFrontend {
                    address: FrontendAddress { address: self.vip.ip(), port: self.vip.port(), protocol: self.protocol },
                    kind: FrontendKind::ClusterIp,
                    inside: Reach::Cluster,
                    outside: Reach::Cluster,
                    checks_source: false,
                }],
                endpoints: vec![ResolvedEndpoint {
                    address: self.backend.ip(),
                    port: self.backend.port(),
                    is_local: false,
                    is_on_node: true,
                    in_cluster_list: true,
                    in_local_list: false,
                }],
                distribution: Distribution::List,
                source_ranges: Vec::new(),
            }],
        }
    }

    fn packet(&self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Packet {
        let packet = match self.protocol {
            Protocol::Tcp => Packet::tcp(source, destination).tcp_options(&self.options),
            Protocol::Udp if self.has_checksum => Packet::udp(source, destination),
            Protocol::Udp => Packet::udp(source, destination).without_checksum(),
            Protocol::Sctp => Packet::sctp(source, destination),
        };
        let packet = (0..self.tags).fold(packet, |packet, id| packet.tag(Tag::Customer(id.into())));
        let packet = if source.is_ipv4() { packet.ipv4_options(&self.options) } else { packet };
        packet.payload(payload).on(self.link)
    }
}

fn ends(link: Link, packet: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let Dissection { network, transport, .. } = Dissection::of(link, packet);
    let (network, transport) = (network?, transport?);
    Some((
        SocketAddr::new(network.source, transport.source),
        SocketAddr::new(network.destination, transport.destination),
    ))
}

#[test]
fn any_flow_is_translated_and_translated_back() {
    let datapath = RefCell::new(Datapath::load(&CAPACITIES).expect("programs that load"));
    let mut runner = TestRunner::new(ProptestConfig { cases: 2_000, failure_persistence: None, ..Default::default() });
    let outcome = runner.run(&sample(), |sample| {
        let mut datapath = datapath.borrow_mut();
        let port = sample.port();
        datapath.serve(&port).expect("a service that fits");
        let Sample { client, vip, backend, link, .. } = sample;

        let forward = sample.packet(client, vip, &sample.payload);
        for _ in 0..2 {
            let found = datapath.run(Hook::Ingress, link, &forward.to_bytes()).expect("a program that runs");
            prop_assert_eq!(found.verdict, Verdict::Pass);
            prop_assert_eq!(verify(link, &found.packet), Ok(()));
            prop_assert_eq!(ends(link, &found.packet), Some((client, backend)));
            prop_assert_eq!(&found.packet, &forward.clone().to(backend).to_bytes());
        }
        let reply = sample.packet(backend, client, &sample.answer);
        let found = datapath.run(Hook::Egress, link, &reply.to_bytes()).expect("a program that runs");
        prop_assert_eq!(found.verdict, Verdict::Pass);
        prop_assert_eq!(verify(link, &found.packet), Ok(()));
        prop_assert_eq!(ends(link, &found.packet), Some((vip, client)));
        prop_assert_eq!(&found.packet, &reply.from(vip).to_bytes());

        datapath.withdraw(&port).expect("a service that goes");
        datapath.connections().clear().expect("a table that can be cleared");
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
