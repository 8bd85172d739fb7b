//! The daemon under test, run as a user runs it: its binary, in a node's network namespace.

use std::{
    env, fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{HttpAnswer, Lab, LabError, Listener, Manifests, Namespace, Side, http_get, wait::eventually};

const HEALTH_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// How long the daemon may take to be healthy: on an emulated machine the kernel's verifier alone takes a minute or two. A daemon that
/// ends is noticed at once.
const START: Duration = Duration::from_secs(300);

const END: Duration = Duration::from_secs(10);

const LOG_LINES_SHOWN: usize = 40;

/// How the daemon is to attach its programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// As it finds best.
    #[default]
    Auto,
    /// By tcx links.
    Tcx,
    /// By filters of a clsact qdisc.
    Clsact,
}

impl Attach {
    fn flag(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// What the daemon is started with besides its manifests.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
    /// On which node; without it, on node A.
    pub side: Option<Side>,
    /// `--attach`.
    pub attach: Attach,
    /// Further arguments of `run`.
    pub arguments: Vec<String>,
}

/// A running (or just killed) daemon. Dropping it ends the process; the data path stays until the lab goes.
#[derive(Debug)]
pub struct Daemon<'lab> {
    lab: &'lab Lab,
    namespace: Namespace,
    binary: PathBuf,
    /// What it is led to, by which flag.
    source: (&'static str, PathBuf),
    bpffs: PathBuf,
    log: PathBuf,
    options: DaemonOptions,
    child: Option<Child>,
}

impl<'lab> Daemon<'lab> {
    /// Starts the daemon on node A and waits until it calls itself healthy.
    pub fn start(lab: &'lab Lab, manifests: &Manifests, options: DaemonOptions) -> Result<Self, LabError> {
        Self::start_on(lab, manifests.directory(), options)
    }

    /// The same with any directory of manifests.
    pub fn start_on(lab: &'lab Lab, manifests: &Path, options: DaemonOptions) -> Result<Self, LabError> {
        Self::start_with(lab, ("--manifests", manifests), options)
    }

    /// The same with the API server that a kubeconfig leads to.
    pub fn start_by_kubeconfig(lab: &'lab Lab, kubeconfig: &Path, options: DaemonOptions) -> Result<Self, LabError> {
        Self::start_with(lab, ("--kubeconfig", kubeconfig), options)
    }

    fn start_with(lab: &'lab Lab, source: (&'static str, &Path), options: DaemonOptions) -> Result<Self, LabError> {
        let mut daemon = Self::prepare(lab, source, options)?;
        daemon.start_again()?;
        Ok(daemon)
    }

    /// What [`start_by_kubeconfig`](Self::start_by_kubeconfig) would start, to be started by
    /// [`start_unwatched`](Self::start_unwatched).
    pub fn by_kubeconfig(lab: &'lab Lab, kubeconfig: &Path, options: DaemonOptions) -> Result<Self, LabError> {
        Self::prepare(lab, ("--kubeconfig", kubeconfig), options)
    }

