//! TCP whose backend is gone: it is reset if that is wanted.

use dsproxy_common::{Protocol, count::Reason, settings::SettingFlags};
use dsproxy_tests::{
    packet::{Packet, Tag, flags},
    prog::Hook,
};

use crate::world::{Expected, Flow, Served, World, everywhere};

const CLIENT: u16 = 40_000;

/// An established connection of whose Service one endpoint is left, but not the connection's.
fn left_behind(world: &mut World) -> Flow {
    let flow = world.flow(&Served::new(1, Protocol::Tcp).active([1]), CLIENT);
    let backend = world.endpoint(1);
    flow.opens(world, flags::SYN, backend);
    flow.replies(world, flags::SYN | flags::ACK, backend);
    flow.goes_on(world, flags::ACK, backend);
    world.serve(&Served::new(1, Protocol::Tcp).active([2]));
    flow
}

#[test]
fn it_goes_on_unless_a_reset_is_wanted() {
    everywhere(|world| {
        let flow = left_behind(world);
        flow.goes_on(world, flags::ACK, world.endpoint(1));
        world.configure(|settings| settings.flags |= SettingFlags::RESET_GONE);
        let data = Packet::tcp(flow.client, flow.vip).payload(b"are you there?");
        let answer = |packet: &Packet| Expected::Answered(Some(flow.service), Reason::BackendGone, packet.reset());
        world.send("data", Hook::Ingress, &data, &answer(&data));
        let fin = data.clone().flags(flags::FIN | flags::ACK).numbers(u32::MAX, u32::MAX - 3);
        world.send("FIN", Hook::Ingress, &fin, &answer(&fin));
        // A device's padding is no data, and the sequence number wraps round.
        for (size, options) in [(0, &[][..]), (1, &[1, 1, 1, 1]), (1_000, &[])] {
            let odd = Packet::tcp(flow.client, flow.vip).flags(flags::FIN).payload(&vec![3; size]).tcp_options(options);
            let odd = odd.numbers(u32::MAX - 5, 0);
            world.send("without ACK", Hook::Ingress, &odd, &answer(&odd));
        }
        if world.link == dsproxy_tests::packet::Link::Ethernet {
            let tagged = data.tag(Tag::Customer(7));
            world.send("in a VLAN", Hook::Ingress, &tagged, &answer(&tagged));
        }
    });
}

#[test]
fn a_new_connection_from_the_same_port_goes_to_another_backend() {
    everywhere(|world| {
        let flow = left_behind(world);
        world.configure(|settings| settings.flags |= SettingFlags::RESET_GONE);
        flow.opens(world, flags::SYN, world.endpoint(2));
    });
}

#[test]
fn resets_are_not_answered_and_count_as_refusals() {
    everywhere(|world| {
        let flow = left_behind(world);
        world.configure(|settings| settings.flags |= SettingFlags::RESET_GONE);
        flow.is_dropped(world, flags::RST, Reason::Unanswerable);
        world.configure(|settings| settings.refusals_per_second = 0);
        flow.is_dropped(world, flags::ACK, Reason::RefusalLimit);
    });
}
