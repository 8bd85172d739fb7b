//! What a program hears of the other end: the VIP, when that is what it named.

use dsproxy_common::{count::Reason, flow::FlowKey, socket::SocketEntry};

use super::{
    Verdict,
    context::{Place, SocketContext},
    key, table,
};
use crate::{count, family::Family, lookup, observe};

/// The source of a datagram. Only what comes from a backend that this very socket was led to becomes the VIP.
#[inline(always)]
pub(super) fn source<S: Place>(context: SocketContext) -> Verdict {
    let mut sender = FlowKey::default();
    S::read(context, &mut sender.source);
    sender.source_port = context.port();
    let Some(protocol) = context.protocol() else { return Verdict::GoOn };
    sender.protocol = protocol.number().into();
    // Most datagrams come from nobody's backend, which is told without asking for the socket.
    if lookup::may_be_from_backend::<S::Family>(&sender) && to_vip::<S>(context, sender.source).is_some() {
        count::socket(Reason::Replied, <S::Family as Family>::FAMILY);
        observe::heard::<S>(context, &sender);
    }
    Verdict::GoOn
}

/// The other end of a connected socket.
#[inline(always)]
pub(super) fn peer<S: Place>(context: SocketContext) -> Verdict {
    let mut address = <S::Family as Family>::Address::default();
    S::read(context, &mut address);
    // Not looked up in the filter: TCP may outlive its backend's bit there.
    to_vip::<S>(context, address);
    Verdict::GoOn
}

/// Puts the VIP in place of a backend's `address`.
#[inline(always)]
fn to_vip<S: Place>(context: SocketContext, address: <S::Family as Family>::Address) -> Option<()> {
    let key = key::<S::Family>(context.cookie(), address, context.port(), context.protocol()?);
    // SAFETY: copied at once. An entry of a socket is written by that socket's own calls alone.
    let SocketEntry { vip, vip_port, .. } = *unsafe { table::<S::Family>(key.protocol).get(key) }?;
    context.replace::<S>(&vip, vip_port);
    Some(())
}
