//! Every map of the kernel programs, and nothing else.
//!
//! Capacities are the defaults of `layout::capacity`; user space may set others when it loads the object.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray, RingBuf},
    macros::btf_map,
};
use dsproxy_common::{
    Addr4, Addr6,
    cached_flow::{CachedFlow, places_in_half},
    count::{COUNTERS as COUNTER_COUNT, ServiceCounters, ServiceDrops},
    daemon::DaemonRecord,
    event::{Event, EventFilter, WAITING_BYTES},
    filter,
    flow::{EgressEntry, FlowKey, ForwardEntry, SnatEntry},
    fragment::{Fragment, FragmentKey},
    layout::capacity,
    next_hop::{Routing, XdpDevice},
    pod_device::PodDevice,
    refusal::Budget,
    service::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, ServiceName, SourceRange},
    settings::Settings,
    socket::{SocketEntry, SocketKey},
};

use crate::{observe::Left, refuse::Quote, track::connection::Connection};

/// Memory follows use. User space alone adds entries, so no program ever asks for memory; but to `SERVICE_DROPS`, see `count::drop`.
const NO_PREALLOC: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;

/// The first value begins a page, so that a flow, of 80 or 128 bytes, stands in two cache lines wherever it is and never in three.
const MMAPABLE: usize = aya_ebpf::bindings::BPF_F_MMAPABLE as usize;

const FILTER_WORDS: usize = filter::WORDS as usize;
const FILTER_CELLS: usize = filter::CELLS as usize;
const FRONTENDS: usize = capacity::FRONTENDS as usize;
const SLOTS: usize = capacity::SLOTS as usize;
const BACKENDS: usize = capacity::BACKENDS as usize;
const CONNECTIONS: usize = capacity::CONNECTIONS as usize;
const BRIEF_CONNECTIONS: usize = capacity::BRIEF_CONNECTIONS as usize;
const AFFINITIES: usize = capacity::AFFINITIES as usize;
const RANGES: usize = capacity::RANGES as usize;
const NETWORKS: usize = capacity::NETWORKS as usize;
const DEVICES: usize = capacity::DEVICES as usize;
const FRAGMENTS: usize = capacity::FRAGMENTS as usize;
const SOCKETS: usize = capacity::SOCKETS as usize;
const SERVICES: usize = capacity::SERVICES as usize;
const POD_DEVICE_COUNT: usize = capacity::POD_DEVICES as usize;
const XDP_DEVICE_COUNT: usize = capacity::XDP_DEVICES as usize;
/// Of one CPU; user space says how many there are.
const CACHED_FLOWS: usize = 2 * places_in_half(capacity::CACHED_FLOWS) as usize;

/// The types of the maps that exist once for each family.
pub(crate) type Frontends<A> = HashMap<FrontendKey<A>, Frontend, FRONTENDS, NO_PREALLOC>;
pub(crate) type Filter = Array<u64, FILTER_WORDS>;
pub(crate) type CellFilter = Array<u32, FILTER_CELLS>;
pub(crate) type Slots = Array<u32, SLOTS>;
pub(crate) type Backends<A> = Array<Backend<A>, BACKENDS>;
pub(crate) type Forward<A> = LruHashMap<FlowKey<A>, ForwardEntry, CONNECTIONS>;
pub(crate) type Egress<A> = LruHashMap<FlowKey<A>, EgressEntry<A>, CONNECTIONS>;
pub(crate) type ForwardBrief<A> = LruHashMap<FlowKey<A>, ForwardEntry, BRIEF_CONNECTIONS>;
pub(crate) type EgressBrief<A> = LruHashMap<FlowKey<A>, EgressEntry<A>, BRIEF_CONNECTIONS>;
pub(crate) type Snat<A> = LruHashMap<FlowKey<A>, SnatEntry<A>, CONNECTIONS>;
pub(crate) type Affinities<A> = LruHashMap<AffinityKey<A>, Affinity, AFFINITIES>;
pub(crate) type Ranges<A> = LpmTrie<SourceRange<A>, u32, RANGES>;
pub(crate) type Networks<A> = LpmTrie<A, u32, NETWORKS>;
pub(crate) type NodeAddresses<A> = HashMap<u32, A, DEVICES, NO_PREALLOC>;
pub(crate) type Scratch<A> = PerCpuArray<Connection<A>, 1>;
/// Entries are put together there: the stack has no room for them.
pub(crate) type NewEntry<A> = PerCpuArray<EgressEntry<A>, 1>;
pub(crate) type Flows<A> = Array<CachedFlow<A>, CACHED_FLOWS, MMAPABLE>;
pub(crate) type Sockets<A> = LruHashMap<SocketKey<A>, SocketEntry<A>, SOCKETS>;
pub(crate) type Fragments<A> = LruHashMap<FragmentKey<A>, Fragment, FRAGMENTS>;

