//! The programs loaded, and those of sockets attached: all that has to be there before interfaces can be followed. What may be missing
//! is told, and gone without.

use std::path::Path;

use anyhow::Context as _;
use aya::Ebpf;
use tracing::{info, warn};

use crate::{
    config::{Config, Xdp},
    datapath::{
        attach::{
            self, Attacher, WhyNot, XdpDevices,
            cgroup::{self, Cgroup, SocketPrograms},
        },
        bpffs::Bpffs,
        load,
    },
    host_settings,
    interfaces::Interfaces,
    maps::pod_devices::PodDevices,
    routing,
};

/// What programs are loaded for.
pub(crate) struct Hooks<'a> {
    pub(crate) config: &'a Config,
    /// The cgroup whose sockets are led to backends; none when nobody's are.
    pub(crate) cgroup: Option<&'a Cgroup>,
    pub(crate) bpffs: &'a Bpffs,
    /// How many flows XDP remembers.
    pub(crate) cached_flows: u32,
}

/// Programs before they are loaded, or after.
pub(crate) enum Programs {
    Waiting(Box<Ebpf>),
    Ready(Box<Ready>),
}

/// Programs that are loaded.
pub(crate) struct Ready {
    pub(crate) attacher: Attacher,
    pub(crate) object: Box<Ebpf>,
    pub(crate) pod_devices: Option<PodDevices>,
    /// What is to be told to XDP of routing once its devices have been looked at; none where it serves nowhere.
    pub(crate) word: Option<routing::Word>,
}

impl Programs {
    /// Loads those that `interfaces` have need of, unless that was done, and attaches those of sockets.
    ///
    /// # Errors
    ///
    /// When the kernel refuses what nothing goes without.
    pub(crate) fn ready(self, hooks: &Hooks<'_>, interfaces: &Interfaces) -> anyhow::Result<Ready> {
        match self {
            Self::Ready(ready) => Ok(*ready),
            Self::Waiting(object) => tokio::task::block_in_place(|| hooks.load(object, interfaces)),
        }
    }
}

impl Hooks<'_> {
    fn load(&self, mut object: Box<Ebpf>, interfaces: &Interfaces) -> anyhow::Result<Ready> {
        let Self { config, cgroup, bpffs, cached_flows } = *self;
        load::load_programs_for(interfaces, &mut object)?;
        #[cfg(feature = "packet-log")]
        crate::packet_log::follow(&mut object).context("read the log of the kernel programs")?;
        lead_sockets(&mut object, cgroup, bpffs)?;
        let pod_devices = if config.pod_shortcut { shorten(&mut object)? } else { None };
        let attacher = Attacher::new(attach::Programs::of(&object)?, &bpffs.links(), config.attach)?;
        let word = routing::Word::new(load::open_pinned_next_hops(bpffs)?, cached_flows).context("speak to XDP")?;
        let maps = load::open_pinned_next_hops(bpffs)?;
        let (attacher, word) = match load_xdp(&mut object, config.xdp)? {
            Ok(devices) => {
                let make_ready = make_ready_for_xdp(config);
                (attacher.with_xdp(&object, devices, maps, word.clone(), make_ready)?, Some(word))
            }
            Err(why) => {
                word.withdraw().context("turn XDP off")?;
                (attacher.without_xdp(why, maps, word), None)
            }
        };
        Ok(Ready { attacher, object, pod_devices, word })
    }
}

/// Attaches the programs of sockets to `cgroup`, or takes those of an earlier run away.
fn lead_sockets(object: &mut aya::Ebpf, cgroup: Option<&Cgroup>, bpffs: &Bpffs) -> anyhow::Result<()> {
    let Some(cgroup) = cgroup else {
        let detached = cgroup::detach_all(&bpffs.links())?;
        if detached > 0 {
            info!(detached, "sockets are no longer led to backends");
        }
        return Ok(());
    };
    load::load_socket_programs(object)?;
    let (attached, changed) = SocketPrograms::of(object)?.attach(cgroup, &bpffs.links())?;
    info!(cgroup = %cgroup.path().display(), hooks = attached.len(), changed, "sockets are led to backends");
    Ok(())
}

/// Loads the program for XDP, if it is wanted: on which devices, or why on none. Only where the user insists it has to be had.
fn load_xdp(object: &mut aya::Ebpf, wanted: Xdp) -> anyhow::Result<Result<XdpDevices, WhyNot>> {
    let Some(devices) = wanted.devices() else { return Ok(Err(WhyNot::Off)) };
    match (devices, load::load_xdp_program(object)) {
        (_, Ok(())) => Ok(Ok(devices)),
        (XdpDevices::Auto, Err(error)) => {
            warn!(%error, "without XDP; tc serves");
            Ok(Err(WhyNot::NoProgram))
        }
        (XdpDevices::Native, Err(error)) => Err(error.into()),
    }
}

/// Sets on the host what XDP asks of it.
fn make_ready_for_xdp(config: &Config) -> attach::MakeReady {
    let established = config.conntrack.tcp_established;
    Box::new(move || {
        let root = Path::new("/");
        let failures = host_settings::apply(&host_settings::for_xdp(established, root), root);
        failures.first().map_or(Ok(()), |failure| Err(failure.to_string()))
    })
}

/// Loads the programs that send packets past the stack; the map in which they are told where pods are. None, and packets go through
/// the stack, should the kernel not take them.
fn shorten(object: &mut aya::Ebpf) -> anyhow::Result<Option<PodDevices>> {
    match load::load_shortcut(object) {
        Ok(()) => Ok(Some(PodDevices::open(|name| object.take_map(name))?)),
        Err(error) => {
            warn!(%error, "without --pod-shortcut; packets go through the stack");
            Ok(None)
        }
    }
}
