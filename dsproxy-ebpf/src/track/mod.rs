//! The connection table: entries found, made and refreshed, in both directions.
//!
//! There are two pairs of entries. A connection through a frontend has a forward entry for what enters from the client
//! and an egress entry for what leaves towards it (`connection`); one that is masqueraded has an egress entry for what leaves
//! towards the backend and a SNAT entry for what enters from it (`masquerade`). One that the backend answers directly has an
//! egress entry on either node (`direct`).
//!
//! TCP that both sides have confirmed is kept apart from all else, in the main tables: no flood of openings, nor of
//! datagrams, can push it out. What is opening, and what is not TCP, is in the brief ones.
//!
//! Entries are written to in place, by plain stores of whole integers. Of two CPUs that do so at once the later one's
//! value stays; should that lose a change of state, the next packet makes it again. An entry that is evicted and given to
//! another connection while a program still holds it may get the older one's time and state, which its own next packet
//! puts right; a next hop, the stack's next turn (`dsproxy_common::next_hop`).

#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a key passed by value is copied to the stack, of which there are 512 bytes"
)]

pub(crate) mod connection;
pub(crate) mod direct;
pub(crate) mod masquerade;

use core::hint::cold_path;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use dsproxy_common::{
    Port, Protocol,
    count::Reason,
    flow::{Age, EgressEntry, EgressKind, FOREIGN, FlowKey, FlowState, ForwardEntry, SnatEntry},
    next_hop::NextHop,
    settings::Settings,
};

use crate::family::Family;

/// An entry where it stands in its table, valid until the program returns.
#[derive(Clone, Copy)]
pub(crate) struct Found<E> {
    entry: *mut E,
    /// Whether it stands in a brief table.
    is_brief: bool,
}

/// What all entries have.
pub(crate) trait Entry: Copy {
    fn state(&self) -> FlowState;
    fn age(&self, now: u32, settings: &Settings) -> Age;
    /// Where time and state stand, to be written to.
    fn write(entry: *mut Self, state: FlowState, now: u32);
    /// Where the time stands, to be written to.
    fn touch(entry: *mut Self, now: u32);
}

macro_rules! entry {
    ($($name:ident $(<$address:ident>)?: $state:ty;)+) => {
        $(
            impl $(<$address: Copy>)? Entry for $name $(<$address>)? {
                #[inline(always)]
                fn state(&self) -> FlowState {
                    FlowState::from_number(self.state.into())
                }

                #[inline(always)]
                fn age(&self, now: u32, settings: &Settings) -> Age {
                    Age::of(self.state.into(), self.last_seen, now, settings)
                }

                #[inline(always)]
                fn write(entry: *mut Self, state: FlowState, now: u32) {
                    // SAFETY: a pointer to a map value, valid until the program returns; see the head of this file.
                    unsafe {
                        (&raw mut (*entry).last_seen).write_volatile(now);
                        (&raw mut (*entry).state).write_volatile(state.number() as $state);
                    }
                }

                #[inline(always)]
                fn touch(entry: *mut Self, now: u32) {
                    // SAFETY: as in `write`.
                    unsafe { (&raw mut (*entry).last_seen).write_volatile(now) };
                }
            }
        )+
    };
}

entry! {
    ForwardEntry: u16;
    EgressEntry<A>: u8;
    SnatEntry<A>: u16;
}

impl<E: Entry> Found<E> {
    /// What stands there now.
    #[inline(always)]
    pub(crate) fn read(&self) -> E {
        // SAFETY: a map value stays readable until the program returns; see the head of this file.
        unsafe { self.entry.read() }
    }

    /// Where it stands, to be copied from straight into another table.
    #[inline(always)]
    fn value(&self) -> &E {
        // SAFETY: as in `read`.
        unsafe { &*self.entry }
    }

    /// Sets state and time.
    #[inline(always)]
    pub(crate) fn write(&self, state: FlowState, now: u32) {
        E::write(self.entry, state, now);
    }

    /// Sets the time.
    #[inline(always)]
    pub(crate) fn touch(&self, now: u32) {
        E::touch(self.entry, now);
    }
}

impl<A: Copy> Found<EgressEntry<A>> {
    /// How the last packet was sent on, if that was in this epoch and nobody is writing to it.
    #[inline(always)]
    pub(crate) fn next_hop(&self, epoch: u32) -> Option<NextHop> {
        if self.noted() != epoch {
            return None;
        }
        // SAFETY: as in `read`.
        let next = unsafe { (&raw const (*self.entry).next_hop).read_volatile() };
        (self.noted() == epoch).then_some(next)
    }

