//! Where a program says that packets are to go: a VIP becomes a backend. The same lookup and choice as for packets.

use aya_ebpf::bindings::BPF_ANY;
use dsproxy_common::{
    Address as _, Port, Protocol,
    count::Reason,
    flow::FlowKey,
    hash,
    service::{Backend, BackendState, Frontend, FrontendFlags, SLOT_TRIES},
    settings::{SettingFlags, Settings},
    socket::{SocketEntry, SocketKey},
};

use super::{
    Call, Verdict,
    context::{Place, SocketContext},
    key, table,
};
use crate::{
    clock, count,
    family::Family,
    lookup, maps, observe,
    outcome::Untranslated,
    pick::{self, Candidates},
    track::masquerade,
};

/// The errors of a refused call (include/uapi/asm-generic/errno.h).
const ECONNREFUSED: i32 = 111;
const ENOBUFS: i32 = 105;

/// Leads a socket, or a datagram of it, to a backend.
///
/// Where a packet would be dropped or answered with an error, the call fails at once: a program cannot be left waiting for
/// an answer here as it would be by a packet dropped, and to be told is kinder.
#[inline(always)]
pub(super) fn translate<S: Place>(context: SocketContext, call: Call) -> Verdict {
    let outcome = towards_backend::<S>(context, call);
    let (Ok(reason) | Err(Untranslated { reason, .. })) = outcome;
    let error = match reason {
        Reason::NotService => return Verdict::GoOn,
        Reason::TableRefused => ENOBUFS,
        _ => ECONNREFUSED,
    };
    count::socket(reason, <S::Family as Family>::FAMILY);
    observe::call::<S>(context, reason);
    let Err(Untranslated { service, .. }) = outcome else { return Verdict::GoOn };
    count::drop(service, reason);
    context.answer(error);
    Verdict::Refuse
}

#[inline(always)]
fn towards_backend<S: Place>(context: SocketContext, call: Call) -> Result<Reason, Untranslated> {
    let settings = maps::SETTINGS.get(0).ok_or(Reason::NotService)?;
    let protocol = context.protocol().ok_or(Reason::NotService)?;
    let mut flow = FlowKey::default();
    S::read(context, &mut flow.destination);
    flow.destination_port = context.port();
    flow.protocol = protocol.number().into();
    // Loopback stays what it is, also where a NodePort is of all addresses.
    if !<S::Family as Family>::is_host(&flow.destination) {
        return Err(Reason::NotService.into());
    }
    // Nobody serves at port 0. Resolvers connect a UDP socket there to learn which source address the kernel would take, and
    // sort what they have found by that (`getaddrinfo`, RFC 6724): a refusal would say that there is no way to the address.
    if flow.destination_port == Port::default() {
        return Err(Reason::NotService.into());
    }
    let namespace = context.namespace();
    let is_host = namespace == settings.host_namespace;
    if !is_host && settings.flags & SettingFlags::ALL_SOCKETS == 0 {
        return Err(Reason::NotService.into());
    }
    let frontend =
        if lookup::may_be_frontend::<S::Family>(&flow) { lookup::frontend::<S::Family>(&flow) } else { None };
    let Some(frontend) = frontend else {
        // Every datagram of a connected IPv6 socket to an IPv4 address comes here with the address it is connected to
        // (`udpv6_sendmsg` in net/ipv6/udp.c): that its program names nothing is not to name the backend.
        if call == Call::Connect || !context.is_connected() {
            forget_backend::<S>(context, &flow, protocol);
        }
        return Err(lookup::without_frontend::<S::Family>(&flow, settings, Reason::NotService).into());
    };
    let cookie = context.cookie();
    let vip = key::<S::Family>(cookie, flow.destination, flow.destination_port, protocol);
    let of_service = Untranslated::of(frontend.service);
    if call == Call::Send
        && context.is_connected()
        && let Some(outcome) = of_connected::<S>(context, &vip, is_host)
    {
        return outcome.map_err(of_service);
    }
    if call == Call::Send
        && let Some((id, backend)) = last_backend::<S::Family>(&vip, &frontend)
    {
        lead::<S>(context, &vip, (id, backend), frontend.service).map_err(of_service)?;
        return Ok(Reason::Forwarded);
    }
    let is_bound = client::<S>(context, is_host, namespace, &mut flow.source);
    if frontend.has(FrontendFlags::SOURCE_RANGES) {
        // The source of a pod's packets is known when there are packets: they are looked at where they enter.
        if !is_bound && !is_host {
            return Err(Reason::NotService.into());
        }
        if !lookup::is_in_source_ranges::<S::Family>(frontend.service, flow.source) {
            return Err(of_service(Reason::SourceRange));
        }
    }
    let (id, backend) = choose::<S::Family>(&flow, &frontend, cookie, settings).map_err(of_service)?;
    lead::<S>(context, &vip, (id, backend), frontend.service).map_err(of_service)?;
    if call == Call::Send {
        // The same under the VIP, for the next datagram.
        let entry = entry(&vip, (id, backend), frontend.service);
        let _ = table::<S::Family>(vip.protocol).insert(vip, entry, BPF_ANY.into());
    }
    count::socket_opened(frontend.service);
    Ok(Reason::Opened)
}