#[btf_map]
pub(crate) static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, { COUNTER_COUNT as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static SERVICE_COUNTERS: PerCpuArray<ServiceCounters, SERVICES> = PerCpuArray::new();
/// An entry for each service port of which something was dropped, made with the first drop. There is room for every one, so none
/// gives way to another.
#[btf_map]
pub(crate) static SERVICE_DROPS: PerCpuHashMap<u32, ServiceDrops, SERVICES, NO_PREALLOC> = PerCpuHashMap::new();
/// What such an entry begins with: never written, and zero. The stack has no room for it.
#[btf_map]
pub(crate) static NO_DROPS: Array<ServiceDrops, 1> = Array::new();
/// Not read by any program: it is for whoever looks at the maps without the daemon.
#[btf_map]
pub(crate) static SERVICE_NAMES: HashMap<u32, ServiceName, SERVICES, NO_PREALLOC> = HashMap::new();
/// Likewise.
#[btf_map]
pub(crate) static DAEMON: Array<DaemonRecord, 1> = Array::new();
#[btf_map]
pub(crate) static REFUSALS: PerCpuArray<Budget, 1> = PerCpuArray::new();
/// Not kept from one packet to the next.
#[btf_map]
pub(crate) static QUOTE: PerCpuArray<Quote, 1> = PerCpuArray::new();

#[btf_map]
pub(crate) static EVENT_FILTER: Array<EventFilter, 1> = Array::new();
#[btf_map]
pub(crate) static EVENTS: RingBuf<Event, { WAITING_BYTES as usize }> = RingBuf::new();
#[btf_map]
pub(crate) static EVENTS_LOST: PerCpuArray<u64, 1> = PerCpuArray::new();
/// By `Link`.
#[btf_map]
pub(crate) static OBSERVERS: ProgramArray<2> = ProgramArray::new();
#[btf_map]
pub(crate) static XDP_OBSERVERS: ProgramArray<1> = ProgramArray::new();
#[btf_map]
pub(crate) static SHORTCUTS: ProgramArray<1> = ProgramArray::new();
#[btf_map]
pub(crate) static POD_DEVICES: HashMap<u32, PodDevice, POD_DEVICE_COUNT, NO_PREALLOC> = HashMap::new();
/// Not kept from one packet to the next.
#[btf_map]
pub(crate) static LEFT: PerCpuArray<Left, 1> = PerCpuArray::new();

#[btf_map]
pub(crate) static ROUTING: Array<Routing, 1> = Array::new();
#[btf_map]
pub(crate) static XDP_DEVICES: HashMap<u32, XdpDevice, XDP_DEVICE_COUNT, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub(crate) static FRONTENDS_V4: Frontends<Addr4> = HashMap::new();
#[btf_map]
pub(crate) static FILTER_V4: Filter = Array::new();
#[btf_map]
pub(crate) static EGRESS_FLT_V4: Filter = Array::new();
#[btf_map]
pub(crate) static LEAVING_FLT_V4: CellFilter = Array::new();
#[btf_map]
pub(crate) static SLOTS_V4: Slots = Array::new();
#[btf_map]
pub(crate) static BACKENDS_V4: Backends<Addr4> = Array::new();
#[btf_map]
pub(crate) static FORWARD_V4: Forward<Addr4> = LruHashMap::new();
#[btf_map]
pub(crate) static EGRESS_V4: Egress<Addr4> = LruHashMap::new();
#[btf_map]
pub(crate) static FORWARD_B_V4: ForwardBrief<Addr4> = LruHashMap::new();
#[btf_map]
pub(crate) static EGRESS_B_V4: EgressBrief<Addr4> = LruHashMap::new();
#[btf_map]
pub(crate) static SNAT_V4: Snat<Addr4> = LruHashMap::new();
#[btf_map]
pub(crate) static AFFINITY_V4: Affinities<Addr4> = LruHashMap::new();
#[btf_map]
pub(crate) static RANGES_V4: Ranges<Addr4> = LpmTrie::new();
#[btf_map]
pub(crate) static NETWORKS_V4: Networks<Addr4> = LpmTrie::new();
#[btf_map]
pub(crate) static MASQUERADE_V4: NodeAddresses<Addr4> = HashMap::new();
#[btf_map]
pub(crate) static FRAGMENTS_V4: Fragments<Addr4> = LruHashMap::new();
#[btf_map]
pub(crate) static SOCKETS_V4: Sockets<Addr4> = LruHashMap::new();
#[btf_map]
pub(crate) static TCP_SOCKETS_V4: Sockets<Addr4> = LruHashMap::new();
#[btf_map]
pub(crate) static FLOWS_V4: Flows<Addr4> = Array::new();
#[btf_map]
pub(crate) static NEW_ENTRY_V4: NewEntry<Addr4> = PerCpuArray::new();
#[btf_map]
pub(crate) static SCRATCH_V4: Scratch<Addr4> = PerCpuArray::new();

#[btf_map]
pub(crate) static FRONTENDS_V6: Frontends<Addr6> = HashMap::new();
#[btf_map]
pub(crate) static FILTER_V6: Filter = Array::new();
#[btf_map]
pub(crate) static EGRESS_FLT_V6: Filter = Array::new();
#[btf_map]
pub(crate) static LEAVING_FLT_V6: CellFilter = Array::new();
#[btf_map]
pub(crate) static SLOTS_V6: Slots = Array::new();
#[btf_map]
pub(crate) static BACKENDS_V6: Backends<Addr6> = Array::new();
#[btf_map]
pub(crate) static FORWARD_V6: Forward<Addr6> = LruHashMap::new();
#[btf_map]
pub(crate) static EGRESS_V6: Egress<Addr6> = LruHashMap::new();
#[btf_map]
pub(crate) static FORWARD_B_V6: ForwardBrief<Addr6> = LruHashMap::new();
#[btf_map]
pub(crate) static EGRESS_B_V6: EgressBrief<Addr6> = LruHashMap::new();
#[btf_map]
pub(crate) static SNAT_V6: Snat<Addr6> = LruHashMap::new();
#[btf_map]
pub(crate) static AFFINITY_V6: Affinities<Addr6> = LruHashMap::new();
#[btf_map]
pub(crate) static RANGES_V6: Ranges<Addr6> = LpmTrie::new();
#[btf_map]
pub(crate) static NETWORKS_V6: Networks<Addr6> = LpmTrie::new();
#[btf_map]
pub(crate) static MASQUERADE_V6: NodeAddresses<Addr6> = HashMap::new();
#[btf_map]
pub(crate) static FRAGMENTS_V6: Fragments<Addr6> = LruHashMap::new();
#[btf_map]
pub(crate) static SOCKETS_V6: Sockets<Addr6> = LruHashMap::new();
#[btf_map]
pub(crate) static TCP_SOCKETS_V6: Sockets<Addr6> = LruHashMap::new();
#[btf_map]
pub(crate) static FLOWS_V6: Flows<Addr6> = Array::new();
#[btf_map]
pub(crate) static NEW_ENTRY_V6: NewEntry<Addr6> = PerCpuArray::new();
#[btf_map]
pub(crate) static SCRATCH_V6: Scratch<Addr6> = PerCpuArray::new();
