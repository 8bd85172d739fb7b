//! Connections over time: states, lifetimes, entries that go missing and come back, and a full table.

use std::{net::SocketAddr, thread, time::Duration};

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

/// A connection that the client has opened and acknowledged, to a Service with one endpoint, and that endpoint.
fn established(world: &mut World) -> (Flow, SocketAddr) {
    let flow = tcp(world, [1]);
    let backend = world.endpoint(1);
    flow.opens(world, flags::SYN, backend);
    flow.goes_on(world, flags::ACK, backend);
    (flow, backend)
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
            // The old endpoint would still do for what goes on, but the connection is a new one.
            world.serve(&Served::new(1, Protocol::Tcp).active([1, 2, 3]));
            let new = world.choice(&Served::new(1, Protocol::Tcp), flow.client, 0);
            flow.opens(world, flags::SYN, new);
            flow.replies(world, flags::SYN | flags::ACK, new);
            flow.goes_on(world, flags::ACK, new);
            flow.replies(world, flags::ACK, new);
        });
    }
}

#[test]
fn what_is_still_on_its_way_after_a_fin_goes_on() {
    everywhere(|world| {
        let (flow, backend) = established(world);
        flow.goes_on(world, flags::FIN | flags::ACK, backend);
        flow.replies(world, flags::ACK | flags::PSH, backend);
        flow.goes_on(world, flags::ACK, backend);
        flow.replies(world, flags::FIN | flags::ACK, backend);
        flow.goes_on(world, flags::ACK, backend);
        flow.replies(world, flags::FIN | flags::ACK, backend);
    });
}

#[test]
fn a_reset_that_both_sides_ignore_ends_nothing() {
    everywhere(|world| {
        let (flow, backend) = established(world);
        for from_client in [true, false] {
            flow.replies(world, flags::RST, backend);
            if from_client {
                flow.goes_on(world, flags::ACK, backend);
            } else {
                flow.replies(world, flags::ACK, backend);
            }
            // Established again: even a SYN stays where it is.
            flow.goes_on(world, flags::SYN, backend);
        }
    });
}

/// A client that has just used a port through the VIP may use it again past it; the backend's answer is not for the VIP then.
#[test]
fn a_backend_that_accepts_after_the_end_answers_for_itself() {
    everywhere(|world| {
        let (flow, backend) = established(world);
        flow.goes_on(world, flags::FIN | flags::ACK, backend);
        flow.replies(world, flags::FIN | flags::ACK, backend);
        flow.reply_is_not_known(world, flags::SYN | flags::ACK, backend);
        // Nor does anything that follows belong to what is over.
        flow.reply_is_not_known(world, flags::ACK, backend);
    });
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
        world.datapath.shorten_lifetimes(all(0)).expect("settings");
        let_ticks_pass();
        flow.reply_is_not_known(world, flags::ACK, world.endpoint(1));
        flow.opens(world, flags::ACK, world.endpoint(2));
    });
}

