//! The daemon: everything is wired here, in the order in which data flows.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use dsproxy_common::daemon::DaemonRecord;
use tokio::{sync::mpsc, time};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::{
    allocator,
    attachments::Attachments,
    capabilities,
    config::{self, Assembled, Config, LogConfig, LogFormat, RunFlags, SocketLb, SourceConfig, file::File, follow},
    daemon_word,
    datapath::{
        attach::{self, cgroup::Cgroup},
        bpffs::Bpffs,
        carry::Takeover,
        load::{self, Loaded},
    },
    drop_log, end, full_log,
    health::{self, Health},
    hooks::{self, Hooks, Ready},
    host_settings, http,
    interfaces::{self, Overrides},
    leftovers,
    local_node::LocalNode,
    maps::Contents,
    metrics::{Metrics, Observed},
    progress::Progress,
    reconcile::Reconciler,
    routing, sockets,
    source::{EventSender, SourceStatus, kubernetes, manifests::Manifests},
    start_event, succession,
};

/// The target of the API client's own log.
const CLIENT: &str = "kube_client";

/// How many events a source may be ahead of the reconciler.
const EVENT_BACKLOG: usize = 1024;

/// Runs the daemon until it is told to end. The data path goes on without it.
///
/// # Errors
///
/// When something that the daemon cannot do without is missing.
pub fn run(flags: &RunFlags) -> anyhow::Result<()> {
    let file = flags.config.as_deref().map(File::read).transpose()?;
    let assembled = config::assemble(flags, file.as_ref())?;
    if let Some(path) = &flags.write_config_to {
        return write_config(&assembled, path);
    }
    start_log(&assembled.log)?;
    allocator::share_memory();
    for warning in &assembled.warnings {
        warn!("{warning}");
    }
    if flags.cleanup {
        // Neither must keep the other from being done.
        return cleanup(&assembled.config.bpffs).and(cleanup_kube_proxy());
    }
    if flags.init_only {
        initialize(&assembled.config)
    } else {
        end::when_told()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_all()
            .build()
            .context("start the asynchronous runtime")?;
        let result = runtime.block_on(serve(assembled, file, Duration::from_secs(flags.log.log_drops_every)));
        // Whatever else is going on ends with the process.
        runtime.shutdown_background();
        result
    }
}

/// Does what takes more privileges than the daemon needs later on, so that a container of its own can do it before: the
/// host's settings, also those that only XDP asks for, and the bpffs. Without the settings the daemon serves as well.
fn initialize(config: &Config) -> anyhow::Result<()> {
    for failure in host_settings::apply(&host_settings::ahead(config, cpus()), Path::new("/")) {
        warn!("{failure}");
    }
    Bpffs::ensure(&config.bpffs)?;
    Ok(())
}

/// Writes the configuration as kube-proxy's file; the flags that such a file cannot express are in a comment.
fn write_config(assembled: &Assembled, path: &Path) -> anyhow::Result<()> {
    let yaml = serde_yaml::to_string(&assembled.kube_proxy).context("write the configuration as YAML")?;
    let text = format!("# dsproxy run {}\n{yaml}", assembled.config);
    std::fs::write(path, text).with_context(|| format!("--write-config-to {}", path.display()))?;
    println!("configuration written to {}", path.display());
    Ok(())
}

fn cpus() -> u64 {
    std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64)
}