    /// The epoch in which that was noted.
    #[inline(always)]
    pub(crate) fn noted(&self) -> u32 {
        // SAFETY: as in `read`.
        unsafe { (&raw const (*self.entry).next_hop.epoch).read_volatile() }
    }

    /// Keeps `next`, of no epoch while it is being written.
    #[inline(always)]
    pub(crate) fn set_next_hop(&self, next: &NextHop) {
        // SAFETY: as in `Entry::write`.
        unsafe {
            let held = &raw mut (*self.entry).next_hop;
            (&raw mut (*held).epoch).write_volatile(0);
            (&raw mut (*held).device).write_volatile(next.device);
            (&raw mut (*held).ingress).write_volatile(next.ingress);
            (&raw mut (*held).addresses).write_volatile(next.addresses);
            (&raw mut (*held).mtu).write_volatile(next.mtu);
            (&raw mut (*held).flags).write_volatile(next.flags);
            (&raw mut (*held).epoch).write_volatile(next.epoch);
        }
    }
}

/// What a new egress entry says.
struct NewEntry<A> {
    kind: EgressKind,
    end: (A, Port),
    /// The client's port, where a reply's destination port is not it; else zero.
    client_port: Port,
    service: u32,
    state: FlowState,
    now: u32,
}

/// Puts an egress entry together in memory of this CPU's, where it is good until the next. Where its packets go next is not known.
#[inline(always)]
fn new_entry<F: Family>(new: &NewEntry<F::Address>) -> Option<&'static EgressEntry<F::Address>> {
    let entry = F::maps().new_entry.get_ptr_mut(0)?;
    // SAFETY: this CPU's own value; the programs run with bottom halves disabled, so none interrupts another on a CPU, and
    // none keeps one while it asks for another. Whatever is not written here is never written, and zero.
    unsafe {
        (*entry).address = new.end.0;
        (*entry).port = new.end.1;
        (*entry).service = new.service;
        (*entry).last_seen = new.now;
        (*entry).state = new.state.number() as u8;
        (*entry).kind = new.kind.number();
        (*entry).client_port = new.client_port;
        Some(&*entry)
    }
}

/// Enters `new` for packets of `key` that leave.
#[inline(always)]
fn enter_egress<F: Family>(key: &FlowKey<F::Address>, new: &NewEntry<F::Address>) -> Result<(), Reason> {
    let entry = new_entry::<F>(new).ok_or(Reason::TableRefused)?;
    F::maps().egress_brief.insert(key, entry, BPF_ANY.into()).map_err(|_| Reason::TableRefused)
}

/// Enters `entry` for packets of `key` that leave, unless there is one that `stays`. Whether it was entered.
#[inline(always)]
fn enter_egress_unless<F: Family>(
    key: &FlowKey<F::Address>,
    entry: &EgressEntry<F::Address>,
    stays: impl Fn(&EgressEntry<F::Address>) -> bool,
) -> Result<bool, Reason> {
    let brief = F::maps().egress_brief;
    if let Some(found) = confirmed_egress::<F>(key) {
        if stays(&found.read()) {
            return Ok(false);
        }
        give_way_egress::<F>(key, found);
    }
    // Nearly always there is none, which this finds as well as a lookup.
    if brief.insert(key, entry, BPF_NOEXIST.into()).is_ok() {
        return Ok(true);
    }
    cold_path();
    if brief_egress::<F>(key).is_some_and(|found| stays(&found.read())) {
        return Ok(false);
    }
    brief.insert(key, entry, BPF_ANY.into()).map(|()| true).map_err(|_| Reason::TableRefused)
}

/// Whether the connection of an egress entry may be over, so that another may follow it.
#[inline(always)]
fn is_over<A: Copy>(held: &EgressEntry<A>, now: u32, settings: &Settings) -> bool {
    held.may_be_followed() || held.age(now, settings).is_expired()
}

/// Sets state and time of `found`, the entry of packets of `key` that leave; once it is confirmed it moves to the main table.
#[inline(always)]
fn write_egress<F: Family>(
    key: &FlowKey<F::Address>,
    found: Found<EgressEntry<F::Address>>,
    next: FlowState,
    now: u32,
) {
    found.write(next, now);
    if found.is_brief
        && matches!(next, FlowState::Established)
        && F::maps().egress.insert(key, found.value(), BPF_ANY.into()).is_ok()
    {
        let _ = F::maps().egress_brief.remove(key);
    }
}

/// Whether packets of `key` may be in the main tables.
#[inline(always)]
fn is_tcp<A>(key: &FlowKey<A>) -> bool {
    key.protocol == Protocol::Tcp as u32
}

