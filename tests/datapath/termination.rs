//! Endpoints that go, come back or turn into others, and Services that are deleted: which connections stay where they are.

use dsproxy::{
    diff::filter::filter_bit,
    maps::{BackendRecord, FilterOf, FrontendAddress, Write},
};
use dsproxy_common::{Protocol, count::Reason, service::BackendState};
use dsproxy_tests::packet::flags;

use crate::world::{Expected, Flow, Served, everywhere};

/// The client's port.
const CLIENT: u16 = 40_000;

fn served(protocol: Protocol) -> Served {
    Served::new(1, protocol)
}

#[test]
fn an_endpoint_that_terminates_keeps_its_connections_and_takes_no_new_ones() {
    everywhere(|world| {
        let (old, new) = (world.endpoint(1), world.endpoint(2));
        let established = world.flow(&served(Protocol::Tcp).active([1]), CLIENT);
        established.opens(world, flags::SYN, old);
        established.goes_on(world, flags::ACK, old);
        let opening = Flow { client: world.client(CLIENT + 1), ..established };
        opening.opens(world, flags::SYN, old);
        let acknowledged = Flow { client: world.client(CLIENT + 2), ..established };
        acknowledged.opens(world, flags::SYN, old);

        world.serve(&served(Protocol::Tcp).active([2]).draining([1]));
        established.goes_on(world, flags::ACK, old);
        established.replies(world, flags::ACK, old);
        acknowledged.goes_on(world, flags::ACK, old);
        // A SYN asks for a new connection even where one was about to open: it may have got no answer.
        opening.opens(world, flags::SYN, new);
        Flow { client: world.client(CLIENT + 3), ..established }.opens(world, flags::SYN, new);
    });
}

#[test]
fn udp_stays_with_an_endpoint_that_terminates_until_it_is_gone() {
    everywhere(|world| {
        let (old, new) = (world.endpoint(1), world.endpoint(2));
        let flow = world.flow(&served(Protocol::Udp).active([1]), CLIENT);
        flow.opens(world, 0, old);
        world.serve(&served(Protocol::Udp).active([2]).draining([1]));
        flow.goes_on(world, 0, old);
        world.serve(&served(Protocol::Udp).active([2]));
        flow.opens(world, 0, new);
        flow.goes_on(world, 0, new);
        flow.replies(world, 0, new);
    });
}

#[test]
fn tcp_goes_on_to_an_endpoint_that_is_gone_and_a_new_connection_does_not() {
    everywhere(|world| {
        let (old, new) = (world.endpoint(1), world.endpoint(2));
        let established = world.flow(&served(Protocol::Tcp).active([1]), CLIENT);
        established.opens(world, flags::SYN, old);
        established.goes_on(world, flags::ACK, old);
        world.serve(&served(Protocol::Tcp).active([2]));
        established.goes_on(world, flags::ACK, old);
        established.replies(world, flags::ACK, old);
        established.opens(world, flags::SYN, new);
    });
}

/// An endpoint that is gone may still reset what it had, after the client has gone on to another.
#[test]
fn a_reset_from_the_backend_before_does_not_end_the_connection_to_the_next() {
    everywhere(|world| {
        let (old, new) = (world.endpoint(1), world.endpoint(2));
        let flow = world.flow(&served(Protocol::Tcp).active([1]), CLIENT);
        flow.opens(world, flags::SYN, old);
        flow.goes_on(world, flags::ACK, old);
        world.serve(&served(Protocol::Tcp).active([2]));
        flow.opens(world, flags::SYN, new);
        flow.replies(world, flags::RST, old);
        // The same SYN again, of a connection that is opening still.
        flow.goes_on(world, flags::SYN, new);
        flow.replies(world, flags::SYN | flags::ACK, new);
    });
}

#[test]
fn without_any_endpoint_left_udp_is_dropped_and_established_tcp_goes_on() {
    everywhere(|world| {
        let backend = world.endpoint(1);
        let tcp = world.flow(&served(Protocol::Tcp).active([1]), CLIENT);
        let udp = world.flow(&served(Protocol::Udp).active([1]), CLIENT);
        tcp.opens(world, flags::SYN, backend);
        tcp.goes_on(world, flags::ACK, backend);
        udp.opens(world, 0, backend);
        world.serve(&served(Protocol::Tcp));
        world.serve(&served(Protocol::Udp));
        tcp.goes_on(world, flags::ACK, backend);
        tcp.is_refused(world, flags::SYN);
        udp.is_refused(world, 0);
        // The same endpoint comes back: what was open goes on, UDP included.
        world.serve(&served(Protocol::Tcp).active([1]));
        world.serve(&served(Protocol::Udp).active([1]));
        tcp.goes_on(world, flags::ACK, backend);
        udp.goes_on(world, 0, backend);
    });
}