async fn serve(assembled: Assembled, file: Option<File>, drops_every: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    let Assembled { config, log: _, kube_proxy, warnings: _ } = assembled;
    let node = match &config.hostname_override {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname().context("read the host's name")?.to_string_lossy().to_lowercase(),
    };
    info!(node, version = env!("CARGO_PKG_VERSION"), %config, "starting");
    for warning in config::check_families(&config, &config::host::families(Path::new("/proc")))? {
        warn!("{warning}");
    }

    // Whatever can be refused is refused before anything is touched.
    capabilities::check()?;
    let source = match &config.source {
        SourceConfig::Manifests(directory) => Source::Manifests(Manifests::open(directory)?),
        SourceConfig::Kubernetes { kubeconfig, master } => {
            let connection = kubernetes::Connection::open(master.as_deref(), kubeconfig.as_deref()).await?;
            Source::Kubernetes(Arc::new(connection))
        }
    };
    let overrides = Overrides::new(&config.node_devices, &config.pod_interfaces)?;
    let mut interfaces = interfaces::watch(overrides).await?;
    refuse_missing_devices(&config.node_devices)?;
    let cgroup = cgroup_of(&config)?;

    let bpffs = Bpffs::ensure(&config.bpffs)?;
    let in_charge = Arc::new(succession::take_charge(&bpffs).await?);
    // The kernel takes it back when the process has ended, and with it the last task that may write to the maps.
    std::mem::forget(Arc::clone(&in_charge));
    for failure in host_settings::apply(&host_settings::plan(&config, cpus()), Path::new("/")) {
        warn!("{failure}");
    }
    // A large iptables takes a while to list.
    tokio::task::spawn_blocking(warn_of_leftovers);
    let settings = config.datapath_settings();
    let mut takeover = Takeover::begin(&bpffs)?;
    let Loaded { object, mut maps, found } = takeover.load(&config.capacities, &settings)?;
    // What the one before said last is not said of this one.
    let mut word_of_daemon = load::open_pinned_daemon(&bpffs)?;
    word_of_daemon.set(&DaemonRecord::default())?;
    let hooks = Hooks { config: &config, cgroup: cgroup.as_ref(), bpffs: &bpffs, cached_flows: settings.cached_flows };
    let mut programs = hooks::Programs::Waiting(Box::new(object));
    if takeover.is_under_way() {
        // What these maps hold is not all that counts before these programs serve alone.
        let mut ready = programs.ready(&hooks, &interfaces.current())?;
        tokio::task::block_in_place(|| {
            succession::take_over(takeover, &mut ready.attacher, &mut maps, &interfaces.current(), &settings)
        })?;
        // Of two layouts' connections.
        allocator::give_back();
        programs = hooks::Programs::Ready(Box::new(ready));
    }
    if !drops_every.is_zero() {
        tokio::spawn(drop_log::follow(load::open_pinned(&bpffs)?, drops_every));
    }
    let contents = if found { maps.contents().context("read the maps of the last run")? } else { Contents::default() };
    info!(found, frontends = contents.frontends.len(), backends = contents.backends.len(), "maps ready");

    // The kernel's verifier takes a while over the programs. Meanwhile those of an earlier run serve by these maps, and whatever the
    // source lists is written into them.
    let progress = Arc::new(Progress::default());
    if !drops_every.is_zero() {
        tokio::spawn(full_log::follow(bpffs.clone(), load::open_pinned(&bpffs)?, Arc::clone(&progress), drops_every));
    }
    let status = SourceStatus::new();
    let (sender, events) = mpsc::channel(EVENT_BACKLOG);
    let local_node =
        LocalNode::new(&node, config.node_ips, config.node_port_addresses.clone()).external_ips(config.external_ips);
    let settings_map = maps.settings_map();
    let reconciler = Reconciler::new(maps, &contents, local_node, Arc::clone(&progress), Instant::now())
        .with_networks(config.networks());
    let earlier = kubernetes::EarlierRun::of(&contents);
    drop(contents);
    if cgroup.is_some() {
        tokio::spawn(sockets::end_those_left_behind(load::open_pinned(&bpffs)?, reconciler.gone()));
    }
    let places = match &config.node_port_addresses {
        everywhere if everywhere.is_everywhere() => health::Places::All,
        _ => health::Places::These(reconciler.node_port_addresses()),
    };
    let health_checks = reconciler.health_checks();
    let mut reconciler = tokio::spawn(reconciler.run(events, interfaces.addresses()));
    let api_server = source.api_server();
    let mut source = tokio::spawn(source.run(node.clone(), earlier, sender, Arc::clone(&status)));

    let Ready { attacher, object, pod_devices, word } = programs.ready(&hooks, &interfaces.current())?;
    // Where another layout was left, its filters are replaced now, beside which there are ours already (`attach/clsact.rs`).
    settings_map.set_attaching(true)?;
    let attachments = Attachments::follow(attacher, object, interfaces, pod_devices, in_charge);
    settings_map.set_attaching(false)?;
    let attachments = attachments?;
    // What an earlier run has told XDP of its devices need not be true any more: this run has vouched for nothing before.
    if let Some(word) = word {
        tokio::spawn(routing::tell(word));
    }

    let health_check_ports = Arc::new(health::Report::default());
    let observed = Observed {
        maps: load::open_pinned(&bpffs)?,
        bpffs: bpffs.clone(),
        progress: Arc::clone(&progress),
        source: Arc::clone(&status),
        attached: attachments.report(),
        health_check_ports: Arc::clone(&health_check_ports),
    };
    let metrics = Metrics::new(observed, node.clone(), config.metrics_services);
    let health = Health::new(Arc::clone(&progress), Arc::clone(&status), attachments.report());
    let servers = [
        ("health", config.healthz_bind_address, health::routes(health.clone())),
        ("metrics", config.metrics_bind_address, http::metrics_routes(metrics, &kube_proxy, config.lines())),
    ];
    for (what, address, routes) in servers {
        let Some(address) = address else { continue };
        let listener = http::listen(what, address).await;
        if let (Err(error), true) = (&listener, config.bind_address_hard_fail) {
            bail!("listen at {address} for {what}: {error}; --bind-address-hard-fail says to end then");
        }
        tokio::spawn(http::serve(what, address, listener, routes));
    }

    let speaker = daemon_word::Speaker {
        begun,
        progress: Arc::clone(&progress),
        source: Arc::clone(&status),
        attached: attachments.report(),
        metrics: config.metrics_bind_address,
    };
    tokio::spawn(daemon_word::speak(word_of_daemon, speaker));

    tokio::spawn(health::follow(health, health_checks, places, health_check_ports));
    if let Some(connection) = api_server {
        tokio::spawn(start_event::tell(connection.client().await, node));
    }

    let file_changed = async {
        match config.file.clone().zip(file) {
            Some((path, File { text, .. })) => follow::until_changed(path, text).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        change = file_changed => bail!(
            "--config {} {change}: ending, to be started again with what it says now; the data path goes on",
            config.file.as_deref().unwrap_or(Path::new("")).display()
        ),
        ended = &mut reconciler => bail!("the reconciler ended ({ended:?}); the data path goes on as it is"),
        () = attachments.ended() => bail!("the task that follows interfaces ended; the data path goes on as it is"),
        ended = &mut source => bail!("the source ended ({ended:?}); the data path goes on as it is"),
    }
}

/// The cgroup whose sockets are led to backends; none when nobody's are.
fn cgroup_of(config: &Config) -> anyhow::Result<Option<Cgroup>> {
    if config.socket_lb == SocketLb::Off {
        return Ok(None);
    }
    let cgroup = Cgroup::open(config.cgroup.as_deref())?;
    if config.cgroup.is_none() && !cgroup.is_root() {
        warn!(
            cgroup = %cgroup.path().display(),
            "this is not the root of the machine's cgroups: processes outside of it do not reach Services by their sockets; \
             share the host's /sys/fs/cgroup, or the host's cgroup namespace, with this container"
        );
    }
    Ok(Some(cgroup))
}

enum Source {
    Manifests(Manifests),
    Kubernetes(Arc<kubernetes::Connection>),
}

impl Source {
    /// The API server, if that is what it is.
    fn api_server(&self) -> Option<Arc<kubernetes::Connection>> {
        match self {
            Self::Manifests(_) => None,
            Self::Kubernetes(connection) => Some(Arc::clone(connection)),
        }
    }

    /// Tells `events` of objects until nobody listens. `earlier` is what an earlier run has left behind.
    async fn run(self, node: String, earlier: kubernetes::EarlierRun, events: EventSender, status: Arc<SourceStatus>) {
        match self {
            Self::Manifests(manifests) => manifests.run(events, status).await,
            Self::Kubernetes(connection) => kubernetes::run(connection, node, earlier, events, status).await,
        }
    }
}

/// A device that was named and is not there is a mistake at start, and may come and go afterwards.
fn refuse_missing_devices(node_devices: &[String]) -> anyhow::Result<()> {
    for device in node_devices {
        if let Err(error) = nix::net::if_::if_nametoindex(device.as_str()) {
            bail!(
                "--node-devices: no device {device:?} in this network namespace ({}); `ip link` lists them",
                error.desc()
            );
        }
    }
    Ok(())
}

fn start_log(log: &LogConfig) -> anyhow::Result<()> {
    let LogConfig { level, format } = log;
    // The client calls every failed attempt an error, of which the source has more to tell.
    let filter = if level.contains(CLIENT) { level.clone() } else { format!("{level},{CLIENT}=off") };
    let filter = EnvFilter::try_new(filter).context("read --log-level")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => log.with_ansi(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("start the log: {error}"))
}

/// Removes everything of ours from the kernel.
///
/// # Errors
///
/// When something stays behind; the rest is removed all the same.
pub fn cleanup(directory: &Path) -> anyhow::Result<()> {
    let existing = Bpffs::existing(directory)?;
    let links = existing.as_ref().map_or_else(|| directory.to_owned(), Bpffs::links);
    let cleanup = attach::detach_all(&links);
    println!("{} programs detached", cleanup.detached);
    if cleanup.unexamined > 0 {
        println!(
            "{} programs of others left: without CAP_SYS_ADMIN those of a dsproxy with another --bpffs look the same; if there \
             was one, run this as root, outside of a container",
            cleanup.unexamined
        );
    }
    for failure in &cleanup.failures {
        eprintln!("dsproxy: {}: {}", failure.interface, failure.error);
    }
    match existing {
        Some(bpffs) => {
            bpffs.remove()?;
            println!("maps and pins removed from {}", directory.display());
        }
        None => println!("nothing pinned at {}", directory.display()),
    }
    if !cleanup.failures.is_empty() {
        bail!("{} programs are still attached", cleanup.failures.len());
    }
    Ok(())
}

/// Removes what kube-proxy has left on this node.
///
/// # Errors
///
/// When something stays behind; the rest is removed all the same.
pub fn cleanup_kube_proxy() -> anyhow::Result<()> {
    let leftovers::Survey { leftovers, failures } = leftovers::remove();
    for leftover in &leftovers {
        println!("removed {leftover}");
    }
    if leftovers.is_empty() && failures.is_empty() {
        println!("kube-proxy has left nothing");
    }
    for failure in &failures {
        eprintln!("dsproxy: {failure}");
    }
    if !failures.is_empty() {
        bail!("{} things of kube-proxy's may still be there", failures.len());
    }
    Ok(())
}

/// Names what kube-proxy has left on this node.
fn warn_of_leftovers() {
    let leftovers::Survey { leftovers, failures } = leftovers::find();
    if !leftovers.is_empty() {
        let found = leftovers.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        warn!(
            found,
            "kube-proxy has left rules that translate packets to Services as well; when it no longer runs on this node, \
             `dsproxy cleanup --kube-proxy` removes them"
        );
    }
    for failure in failures {
        warn!("what kube-proxy may have left on this node: {failure}");
    }
}

/// The waits between attempts at something that keeps failing.
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(30);

    pub(crate) fn new() -> Self {
        Self { next: Self::FIRST }
    }

    pub(crate) fn reset(&mut self) {
        self.next = Self::FIRST;
    }

    pub(crate) async fn wait(&mut self) {
        time::sleep(self.next).await;
        self.next = (self.next * 2).min(Self::LONGEST);
    }
}
