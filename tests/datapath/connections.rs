//! Connections over time: states, lifetimes, entries that go missing and come back, and a full table.

use std::{thread, time::Duration};

use dsproxy::maps::Capacities;
use dsproxy_common::{Protocol, count::Reason, flow::FlowState};
use dsproxy_tests::{
    packet::{Packet, flags},
    prog::{Entry, Hook, Verdict, repeat},
};

use crate::world::{CAPACITIES, Expected, Flow, Served, World, everywhere, everywhere_with};

/// As many lifetimes as there are states, all of them of this many jiffies.
fn all(jiffies: u32) -> [u32; FlowState::COUNT] {
    [jiffies; FlowState::COUNT]
}

/// With a second's worth of clock ticks and some more, whatever the kernel's HZ.
fn let_a_second_pass() {
    thread::sleep(Duration::from_millis(1_050));
}

/// Two clock ticks and more: an entry with a lifetime of zero is over.
fn let_ticks_pass() {
    thread::sleep(Duration::from_millis(50));
}

fn tcp(world: &mut World, endpoints: impl IntoIterator<Item = u16>) -> Flow {
    world.flow(&Served::new(1, Protocol::Tcp).active(endpoints), 40_000)
}

#[test]
fn a_syn_that_is_sent_again_stays_with_its_backend() {
    everywhere(|world| {
        let flow = tcp(world, [1, 2, 3]);
        let backend = world.choice(&Served::new(1, Protocol::Tcp), flow.client, 0);
        flow.opens(world, flags::SYN, backend);
        flow.goes_on(world, flags::SYN, backend);
        // What new connections would get has changed meanwhile; this one is not new.
        world.serve(&Served::new(1, Protocol::Tcp).active([1, 2, 3, 4, 5]));
        flow.goes_on(world, flags::SYN, backend);
    });
}

#[test]
fn a_port_used_again_after_fin_or_rst_is_a_new_connection() {
    for (from_client, flag) in [(true, flags::FIN), (true, flags::RST), (false, flags::FIN), (false, flags::RST)] {
        everywhere(|world| {
            let flow = tcp(world, [1]);
            let old = world.endpoint(1);
            flow.opens(world, flags::SYN, old);
            flow.replies(world, flags::SYN | flags::ACK, old);
            flow.goes_on(world, flags::ACK, old);
            if from_client {
                flow.goes_on(world, flag | flags::ACK, old);
            } else {
                flow.replies(world, flag | flags::ACK, old);
            }
            // What is still on its way goes on ...
            flow.goes_on(world, flags::ACK, old);
            flow.replies(world, flags::ACK, old);
            // ... and what opens goes where new connections go now.
            world.serve(&Served::new(1, Protocol::Tcp).active([2]));
            flow.opens(world, flags::SYN, world.endpoint(2));
            flow.goes_on(world, flags::ACK, world.endpoint(2));
            flow.replies(world, flags::ACK, world.endpoint(2));
        });
    }
}

#[test]
fn a_syn_on_an_established_connection_goes_on_with_it() {
    everywhere(|world| {
        let flow = tcp(world, [1]);
        flow.opens(world, flags::SYN, world.endpoint(1));
        flow.goes_on(world, flags::ACK, world.endpoint(1));
        flow.goes_on(world, flags::SYN, world.endpoint(1));
    });
}

#[test]
fn a_connection_past_its_lifetime_is_opened_anew() {
    everywhere(|world| {
        let flow = tcp(world, [1]);
        flow.opens(world, flags::SYN, world.endpoint(1));
        flow.goes_on(world, flags::ACK, world.endpoint(1));
        world.serve(&Served::new(1, Protocol::Tcp).active([2]));
        flow.goes_on(world, flags::ACK, world.endpoint(1));
        world.datapath.set_lifetimes(all(0)).expect("settings");
        let_ticks_pass();
        flow.reply_is_not_known(world, flags::ACK, world.endpoint(1));
        flow.opens(world, flags::ACK, world.endpoint(2));
    });
}