#[test]
fn an_id_that_means_another_endpoint_now_is_noticed() {
    everywhere(|world| {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let flow = world.flow(&served(protocol).active([1]), CLIENT);
            flow.opens(world, flags::SYN, world.endpoint(1));
            flow.goes_on(world, flags::ACK, world.endpoint(1));
            // As the daemon does when it has no other id left: the same id, the next generation.
            let backends = world.datapath.maps().backends().expect("backends");
            let (family, id, held) = *backends
                .iter()
                .find(|(family, _, held)| {
                    *family == world.family && held.service == flow.service && held.state == BackendState::Active
                })
                .expect("the backend");
            let record = BackendRecord { address: world.endpoint(7).ip(), generation: held.generation + 1, ..held };
            let named = FrontendAddress { address: record.address, port: record.port, protocol };
            let bit = filter_bit(&named);
            let (filter, index) = (FilterOf::Backends, bit.word());
            world
                .datapath
                .write(&[
                    Write::FilterWord { family, filter, index, value: u64::MAX },
                    Write::Backend { family, id, record },
                ])
                .expect("a write");
            flow.opens(world, flags::ACK, world.endpoint(7));
            flow.goes_on(world, flags::ACK, world.endpoint(7));
            flow.replies(world, flags::ACK, world.endpoint(7));
            world.datapath.write(&[Write::Backend { family, id, record: held }]).expect("a write");
            world.withdraw(&served(protocol).active([1]));
            world.datapath.connections().clear().expect("a table that can be cleared");
        }
    });
}

#[test]
fn a_deleted_service_keeps_its_established_tcp_and_nothing_else() {
    everywhere(|world| {
        let backend = world.endpoint(1);
        let tcp = world.flow(&served(Protocol::Tcp).active([1]), CLIENT);
        let udp = world.flow(&served(Protocol::Udp).active([1]), CLIENT);
        tcp.opens(world, flags::SYN, backend);
        tcp.goes_on(world, flags::ACK, backend);
        udp.opens(world, 0, backend);
        world.withdraw(&served(Protocol::Tcp).active([1]));
        world.withdraw(&served(Protocol::Udp).active([1]));

        tcp.goes_on(world, flags::ACK, backend);
        tcp.replies(world, flags::ACK, backend);
        udp.meets(world, 0, &Expected::Passed(Reason::NotService));
        tcp.meets(world, flags::SYN, &Expected::Passed(Reason::NotService));
        let other = Flow { client: world.client(CLIENT + 1), ..tcp };
        other.meets(world, flags::ACK, &Expected::Passed(Reason::NotService));
    });
}

#[test]
fn a_service_deleted_and_made_again_with_other_endpoints_serves_them() {
    everywhere(|world| {
        let flow = world.flow(&served(Protocol::Udp).active([1]), CLIENT);
        flow.opens(world, 0, world.endpoint(1));
        world.withdraw(&served(Protocol::Udp).active([1]));
        let service = world.serve(&served(Protocol::Udp).active([2]));
        Flow { service, ..flow }.opens(world, 0, world.endpoint(2));
    });
}

/// Ports of one Service may swap their numbers: the frontend passes to another service port in one write, and no endpoint goes.
#[test]
fn udp_follows_its_frontend_to_another_service_port_within_a_second() {
    everywhere(|world| {
        let flow = world.flow(&Served::new(1, Protocol::Udp).active([1]), CLIENT);
        let other = Served::new(2, Protocol::Udp).active([2]);
        let service = world.serve(&other);
        flow.opens(world, 0, world.endpoint(1));
        let frontends = world.datapath.maps().frontends().expect("frontends that can be read");
        let wanted = other.frontend(world.family);
        let (_, frontend) = *frontends.iter().find(|(held, _)| *held == wanted).expect("the frontend");
        let address = Served::new(1, Protocol::Udp).frontend(world.family);
        world.datapath.write(&[Write::Frontend { address, frontend }]).expect("a write");
        std::thread::sleep(std::time::Duration::from_millis(1_050));
        let flow = Flow { service, ..flow };
        flow.opens(world, 0, world.endpoint(2));
        flow.replies(world, 0, world.endpoint(2));
        world.withdraw(&other);
    });
}

/// Slots are written while packets flow: what they name may already be another's or gone. The next slot serves.
#[test]
fn a_slot_that_names_what_it_should_not_is_passed_over() {
    everywhere(|world| {
        let served = Served::new(1, Protocol::Tcp).active([1, 2, 3]);
        let flow = world.flow(&served, CLIENT);
        let [wrong, right] = [0, 1].map(|step| world.choice(&served, flow.client, step));
        let backends = world.datapath.maps().backends().expect("backends");
        let (family, id, held) = *backends
            .iter()
            .find(|(_, _, held)| {
                (held.address, held.port, held.service) == (wrong.ip(), wrong.port(), flow.service)
                    && held.state == BackendState::Active
            })
            .expect("the backend");
        for record in [
            BackendRecord { state: BackendState::Gone, ..held },
            BackendRecord { state: BackendState::Draining, ..held },
            BackendRecord { service: flow.service + 1, ..held },
        ] {
            world.datapath.connections().clear().expect("a table that can be cleared");
            world.datapath.write(&[Write::Backend { family, id, record }]).expect("a write");
            flow.opens(world, flags::SYN, right);
        }
        world.datapath.write(&[Write::Backend { family, id, record: held }]).expect("a write");
    });
}