#[test]
fn each_state_has_its_own_lifetime() {
    use FlowState::{Answered, BackendClosed, ClientClosed, Closing, Established, Opening, Reset, Stateless};
    const STATES: [FlowState; 8] =
        [Opening, Answered, Established, ClientClosed, BackendClosed, Closing, Reset, Stateless];
    const FINISH: u8 = flags::FIN | flags::ACK;

    everywhere(|world| {
        let (tcp, udp) = (tcp(world, [1]), world.flow(&Served::new(1, Protocol::Udp).active([1]), 40_000));
        let flow = |state: FlowState| match state {
            Stateless => udp,
            state => Flow { client: crate::world::client(tcp.family(), 40_000 + state.number()), ..tcp },
        };
        let bring_to = |world: &World, state: FlowState| {
            let (flow, backend) = (flow(state), world.endpoint(1));
            flow.opens(world, flags::SYN, backend);
            if !matches!(state, Opening | Stateless) {
                flow.replies(world, flags::SYN | flags::ACK, backend);
            }
            if matches!(state, Established | ClientClosed | BackendClosed | Closing | Reset) {
                flow.goes_on(world, flags::ACK, backend);
            }
            if matches!(state, ClientClosed | Closing) {
                flow.goes_on(world, FINISH, backend);
            }
            if matches!(state, BackendClosed | Closing) {
                flow.replies(world, FINISH, backend);
            }
            if state == Reset {
                flow.goes_on(world, flags::RST, backend);
            }
        };
        for over in STATES {
            world.datapath.connections().clear().expect("a table that can be cleared");
            world.datapath.set_lifetimes(all(1_000_000)).expect("settings");
            for state in STATES {
                bring_to(world, state);
            }
            let mut lifetimes = all(1_000_000);
            lifetimes[usize::from(over.number())] = 0;
            world.datapath.shorten_lifetimes(lifetimes).expect("settings");
            let_ticks_pass();
            for state in STATES {
                if state == over {
                    flow(state).reply_is_not_known(world, flags::ACK, world.endpoint(1));
                    flow(state).opens(world, flags::ACK, world.endpoint(1));
                } else {
                    // Anything but another RST would take the reset back.
                    let flag = if state == Reset { flags::RST } else { flags::ACK };
                    // Only the last packet may bring the connection to another state, which may be over at the next tick.
                    if state == Opening {
                        flow(state).goes_on(world, flag, world.endpoint(1));
                        flow(state).replies(world, flag, world.endpoint(1));
                    } else {
                        flow(state).replies(world, flag, world.endpoint(1));
                        flow(state).goes_on(world, flag, world.endpoint(1));
                    }
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
        world.let_pass(1);
        flow.replies(world, flags::ACK, world.endpoint(1));
        world.let_pass(1);
        flow.goes_on(world, flags::ACK, world.endpoint(1));
        world.let_pass(1);
        flow.replies(world, flags::ACK, world.endpoint(1));
    });
}

#[test]
fn a_reply_entry_that_was_evicted_comes_back_within_a_second() {
    everywhere(|world| {
        let (flow, backend) = established(world);
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
        let (flow, backend) = established(world);
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
    everywhere_with(&Capacities { connections: ROOM, brief_connections: ROOM, ..CAPACITIES }, |world| {
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
fn a_flood_of_openings_leaves_established_connections_alone() {
    const ROOM: u32 = 1024;
    everywhere_with(&Capacities { connections: ROOM, brief_connections: ROOM, ..CAPACITIES }, |world| {
        let flow = world.flow(&Served::new(1, Protocol::Tcp).active([1]), 0);
        let backend = world.endpoint(1);
        let kept: Vec<Flow> = (1..=20).map(|port| Flow { client: world.client(port), ..flow }).collect();
        for flow in &kept {
            flow.opens(world, flags::SYN, backend);
            flow.replies(world, flags::SYN | flags::ACK, backend);
            flow.goes_on(world, flags::ACK, backend);
        }
        let program = world.datapath.program(Hook::Ingress, world.link).expect("the program");
        for port in 20_000..20_000 + 8 * ROOM as u16 {
            let syn = Packet::tcp(world.client(port), flow.vip).flags(flags::SYN).on(world.link);
            let found = repeat(program, &syn.to_bytes(), 1).expect("a program that runs");
            assert_eq!(found.verdict, Verdict::Pass, "{world}: client port {port}");
        }
        for flow in &kept {
            flow.goes_on(world, flags::ACK, backend);
            flow.replies(world, flags::ACK, backend);
        }
    });
}

#[test]
fn nothing_is_remembered_of_packets_that_are_not_translated() {
    everywhere(|world| {
        let flow = world.flow(&Served::new(1, Protocol::Tcp), 40_000);
        flow.is_refused(world, flags::SYN);
        let elsewhere = Flow { vip: world.vip(2), ..flow };
        elsewhere.meets(world, flags::SYN, &Expected::Passed(Reason::NotService));
        for entry in [Entry::Forward, Entry::Reply] {
            assert_eq!(world.datapath.connections().count(world.family, entry).expect("a table"), 0);
        }
    });
}
