//! Every map of the kernel programs, and nothing else.
//!
//! Capacities are the defaults of `layout::capacity`; user space may set others when it loads the object.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use dsproxy_common::{
    Addr4, Addr6,
    count::{COUNTERS as COUNTER_COUNT, ServiceCounters},
    filter,
    flow::{FlowKey, ForwardEntry, ReplyEntry},
    layout::capacity,
    service::{Backend, Frontend, FrontendKey, ServiceName},
    settings::Settings,
};

/// Memory follows use: only user space adds entries, so no program ever waits for an allocation.
const NO_PREALLOC: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;

const FILTER_WORDS: usize = filter::WORDS as usize;
const FRONTENDS: usize = capacity::FRONTENDS as usize;
const SLOTS: usize = capacity::SLOTS as usize;
const BACKENDS: usize = capacity::BACKENDS as usize;
const CONNECTIONS: usize = capacity::CONNECTIONS as usize;
const SERVICES: usize = capacity::SERVICES as usize;

/// The types of the maps that exist once for each family.
pub(crate) type Frontends<A> = HashMap<FrontendKey<A>, Frontend, FRONTENDS, NO_PREALLOC>;
pub(crate) type Filter = Array<u64, FILTER_WORDS>;
pub(crate) type Slots = Array<u32, SLOTS>;
pub(crate) type Backends<A> = Array<Backend<A>, BACKENDS>;
pub(crate) type Forward<A> = LruHashMap<FlowKey<A>, ForwardEntry, CONNECTIONS>;
pub(crate) type Reply<A> = LruHashMap<FlowKey<A>, ReplyEntry<A>, CONNECTIONS>;

#[btf_map]
pub(crate) static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, { COUNTER_COUNT as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static SERVICE_COUNTERS: PerCpuArray<ServiceCounters, SERVICES> = PerCpuArray::new();
/// Not read by any program: it is for whoever looks at the maps without the daemon.
#[btf_map]
pub(crate) static SERVICE_NAMES: HashMap<u32, ServiceName, SERVICES, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub(crate) static FRONTENDS_V4: Frontends<Addr4> = HashMap::new();
#[btf_map]
pub(crate) static FILTER_V4: Filter = Array::new();
#[btf_map]
pub(crate) static SLOTS_V4: Slots = Array::new();
#[btf_map]
pub(crate) static BACKENDS_V4: Backends<Addr4> = Array::new();
#[btf_map]
pub(crate) static FORWARD_V4: Forward<Addr4> = LruHashMap::new();
#[btf_map]
pub(crate) static REPLY_V4: Reply<Addr4> = LruHashMap::new();

#[btf_map]
pub(crate) static FRONTENDS_V6: Frontends<Addr6> = HashMap::new();
#[btf_map]
pub(crate) static FILTER_V6: Filter = Array::new();
#[btf_map]
pub(crate) static SLOTS_V6: Slots = Array::new();
#[btf_map]
pub(crate) static BACKENDS_V6: Backends<Addr6> = Array::new();
#[btf_map]
pub(crate) static FORWARD_V6: Forward<Addr6> = LruHashMap::new();
#[btf_map]
pub(crate) static REPLY_V6: Reply<Addr6> = LruHashMap::new();