/// The forward entry of a packet that enters. No key stands in both tables, but while it moves and where carried over.
#[inline(always)]
pub(crate) fn forward<F: Family>(key: &FlowKey<F::Address>) -> Option<Found<ForwardEntry>> {
    confirmed_forward::<F>(key).or_else(|| brief_forward::<F>(key))
}

/// As `forward`, where the connection's other entry is known to be brief or not: this one will be as well.
#[inline(always)]
fn forward_beside<F: Family>(key: &FlowKey<F::Address>, is_brief: bool) -> Option<Found<ForwardEntry>> {
    if is_brief { brief_forward::<F>(key).or_else(|| confirmed_forward::<F>(key)) } else { forward::<F>(key) }
}

#[inline(always)]
fn confirmed_forward<F: Family>(key: &FlowKey<F::Address>) -> Option<Found<ForwardEntry>> {
    if !is_tcp(key) {
        return None;
    }
    F::maps().forward.get_ptr_mut(key).map(|entry| Found { entry, is_brief: false })
}

#[inline(always)]
fn brief_forward<F: Family>(key: &FlowKey<F::Address>) -> Option<Found<ForwardEntry>> {
    F::maps().forward_brief.get_ptr_mut(key).map(|entry| Found { entry, is_brief: true })
}

/// Makes room for another connection of packets of `key`, of which `found` is the entry of the one before: what is confirmed would
/// be found before what is opening.
#[inline(always)]
pub(crate) fn give_way<F: Family>(key: &FlowKey<F::Address>, found: Found<ForwardEntry>) {
    if !found.is_brief {
        let _ = F::maps().forward.remove(key);
    }
}

/// As `give_way`, for packets that leave.
#[inline(always)]
pub(crate) fn give_way_egress<F: Family>(key: &FlowKey<F::Address>, found: Found<EgressEntry<F::Address>>) {
    if !found.is_brief {
        let _ = F::maps().egress.remove(key);
    }
}

/// Removes the entry `found` of packets of `key` that leave.
#[inline(always)]
pub(crate) fn forget_egress<F: Family>(key: &FlowKey<F::Address>, found: Found<EgressEntry<F::Address>>) {
    let _ = if found.is_brief { F::maps().egress_brief.remove(key) } else { F::maps().egress.remove(key) };
}

/// The egress entry of a packet that leaves; see `forward`.
#[inline(always)]
pub(crate) fn egress<F: Family>(key: &FlowKey<F::Address>) -> Option<Found<EgressEntry<F::Address>>> {
    confirmed_egress::<F>(key).or_else(|| brief_egress::<F>(key))
}

/// As `egress`, where the entry is likely to be brief or not: because the connection's other one is, or by what the packet says.
#[inline(always)]
pub(crate) fn egress_beside<F: Family>(
    key: &FlowKey<F::Address>,
    is_brief: bool,
) -> Option<Found<EgressEntry<F::Address>>> {
    if is_brief { brief_egress::<F>(key).or_else(|| confirmed_egress::<F>(key)) } else { egress::<F>(key) }
}

#[inline(always)]
fn confirmed_egress<F: Family>(key: &FlowKey<F::Address>) -> Option<Found<EgressEntry<F::Address>>> {
    if !is_tcp(key) {
        return None;
    }
    F::maps().egress.get_ptr_mut(key).map(|entry| Found { entry, is_brief: false })
}

#[inline(always)]
fn brief_egress<F: Family>(key: &FlowKey<F::Address>) -> Option<Found<EgressEntry<F::Address>>> {
    F::maps().egress_brief.get_ptr_mut(key).map(|entry| Found { entry, is_brief: true })
}

/// The SNAT entry for answers of `key`.
#[inline(always)]
fn snat<F: Family>(key: &FlowKey<F::Address>) -> Option<Found<SnatEntry<F::Address>>> {
    F::maps().snat.get_ptr_mut(key).map(|entry| Found { entry, is_brief: false })
}

/// The SNAT entry by which a packet of `key` that enters goes on to the client.
#[inline(always)]
pub(crate) fn client_behind<F: Family>(key: &FlowKey<F::Address>) -> Option<Found<SnatEntry<F::Address>>> {
    snat::<F>(key).filter(|found| found.value().state & FOREIGN == 0)
}

/// The state after one more packet, when it has to be written: because it is another one, or because the time is a second
/// old. Most packets write nothing.
#[inline(always)]
fn to_write<E: Entry>(held: &E, next: FlowState, age: Age) -> Option<FlowState> {
    (next.number() != held.state().number() || !age.is_fresh()).then_some(next)
}
