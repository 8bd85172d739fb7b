//! Which endpoint a new connection goes to: what the kernel picks is what user space can foretell from the maps.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use dsproxy::maglev;
use dsproxy_common::Protocol;
use dsproxy_tests::{
    packet::flags,
    prog::{Side, slot},
};

use crate::world::{Flow, Served, World, everywhere};

const FLOWS: u16 = 1_000;

/// Opens connections from many ports, each of which must go to the endpoint that `foretold` names; says how many went to each.
fn open_many(world: &World, served: &Served, flow: Flow, foretold: impl Fn(u32) -> (IpAddr, u16)) -> Vec<usize> {
    let (slots, _) = world.datapath.slots(served.frontend(world.family), Side::Inside).expect("the frontend");
    let mut hits: HashMap<SocketAddr, usize> = HashMap::new();
    for port in 0..FLOWS {
        let flow = Flow { client: world.client(10_000 + port), ..flow };
        let slot = slot(flow.protocol, flow.client, flow.vip, slots.count).expect("one family");
        let (address, target_port) = foretold(slot);
        let endpoint = SocketAddr::new(address, target_port);
        flow.opens(world, flags::SYN, endpoint);
        *hits.entry(endpoint).or_default() += 1;
    }
    hits.into_values().collect()
}

/// Within six standard deviations of an even share.
#[track_caller]
fn assert_even(hits: &[usize], endpoints: usize) {
    assert_eq!(hits.len(), endpoints, "every endpoint gets its share");
    let mean = f64::from(FLOWS) / endpoints as f64;
    let bound = 6.0 * mean.sqrt();
    assert!(hits.iter().all(|hit| (*hit as f64 - mean).abs() < bound), "{hits:?} around {mean}");
}

#[test]
fn a_list_is_read_as_user_space_reads_it() {
    everywhere(|world| {
        for (count, protocol) in [(1, Protocol::Tcp), (2, Protocol::Udp), (7, Protocol::Tcp), (100, Protocol::Udp)] {
            world.datapath.connections().clear().expect("a table that can be cleared");
            let served = Served::new(1, protocol).active(1..=count);
            let flow = world.flow(&served, 1);
            let mut endpoints: Vec<(IpAddr, u16)> =
                (1..=count).map(|number| (world.endpoint(number).ip(), world.endpoint(number).port())).collect();
            endpoints.sort_unstable();
            let hits = open_many(world, &served, flow, |slot| endpoints[slot as usize]);
            assert_even(&hits, usize::from(count));
        }
    });
}

#[test]
fn a_maglev_table_is_read_as_user_space_reads_it() {
    everywhere(|world| {
        for (count, protocol) in [(1, Protocol::Udp), (2, Protocol::Tcp), (10, Protocol::Udp), (100, Protocol::Tcp)] {
            world.datapath.connections().clear().expect("a table that can be cleared");
            let served = Served::new(1, protocol).active(1..=count).maglev();
            let flow = world.flow(&served, 1);
            let endpoints: Vec<(IpAddr, u16)> =
                (1..=count).map(|number| (world.endpoint(number).ip(), world.endpoint(number).port())).collect();
            let table = if count == 1 { vec![0] } else { maglev::table(&endpoints) };
            let hits = open_many(world, &served, flow, |slot| endpoints[table[slot as usize]]);
            assert_even(&hits, usize::from(count));
        }
    });
}

#[test]
fn the_choice_is_the_same_again_when_nothing_is_remembered() {
    everywhere(|world| {
        let served = Served::new(1, Protocol::Tcp).active(1..=50).maglev();
        for port in 1_000..1_020 {
            let flow = world.flow(&served, port);
            let endpoint = world.choice(&served, flow.client, 0);
            flow.opens(world, flags::SYN, endpoint);
            world.datapath.connections().clear().expect("a table that can be cleared");
            flow.opens(world, flags::ACK, endpoint);
        }
    });
}