#[test]
fn half_closed_connections_go_on_in_both_directions() {
    everywhere(|world| {
        let flow = tcp(world, [1]);
        flow.opens(world, flags::SYN, world.endpoint(1));
        flow.replies(world, flags::SYN | flags::ACK, world.endpoint(1));
        flow.goes_on(world, flags::FIN | flags::ACK, world.endpoint(1));
        flow.replies(world, flags::ACK, world.endpoint(1));
        flow.goes_on(world, flags::ACK, world.endpoint(1));
        flow.replies(world, flags::FIN | flags::ACK, world.endpoint(1));
        flow.goes_on(world, flags::ACK, world.endpoint(1));
    });
}

#[test]
fn a_connection_past_the_vip_from_a_port_just_used_through_it_is_left_alone() {
    everywhere(|world| {
        let flow = tcp(world, [1]);
        flow.opens(world, flags::SYN, world.endpoint(1));
        flow.replies(world, flags::FIN | flags::ACK, world.endpoint(1));
        flow.reply_is_not_known(world, flags::SYN | flags::ACK, world.endpoint(1));
    });
}

#[test]
fn each_state_has_its_own_lifetime() {
    everywhere(|world| {
        let udp = world.serve(&Served::new(1, Protocol::Udp).active([1]));
        let opening = tcp(world, [1]);
        let established = Flow { client: world.client(40_001), ..opening };
        let client_closed = Flow { client: world.client(40_002), ..opening };
        let backend_closed = Flow { client: world.client(40_003), ..opening };
        let closing = Flow { client: world.client(40_004), ..opening };
        let reset = Flow { client: world.client(40_005), ..opening };
        let stateless = Flow { protocol: Protocol::Udp, service: udp, ..opening };
        let start = |world: &World| {
            opening.opens(world, flags::SYN, world.endpoint(1));
            established.opens(world, flags::SYN, world.endpoint(1));
            established.goes_on(world, flags::ACK, world.endpoint(1));
            for flow in [client_closed, closing] {
                flow.opens(world, flags::SYN, world.endpoint(1));
                flow.goes_on(world, flags::FIN | flags::ACK, world.endpoint(1));
            }
            backend_closed.opens(world, flags::SYN, world.endpoint(1));
            for flow in [backend_closed, closing] {
                flow.replies(world, flags::FIN | flags::ACK, world.endpoint(1));
            }
            reset.opens(world, flags::SYN, world.endpoint(1));
            reset.goes_on(world, flags::RST, world.endpoint(1));
            stateless.opens(world, 0, world.endpoint(1));
        };
        for (over, state) in [
            (opening, FlowState::Opening),
            (established, FlowState::Established),
            (client_closed, FlowState::ClientClosed),
            (backend_closed, FlowState::BackendClosed),
            (closing, FlowState::Closing),
            (reset, FlowState::Reset),
            (stateless, FlowState::Stateless),
        ] {
            world.datapath.connections().clear().expect("a table that can be cleared");
            world.datapath.set_lifetimes(all(1_000_000)).expect("settings");
            start(world);
            let mut lifetimes = all(1_000_000);
            lifetimes[usize::from(state.number())] = 0;
            world.datapath.set_lifetimes(lifetimes).expect("settings");
            let_ticks_pass();
            for flow in [opening, established, client_closed, backend_closed, closing, reset, stateless] {
                let is_over = (flow.protocol, flow.client) == (over.protocol, over.client);
                if is_over {
                    flow.reply_is_not_known(world, flags::ACK, world.endpoint(1));
                    flow.opens(world, flags::ACK, world.endpoint(1));
                } else {
                    flow.replies(world, flags::ACK, world.endpoint(1));
                    flow.goes_on(world, flags::ACK, world.endpoint(1));
                }
            }
        }
    });
}

#[test]
fn traffic_in_either_direction_keeps_both_entries_alive() {
    everywhere(|world| {
        let flow = tcp(world, [1]);
        let jiffies = world.datapath.maps().settings().expect("settings").jiffies_per_second;
        flow.opens(world, flags::SYN, world.endpoint(1));
        flow.goes_on(world, flags::ACK, world.endpoint(1));
        // Two and a half seconds: without being refreshed in between, both entries would be over after three.
        world.datapath.set_lifetimes(all(2 * jiffies + jiffies / 2)).expect("settings");
        let_a_second_pass();
        flow.replies(world, flags::ACK, world.endpoint(1));
        let_a_second_pass();
        flow.goes_on(world, flags::ACK, world.endpoint(1));
        let_a_second_pass();
        flow.replies(world, flags::ACK, world.endpoint(1));
    });
}