/// What becomes of a datagram to the VIP of a connected socket, which hears nobody but its peer. None where it is led as any other: no
/// answer will reach it, nor did it ask for one there.
#[inline(always)]
fn of_connected<S: Place>(
    context: SocketContext,
    vip: &SocketKey<<S::Family as Family>::Address>,
    is_host: bool,
) -> Option<Result<Reason, Reason>> {
    let mut peer = *vip;
    S::read_peer(context, &mut peer.address);
    peer.port = context.peer_port();
    // SAFETY: compared at once. An entry of a socket is written by that socket's own calls alone.
    let is_led = unsafe { table::<S::Family>(peer.protocol).get(peer) }
        .is_some_and(|held| held.vip == vip.address && held.vip_port == vip.port);
    if is_led {
        context.replace::<S>(&peer.address, peer.port);
        return Some(Ok(Reason::Forwarded));
    }
    // Connected before there were these programs, or left to those of packets then: answers come from the VIP.
    (!is_host && peer == *vip).then_some(Err(Reason::NotService))
}

/// A socket that goes to a backend on its own account hears the backend's own address from then on.
#[inline(always)]
fn forget_backend<S: Place>(
    context: SocketContext,
    flow: &FlowKey<<S::Family as Family>::Address>,
    protocol: Protocol,
) {
    if lookup::may_be_for_backend::<S::Family>(flow) {
        let key = key::<S::Family>(context.cookie(), flow.destination, flow.destination_port, protocol);
        let _ = table::<S::Family>(key.protocol).remove(key);
    }
}

/// The backend that this socket's datagrams to the VIP went to, until it is gone: as the packets of a UDP flow do, they follow
/// one that takes no new connections, too.
#[inline(always)]
fn last_backend<F: Family>(
    vip: &SocketKey<F::Address>,
    frontend: &Frontend,
) -> Option<(u32, &'static Backend<F::Address>)> {
    // SAFETY: copied at once. An entry of a socket is written by that socket's own calls alone.
    let held = *unsafe { table::<F>(vip.protocol).get(vip) }?;
    let backend = F::maps().backends.get(held.backend)?;
    let is_same = held.service == frontend.service
        && backend.generation == held.generation
        && !matches!(BackendState::from_number(backend.state), BackendState::Gone);
    is_same.then_some((held.backend, backend))
}

/// Finds out who asks, for source ranges and affinity, and says whether the socket is bound to an address.
///
/// The source of a socket that is bound to none is not known yet. The host's packets leave with an address of the node, so
/// that is taken. Another namespace's sockets all count as one client, by the number of the namespace: as an address it is in
/// "this" network (RFC 1122, section 3.2.1.3), which nobody's packets come from.
#[inline(always)]
fn client<S: Place>(
    context: SocketContext,
    is_host: bool,
    namespace: u64,
    client: &mut <S::Family as Family>::Address,
) -> bool {
    S::read_source(context, client);
    if *client != Default::default() {
        return true;
    }
    if is_host {
        if let Some(address) = masquerade::node_address::<S::Family>(0) {
            *client = address;
        }
    } else if let Some(last) = client.words_mut().last_mut() {
        *last = (namespace as u32 & 0x00ff_ffff).to_be();
    }
    false
}

/// Picks a backend. A socket is spread by its cookie, for which port it gets is not known yet.
#[inline(always)]
fn choose<F: Family>(
    flow: &FlowKey<F::Address>,
    frontend: &Frontend,
    cookie: u64,
    settings: &Settings,
) -> Result<(u32, &'static Backend<F::Address>), Reason> {
    let candidates = Candidates::of(frontend, true)?;
    if frontend.affinity == 0 {
        let hash = (hash::mix(cookie ^ (u64::from(frontend.service) << 32)) >> 32) as u32;
        return first_eligible::<F>(&candidates, hash).ok_or(Reason::NoEndpoint);
    }
    let now = clock::now();
    let remembered = candidates.remembered::<F>(flow.source, frontend.affinity, now, settings);
    let picked = match remembered {
        Some(picked) => Some(picked),
        None => first_eligible::<F>(&candidates, frontend.spread(flow)),
    };
    let (id, backend) = picked.ok_or(Reason::NoEndpoint)?;
    pick::remember::<F>(flow.source, frontend.service, id, backend.generation, now);
    Ok((id, backend))
}

#[inline(always)]
fn first_eligible<F: Family>(candidates: &Candidates, hash: u32) -> Option<(u32, &'static Backend<F::Address>)> {
    let mut step = 0;
    while step < SLOT_TRIES && step < candidates.count() {
        if let Some(picked) = candidates.pick::<F>(hash, step) {
            return Some(picked);
        }
        step += 1;
    }
    None
}

/// Puts the backend in place of the VIP, and remembers what the program said.
#[inline(always)]
fn lead<S: Place>(
    context: SocketContext,
    vip: &SocketKey<<S::Family as Family>::Address>,
    (id, backend): (u32, &'static Backend<<S::Family as Family>::Address>),
    service: u32,
) -> Result<(), Reason> {
    // Ports of SCTP are the same at both ends.
    let (address, port) = (backend.address, backend.port);
    let sockets = table::<S::Family>(vip.protocol);
    let key = SocketKey { address, port, ..*vip };
    let entry = entry(vip, (id, backend), service);
    // SAFETY: compared at once. An entry of a socket is written by that socket's own calls alone.
    let stands = unsafe { sockets.get(key) }.is_some_and(|held| *held == entry);
    // TCP works without: its program is told the backend when it asks for its peer. Answers to datagrams would be strangers'.
    if !stands
        && sockets.insert(key, entry, BPF_ANY.into()).is_err()
        && vip.protocol != u16::from(Protocol::Tcp.number())
    {
        return Err(Reason::TableRefused);
    }
    context.replace::<S>(&address, port);
    Ok(())
}

#[inline(always)]
fn entry<A: Copy>(vip: &SocketKey<A>, (id, backend): (u32, &Backend<A>), service: u32) -> SocketEntry<A> {
    SocketEntry {
        vip: vip.address,
        service,
        backend: id,
        generation: backend.generation,
        vip_port: vip.port,
        reserved: 0,
    }
}
