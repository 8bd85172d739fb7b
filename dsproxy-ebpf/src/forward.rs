//! Where a packet goes next when the stack is passed by: the kernel's routing is asked once for a connection, and its answer kept
//! with the egress entry for as long as user space vouches for it (`dsproxy_common::next_hop`).

use core::hint::cold_path;

use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_fib_lookup};
use dsproxy_common::{
    Address, IpFamily,
    flow::{EgressEntry, FlowKey},
    next_hop::{Mac, NeighbourKey, NextHop, Routing, XdpDevice},
};

use crate::{
    family::Family,
    maps,
    packet::{FrameContext, Linear, Short, View},
    parse::link::ETHERNET_HEADER,
    track::Found,
};

/// What the kernel's routing is asked and answers: `struct bpf_fib_lookup` (include/uapi/linux/bpf.h).
#[repr(C)]
struct Lookup {
    family: u8,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
    /// The length of the IP packet; in the answer what the route takes at most.
    length: u16,
    /// The index of the device that the packet came by; in the answer the one that it leaves by.
    device: u32,
    class: u32,
    source: [u32; 4],
    destination: [u32; 4],
    vlan: u32,
    answered_source: Mac,
    answered_destination: Mac,
}

const _: () = assert!(size_of::<Lookup>() == 64);

/// How the address families are numbered there.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The neighbour is not known yet: the kernel finds it when the stack sends it something.
const NO_NEIGHBOUR: i64 = 7;

/// Where packets of `key`, as the stack would see them, go next; none if it is the stack that has to send them.
#[inline(always)]
pub(crate) fn next_hop<F: Family, C: FrameContext>(
    context: &C,
    key: &FlowKey<F::Address>,
    entry: Found<EgressEntry<F::Address>>,
    routing: &Routing,
    now: u32,
) -> Option<NextHop> {
    let arrival = arrival(context.linear()).ok()?;
    let mut next = entry.next_hop();
    if next.epoch != routing.epoch || next.arrival != arrival {
        cold_path();
        next = find::<F, C>(context, key, arrival, routing.epoch)?;
        entry.set_next_hop(&next);
        let neighbour = NeighbourKey { device: next.device, address: neighbour(&next.addresses), reserved: 0 };
        // Should there be no room, nobody asks the neighbour whether it is still there.
        let _ = maps::NEIGHBOURS.insert(neighbour, now, BPF_ANY.into());
    }
    let length = context.length().wrapping_sub(ETHERNET_HEADER as u32);
    (next.device != STACK && length <= next.mtu.into()).then_some(next)
}

/// In place of a device: packets go on by the stack.
const STACK: u32 = 0;

/// Asks the kernel's routing. None if the answer may soon be another.
#[inline(always)]
fn find<F: Family, C: FrameContext>(
    context: &C,
    key: &FlowKey<F::Address>,
    arrival: Mac,
    epoch: u32,
) -> Option<NextHop> {
    // A device that was told to take in everything also takes what is for another host.
    if device(context.device())?.address != arrival {
        return None;
    }
    let mut lookup = Lookup {
        family: match F::FAMILY {
            IpFamily::V4 => AF_INET,
            IpFamily::V6 => AF_INET6,
        },
        protocol: key.protocol as u8,
        source_port: key.source_port.wire(),
        destination_port: key.destination_port.wire(),
        length: 0,
        device: context.device(),
        class: 0,
        source: [0; 4],
        destination: [0; 4],
        vlan: 0,
        answered_source: [0; 3],
        answered_destination: [0; 3],
    };
    let (source, destination) = (key.source.words(), key.destination.words());
    let mut index = 0;
    while index < source.len() && index < destination.len() && index < lookup.source.len() {
        lookup.source[index] = source[index];
        lookup.destination[index] = destination[index];
        index += 1;
    }
    // SAFETY: the context that the kernel gave us, and a structure of the size that is told.
    let answer = unsafe { bpf_fib_lookup(context.as_ptr(), (&raw mut lookup).cast(), size_of::<Lookup>() as i32, 0) };
    if answer == NO_NEIGHBOUR {
        return None;
    }
    let is_same = lookup.device == context.device();
    let sends = answer == 0 && device(lookup.device).is_some_and(|device| device.sends(is_same));
    let Lookup { answered_source: [s0, s1, s2], answered_destination: [d0, d1, d2], .. } = lookup;
    Some(NextHop {
        epoch,
        device: if sends { lookup.device } else { STACK },
        addresses: [word(d0, d1), word(d2, s0), word(s1, s2)],
        arrival,
        mtu: lookup.length,
    })
}

#[inline(always)]
fn device(index: u32) -> Option<XdpDevice> {
    // SAFETY: copied at once; user space replaces a device by a new element, and rarely.
    unsafe { maps::XDP_DEVICES.get(index) }.copied()
}

/// Two halves as they stand in memory one behind the other.
#[inline(always)]
fn word(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// The destination in the two addresses of a frame.
#[inline(always)]
fn neighbour([first, second, _]: &[u32; 3]) -> Mac {
    let ([a, b, c, d], [e, f, ..]) = (first.to_ne_bytes(), second.to_ne_bytes());
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f])]
}

/// Which address a frame was sent to.
#[inline(always)]
fn arrival(linear: Linear) -> Result<Mac, Short> {
    let header = View::<ETHERNET_HEADER>::at(linear, 0)?;
    Ok([header.read::<u16, 0>(), header.read::<u16, 2>(), header.read::<u16, 4>()])
}

/// Gives a frame the addresses that it leaves with.
#[inline(always)]
pub(crate) fn address(linear: Linear, next: &NextHop) -> Result<(), Short> {
    let header = View::<ETHERNET_HEADER>::at(linear, 0)?;
    let [first, second, third] = next.addresses;
    header.write::<u32, 0>(first);
    header.write::<u32, 4>(second);
    header.write::<u32, 8>(third);
    Ok(())
}