#[test]
fn a_reply_entry_that_was_evicted_comes_back_within_a_second() {
    everywhere(|world| {
        let flow = tcp(world, [1]);
        let backend = world.endpoint(1);
        flow.opens(world, flags::SYN, backend);
        flow.goes_on(world, flags::ACK, backend);
        flow.replies(world, flags::ACK, backend);
        let connections = world.datapath.connections();
        assert!(connections.remove(Entry::Reply, flow.protocol, backend, flow.client).expect("a table"));
        flow.reply_is_not_known(world, flags::ACK, backend);
        let_a_second_pass();
        flow.goes_on(world, flags::ACK, backend);
        flow.replies(world, flags::ACK, backend);
    });
}

#[test]
fn a_forward_entry_that_was_evicted_is_made_anew() {
    everywhere(|world| {
        let flow = tcp(world, [1]);
        let backend = world.endpoint(1);
        flow.opens(world, flags::SYN, backend);
        flow.goes_on(world, flags::ACK, backend);
        let connections = world.datapath.connections();
        assert!(connections.remove(Entry::Forward, flow.protocol, flow.client, flow.vip).expect("a table"));
        // The backend's side goes on all the while; the client's next packet opens the connection as it was.
        flow.replies(world, flags::ACK, backend);
        flow.opens(world, flags::ACK, backend);
        flow.goes_on(world, flags::ACK, backend);
        flow.replies(world, flags::ACK, backend);
    });
}

/// Established connections that are in use outlive a flood of new ones in a table that is far too small for it, or are at
/// least made again where they were; and no new connection is refused.
#[test]
fn a_full_table_makes_room_by_what_was_used_least() {
    const ROOM: u32 = 1024;
    everywhere_with(&Capacities { connections: ROOM, ..CAPACITIES }, |world| {
        let in_use = world.flow(&Served::new(1, Protocol::Tcp).active([1]), 0);
        let program = world.datapath.program(Hook::Ingress, world.link).expect("the program");
        let before = world.datapath.counted().expect("counters");
        // Without a look at the counters for each packet, which would take longer than the test is worth.
        let send = |port, flag| {
            let input = Packet::tcp(world.client(port), in_use.vip).flags(flag).on(world.link);
            let output = input.clone().to(world.endpoint(1)).to_bytes();
            let found = repeat(program, &input.to_bytes(), 1).expect("a program that runs");
            assert_eq!((found.verdict, &found.packet), (Verdict::Pass, &output), "{world}: client port {port}");
        };
        const KEPT: u16 = 20;
        const ROUNDS: u16 = 8 * ROOM as u16 / 64;
        for round in 0..ROUNDS {
            (1..=KEPT).for_each(|port| send(port, flags::ACK));
            (0..64).for_each(|index| send(20_000 + round * 64 + index, flags::SYN));
        }
        let counted = world.datapath.counted().expect("counters").since(&before);
        let [forwarded, opened] =
            [Reason::Forwarded, Reason::Opened].map(|reason| counted.of(reason, Some(world.family)));
        assert_eq!(forwarded + opened, u64::from(ROUNDS * (64 + KEPT)), "{world}: {counted:?}");
        // Every connection in use was there most of the time, though eight times as many as there is room for came by.
        assert!(forwarded > u64::from(ROUNDS * KEPT) / 2, "{world}: {counted:?}");
        for entry in [Entry::Forward, Entry::Reply] {
            let count = world.datapath.connections().count(world.family, entry).expect("a table that can be read");
            assert!(count > ROOM as usize / 2 && count <= ROOM as usize, "{world}: {count} entries");
        }
    });
}

#[test]
fn nothing_is_remembered_of_packets_that_are_not_translated() {
    everywhere(|world| {
        world.serve(&Served::new(1, Protocol::Tcp));
        let flow = Flow { protocol: Protocol::Tcp, client: world.client(40_000), vip: world.vip(1), service: 0 };
        flow.meets(world, flags::SYN, &Expected::Dropped(Reason::NoEndpoint));
        let elsewhere = Flow { vip: world.vip(2), ..flow };
        elsewhere.meets(world, flags::SYN, &Expected::Passed(Reason::NotService));
        for entry in [Entry::Forward, Entry::Reply] {
            assert_eq!(world.datapath.connections().count(world.family, entry).expect("a table"), 0);
        }
    });
}