    fn prepare(lab: &'lab Lab, (flag, path): (&'static str, &Path), options: DaemonOptions) -> Result<Self, LabError> {
        let side = options.side.unwrap_or(Side::A);
        let bpffs = lab.directory().join(format!("bpffs-{}", side.role()));
        fs::create_dir_all(&bpffs).map_err(|source| LabError::file("create", &bpffs, source))?;
        Ok(Self {
            lab,
            namespace: lab.node(side).namespace().clone(),
            binary: daemon_binary()?,
            source: (flag, path.to_owned()),
            bpffs,
            log: lab.directory().join(format!("dsproxy-{}.log", side.role())),
            options,
            child: None,
        })
    }

    /// Starts it after [`kill`](Self::kill) or [`terminate`](Self::terminate), with the same arguments.
    pub fn start_again(&mut self) -> Result<(), LabError> {
        self.start_unwatched()?;
        self.await_health()
    }

    /// Starts it and does not wait for anything.
    pub fn start_unwatched(&mut self) -> Result<(), LabError> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(|source| LabError::file("open", &self.log, source))?;
        let errors = log.try_clone().map_err(|source| LabError::file("open", &self.log, source))?;
        let mut command = Command::new(&self.binary);
        command
            .arg("run")
            .arg(self.source.0)
            .arg(&self.source.1)
            .arg("--bpffs")
            .arg(&self.bpffs)
            .arg("--cgroup")
            .arg(self.lab.cgroup().directory())
            .arg("--healthz-bind-address")
            .arg(format!("127.0.0.1:{HEALTH_PORT}"))
            .arg("--metrics-bind-address")
            .arg(format!("127.0.0.1:{METRICS_PORT}"))
            .args(["--attach", self.options.attach.flag()])
            .args(&self.options.arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        // A process group of its own: Ctrl-C is the lab's to answer, and a lab may be left standing.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        self.child = Some(self.lab.spawn(&self.namespace, &mut command)?);
        Ok(())
    }

    /// Waits until the daemon calls itself healthy.
    pub fn await_health(&mut self) -> Result<(), LabError> {
        let started = std::time::Instant::now();
        loop {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                self.child = None;
                return Err(self.failure(&format!("ended while starting ({status})")));
            }
            let last = match self.health() {
                Ok(HttpAnswer { status: 200, .. }) => return Ok(()),
                Ok(answer) => format!("{answer:?}"),
                Err(error) => error.to_string(),
            };
            if started.elapsed() > START {
                return Err(self.failure(&format!("is not healthy {START:?} after its start: {last}")));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) -> Result<(), LabError> {
        self.end(Signal::SIGKILL).map(|_| ())
    }

    /// Ends it with SIGTERM; returns how it ended.
    pub fn terminate(&mut self) -> Result<ExitStatus, LabError> {
        self.end(Signal::SIGTERM)
    }

    fn end(&mut self, signal: Signal) -> Result<ExitStatus, LabError> {
        let Some(mut child) = self.child.take() else {
            return Err(self.failure("was to be ended, but does not run"));
        };
        if let Err(errno) = kill(Pid::from_raw(child.id().cast_signed()), signal) {
            return Err(self.failure(&format!("cannot be sent {signal}: {errno}")));
        }
        eventually("waiting for dsproxy to end", END, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it still runs".to_owned()),
            Err(error) => Err(error.to_string()),
        })
        .inspect_err(|_| {
            // It did not listen; the lab must not leave it behind.
            let _ = child.kill();
            let _ = child.wait();
        })
    }

    /// Runs another command of the binary against this daemon's bpffs, in node A.
    pub fn command(&self, arguments: &[&str]) -> Result<Output, LabError> {
        let mut command = Command::new(&self.binary);
        command.args(arguments).arg("--bpffs").arg(&self.bpffs).stdin(Stdio::null());
        self.namespace.run(|| command.output())?.map_err(|source| LabError::Spawn {
            program: self.binary.display().to_string(),
            namespace: self.namespace.name().to_owned(),
            source,
        })
    }

    /// Runs `arguments -o json` and reads what it prints.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value, LabError> {
        let output = self.command(&[arguments, &["-o", "json"]].concat())?;
        let printed = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(self.failure(&format!(
                "{arguments:?} failed ({}): {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            )));
        }
        serde_json::from_str(&printed)
            .map_err(|error| self.failure(&format!("{arguments:?} printed no JSON ({error}): {printed}")))
    }

    /// Starts `dsproxy events` against this daemon's bpffs, in node A.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn listen(&self, arguments: &[&str]) -> Result<Listener, LabError> {
        let mut command = Command::new(&self.binary);
        command.arg("events").args(arguments).args(["-o", "json", "--bpffs"]).arg(&self.bpffs);
        let spawned = self.namespace.run(|| Listener::start(&mut command))?;
        spawned.map_err(|source| LabError::Spawn {
            program: self.binary.display().to_string(),
            namespace: self.namespace.name().to_owned(),
            source,
        })
    }

    /// `GET /healthz`.
    pub fn health(&self) -> Result<HttpAnswer, LabError> {
        self.get(HEALTH_PORT, "/healthz")
    }

    /// `GET /metrics`.
    pub fn metrics(&self) -> Result<HttpAnswer, LabError> {
        self.get(METRICS_PORT, "/metrics")
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where it pins its maps and links.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// The binary that runs.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Has another binary be started from the next time on.
    pub fn set_binary(&mut self, binary: PathBuf) {
        self.binary = binary;
    }

    /// Where its log goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// All of its log.
    pub fn whole_log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The end of its log.
    pub fn end_of_log(&self) -> String {
        let log = self.whole_log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }

    /// Lets the process run on when this handle goes, for a lab that is kept.
    pub fn leave_running(mut self) {
        self.child = None;
    }

    fn get(&self, port: u16, path: &str) -> Result<HttpAnswer, LabError> {
        http_get(&self.namespace, (Ipv4Addr::LOCALHOST, port).into(), path)
            .map_err(|error| self.failure(&format!("does not answer {path}: {error}")))
    }

    fn failure(&self, what: &str) -> LabError {
        LabError::Daemon { what: what.to_owned(), log: self.end_of_log() }
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the end of dsproxy's log:\n{}", self.end_of_log());
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The binary that stands beside the one under test for a later version, whose maps have another layout. `cargo xtask test` builds it.
pub fn later_daemon_binary() -> Result<PathBuf, LabError> {
    let path = daemon_binary()?.with_file_name("dsproxy-next-layout");
    if path.is_file() { Ok(path) } else { Err(LabError::NoDaemon { path }) }
}

/// The binary under test: `DSPROXY_BIN`, else the one that stands beside the running test or demo.
pub fn daemon_binary() -> Result<PathBuf, LabError> {
    let path = match env::var_os("DSPROXY_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            let own = env::current_exe().map_err(|source| LabError::file("find", "/proc/self/exe", source))?;
            // Tests stand in `deps`, one level below the binaries.
            own.ancestors()
                .skip(1)
                .find(|directory| !directory.ends_with("deps"))
                .unwrap_or(Path::new("/"))
                .join("dsproxy")
        }
    };
    if path.is_file() { Ok(path) } else { Err(LabError::NoDaemon { path }) }
}
