//! Where a packet goes next without the stack: where the stack sent the one before. tc notes it on the way out, with the connection's
//! egress entry, and XDP does alike for as long as user space vouches for it (`dsproxy_common::next_hop`).

use core::hint::cold_path;

use dsproxy_common::{
    flow::EgressEntry,
    next_hop::{Mac, NextHop, XdpDevice},
};

use crate::{
    maps,
    packet::{BufferContext, FrameContext, Linear, Short, View},
    parse::link::ETHERNET_HEADER,
    track::Found,
};

/// Notes, with its entry `found`, how a packet leaves whose IP header stands at `l3`.
#[inline(always)]
pub(crate) fn note<A: Copy, C: BufferContext>(context: &C, l3: usize, found: Found<EgressEntry<A>>) {
    let Some(routing) = maps::ROUTING.get(0) else { return };
    // Of no epoch, nobody asks for it.
    if routing.epoch == 0 || found.noted() == routing.epoch || l3 != ETHERNET_HEADER {
        return;
    }
    cold_path();
    // A tag that the device is to write does not stand in the frame: XDP would send it on without.
    if context.has_tag() {
        return;
    }
    let Ok(header) = View::<ETHERNET_HEADER>::at(context.linear(), 0) else { return };
    let index = context.device();
    let XdpDevice { flags, mtu, .. } = device(index).unwrap_or_default();
    found.set_next_hop(&NextHop {
        epoch: routing.epoch,
        device: index,
        ingress: context.ingress_device(),
        addresses: [header.read::<u32, 0>(), header.read::<u32, 4>(), header.read::<u32, 8>()],
        mtu: mtu.min(u16::MAX.into()) as u16,
        flags,
    });
}

/// Where a frame to `arrival` goes next by what was noted in `entry` in this epoch; none if it is the stack that has to send it.
#[inline(always)]
pub(crate) fn next_hop<A: Copy, C: FrameContext>(
    context: &C,
    entry: Found<EgressEntry<A>>,
    arrival: Mac,
    epoch: u32,
) -> Option<NextHop> {
    let next = entry.next_hop(epoch)?;
    let is_same = next.device == context.device();
    if next.ingress != context.device() || !next.takes(is_same) {
        return None;
    }
    // A device that was told to take in everything also takes what is for another host.
    let own = if is_same { next.source() } else { device(context.device())?.address };
    (own == arrival).then_some(next)
}

#[inline(always)]
fn device(index: u32) -> Option<XdpDevice> {
    // SAFETY: copied at once; user space replaces a device by a new element, and rarely.
    unsafe { maps::XDP_DEVICES.get(index) }.copied()
}

/// Which address a frame was sent to.
#[inline(always)]
pub(crate) fn arrival(linear: Linear) -> Result<Mac, Short> {
    let header = View::<ETHERNET_HEADER>::at(linear, 0)?;
    Ok([header.read::<u16, 0>(), header.read::<u16, 2>(), header.read::<u16, 4>()])
}

/// Gives a frame the addresses that it leaves with, as they stand in a [`NextHop`].
#[inline(always)]
pub(crate) fn address(linear: Linear, [first, second, third]: [u32; 3]) -> Result<(), Short> {
    let header = View::<ETHERNET_HEADER>::at(linear, 0)?;
    header.write::<u32, 0>(first);
    header.write::<u32, 4>(second);
    header.write::<u32, 8>(third);
    Ok(())
}
