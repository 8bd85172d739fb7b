//! Drops by service port: whose they are, and for how long they are counted. That each drop is counted for its service port, and none
//! for another, is looked at by every test that expects one (`world::Expected`).

use dsproxy::{
    maps::{Capacities, Write},
    resolve::Reach,
};
use dsproxy_common::{
    Protocol,
    count::{Reason, ServiceDrops},
    settings::{NetworkFlags, SettingFlags},
};
use dsproxy_tests::{packet::flags, prog::Hook};
use ipnet::IpNet;

use crate::world::{
    CAPACITIES, Expected, Flow, Served, World, client, everywhere, everywhere_with, node, outsider, packet, stay_on,
};

/// As many service ports as there are ids.
const FEW: Capacities = Capacities { services: 3, ..CAPACITIES };

/// A Service that serves nobody on this node.
fn elsewhere(number: u8) -> Served {
    Served::new(number, Protocol::Tcp).active([1]).reach(Reach::Local, Reach::Local)
}

fn drops(world: &World, flow: &Flow) -> ServiceDrops {
    world.datapath.maps().service_drops(flow.service).expect("counts that can be read")
}

#[test]
fn every_service_port_has_room_for_its_drops_and_an_id_begins_anew() {
    everywhere_with(&FEW, |world| {
        let flows: Vec<_> = (1..=3).map(|number| world.flow(&elsewhere(number), 40_000)).collect();
        for (count, flow) in (1..).zip(&flows) {
            for _ in 0..count {
                flow.is_dropped(world, flags::SYN, Reason::NoLocalEndpoint);
            }
        }
        for (count, flow) in (1..).zip(&flows) {
            assert_eq!(drops(world, flow), ServiceDrops::of(Reason::NoLocalEndpoint, count), "{world}");
        }
        world.withdraw(&elsewhere(2));
        let next = world.flow(&Served::new(4, Protocol::Tcp).active([1]), 40_000);
        assert_eq!(next.service, flows[1].service, "{world}: no other id is free");
        assert_eq!(drops(world, &next), ServiceDrops::default(), "{world}");
        assert_eq!(drops(world, &flows[2]).total(), 3, "{world}: others keep theirs");
        world.withdraw(&Served::new(4, Protocol::Tcp));
    });
}

#[test]
fn what_all_cpus_have_dropped_is_one_count() {
    everywhere(|world| {
        let flow = world.flow(&elsewhere(1), 40_000);
        for cpu in [0, 1, 0] {
            stay_on(cpu);
            flow.is_dropped(world, flags::SYN, Reason::NoLocalEndpoint);
        }
        assert_eq!(drops(world, &flow), ServiceDrops::of(Reason::NoLocalEndpoint, 3), "{world}");
    });
}

/// The filter keeps a frontend's bit when it has gone, so such a packet is still looked at; but only a connection through it makes it a
/// client's.
#[test]
fn where_the_service_has_gone_its_connections_alone_pretend() {
    everywhere(|world| {
        let served = Served::new(1, Protocol::Tcp).active([1]);
        let flow = world.flow(&served, 40_000);
        let input = packet(flow.protocol, flow.client, flow.vip, flags::SYN).saying(world.vip(2));
        let dropped = Expected::Dropped(Some(flow.service), Reason::Pretended);
        world.send("it says a VIP", Hook::Ingress, &input, &dropped);
        flow.opens(world, flags::SYN, world.endpoint(1));
        world.withdraw(&served);
        world.send("it says one still", Hook::Ingress, &input, &dropped);
        world.datapath.connections().clear().expect("a table that can be cleared");
        world.send("it is nobody's", Hook::Ingress, &input, &Expected::Passed(Reason::NotService));
    });
}

#[test]
fn what_leaves_the_cluster_without_a_service_is_nobodys() {
    everywhere(|world| {
        let family = world.family;
        let pods = IpNet::from(client(family, 0).ip());
        world
            .datapath
            .write(&[
                Write::Network { network: pods, flags: NetworkFlags::POD },
                Write::RemoveMasquerade { family, device: 0 },
            ])
            .expect("networks");
        world.configure(|settings| settings.flags |= SettingFlags::MASQUERADE_EGRESS);
        let sent = packet(Protocol::Udp, client(family, 40_000), outsider(family, 53), 0);
        world.send("it may not leave", Hook::NodeEgress, &sent, &Expected::Dropped(None, Reason::NoNodeAddress));
        world
            .datapath
            .write(&[Write::RemoveNetwork { network: pods }, Write::Masquerade { device: 0, address: node(family) }])
            .expect("networks");
    });
}
