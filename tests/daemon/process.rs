//! The daemon's process on node A, with any source and any flags, however it ends. What it serves is not known here.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use dsproxy_tests::lab::{Lab, Namespace, Side, daemon_binary, eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const HEALTH_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// Loading unoptimised on a busy machine takes a while.
const PATIENCE: Duration = Duration::from_secs(60);

/// Something done to a command before it is run.
pub(crate) type Preparation = fn(&mut Command);

/// The daemon: running, or ended and to be started again.
pub(crate) struct Daemon<'lab> {
    lab: &'lab Lab,
    arguments: Vec<String>,
    prepare: Preparation,
    log: PathBuf,
    child: Option<Child>,
}

/// How a command that could not go on ended.
pub(crate) struct Refusal {
    pub(crate) code: Option<i32>,
    /// What it printed beside its log.
    pub(crate) lines: Vec<String>,
    pub(crate) log: String,
}

impl<'lab> Daemon<'lab> {
    /// The daemon with these arguments of `run`, not started yet. What they do not say is said for the lab.
    pub(crate) fn new(lab: &'lab Lab, arguments: &[&str]) -> Self {
        let mut all = vec!["run".to_owned()];
        for (flag, value) in [
            ("--hostname-override", "node-a".to_owned()),
            ("--bpffs", bpffs(lab).display().to_string()),
            ("--cgroup", lab.cgroup().directory().display().to_string()),
            ("--healthz-bind-address", format!("127.0.0.1:{HEALTH_PORT}")),
            ("--metrics-bind-address", format!("127.0.0.1:{METRICS_PORT}")),
        ] {
            if !arguments.contains(&flag) {
                all.extend([flag.to_owned(), value]);
            }
        }
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let log = lab.directory().join("dsproxy.log");
        Self { lab, arguments: all, prepare: |_| {}, log, child: None }
    }

    /// The same, after something was done to the process.
    pub(crate) fn prepared(mut self, prepare: Preparation) -> Self {
        self.prepare = prepare;
        self
    }

    /// Starts it and waits until it calls itself healthy.
    pub(crate) fn started(mut self) -> Self {
        self.start();
        self.await_health();
        self
    }

    /// Starts it and does not wait for anything.
    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log).expect("open the log");
        let mut command = self.command();
        command.stdout(log.try_clone().expect("open the log")).stderr(log);
        // A process group of its own: Ctrl-C is the lab's to answer.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let namespace = self.lab.node(Side::A).namespace();
        self.child = Some(self.lab.spawn(namespace, &mut command).expect("the daemon starts"));
    }

    fn command(&self) -> Command {
        let mut command = Command::new(daemon_binary().expect("the daemon is built"));
        command.args(&self.arguments).stdin(Stdio::null());
        // A kubeconfig of the machine is not the test's.
        command.env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST");
        (self.prepare)(&mut command);
        command
    }

    /// Runs it until it gives up by itself.
    pub(crate) fn refused(&self) -> Refusal {
        let mut command = self.command();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.lab.spawn(self.lab.node(Side::A).namespace(), &mut command).expect("the daemon starts");
        let pid = Pid::from_raw(child.id().cast_signed());
        let (ended, end) = std::sync::mpsc::channel::<()>();
        // One that does not give up must not stop the tests.
        let watchdog = std::thread::spawn(move || {
            if end.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        });
        let output = child.wait_with_output().expect("the daemon ends");
        drop(ended);
        watchdog.join().expect("the watchdog ends");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "errors go to standard error");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let lines = text.lines().filter(|line| !is_log_line(line)).map(str::to_owned).collect();
        Refusal { code: output.status.code(), lines, log: text }
    }

    /// Waits until it calls itself healthy.
    pub(crate) fn await_health(&mut self) {
        self.await_answer("/healthz", 200);
    }

    /// Waits until `path` of the health server is answered with `status`.
    pub(crate) fn await_answer(&mut self, path: &str, status: u16) {
        let outcome = eventually(&format!("{status} of {path}"), PATIENCE, || {
            if let Some(ended) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                panic!("the daemon ended ({ended}):\n{}", self.log());
            }
            match self.get(HEALTH_PORT, path) {
                Ok((answered, _)) if answered == status => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        outcome.unwrap_or_else(|error| panic!("{error}:\n{}", self.log()));
    }

    /// `GET path` of the health server: status and body.
    pub(crate) fn health(&self, path: &str) -> (u16, String) {
        self.get(HEALTH_PORT, path).unwrap_or_else(|error| panic!("{path}: {error}:\n{}", self.log()))
    }

    /// `GET path` of the metrics server: status and body.
    pub(crate) fn beside_metrics(&self, path: &str) -> (u16, String) {
        self.get(METRICS_PORT, path).unwrap_or_else(|error| panic!("{path}: {error}:\n{}", self.log()))
    }

    /// Waits until it has ended by itself, and says how.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("it runs");
        let ended = eventually("the end", PATIENCE, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        });
        let status = ended.unwrap_or_else(|error| panic!("{error}:\n{}", self.log()));
        self.child = None;
        status
    }

    /// The value of the metric sample that is called `sample`, labels included; none when there is none.
    pub(crate) fn metric(&self, sample: &str) -> Option<f64> {
        let (status, body) = self.get(METRICS_PORT, "/metrics").expect("the daemon answers");
        assert_eq!(status, 200);
        let value = body.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?;
        Some(value.parse().unwrap_or_else(|_| panic!("{sample}: {value:?}")))
    }

    /// How much memory it has in use, in KiB.
    pub(crate) fn resident(&self) -> u64 {
        let pid = self.child.as_ref().expect("it runs").id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// The sum of the samples of a metric that have all of these labels.
    pub(crate) fn sum(&self, metric: &str, labels: &[&str]) -> f64 {
        let (_, body) = self.beside_metrics("/metrics");
        let of_metric =
            body.lines().filter(|line| line.starts_with(metric) && labels.iter().all(|label| line.contains(label)));
        of_metric.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Ends it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }

    /// Tells it to end, with SIGTERM, and waits until it has.
    pub(crate) fn terminate(&mut self) {
        kill(Pid::from_raw(self.id().cast_signed()), Signal::SIGTERM).expect("it can be told");
        let status = self.end();
        assert!(status.success(), "{status}:\n{}", self.log());
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Runs another command of the binary and reads the JSON it prints.
    pub(crate) fn json(&self, command: &str) -> Value {
        let mut process = Command::new(daemon_binary().expect("the daemon is built"));
        process.args([command, "-o", "json", "--bpffs"]).arg(bpffs(self.lab)).stdin(Stdio::null());
        let namespace = self.lab.node(Side::A).namespace();
        let output = namespace.run(|| process.output()).expect("the namespace is there").expect("the command runs");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("the command prints JSON")
    }

    /// All of its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until a line of its log has all of `parts`.
    pub(crate) fn await_log(&self, parts: &[&str]) {
        let has = || self.log().lines().any(|line| parts.iter().all(|part| line.contains(part)));
        eventually("the log", PATIENCE, || if has() { Ok(()) } else { Err(format!("no line with {parts:?}")) })
            .unwrap_or_else(|error| panic!("{error}:\n{}", self.log()));
    }

    fn get(&self, port: u16, path: &str) -> Result<(u16, String), String> {
        let target = (Ipv4Addr::LOCALHOST, port).into();
        let Answer { status, head: _, body } = get(self.lab.node(Side::A).namespace(), target, path)?;
        Ok((status, body))
    }
}

/// What an HTTP server has answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The status line and the headers.
    pub(crate) head: String,
    pub(crate) body: String,
}

/// `GET path` of the server at `target`, from `namespace`.
pub(crate) fn get(namespace: &Namespace, target: SocketAddr, path: &str) -> Result<Answer, String> {
    let patience = Duration::from_secs(5);
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&target, patience)?;
        stream.set_read_timeout(Some(patience))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = namespace.run(ask).map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or("no HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or("no HTTP")?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the end of dsproxy's log:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Refusal {
    /// Asserts that it failed with one line that has all of `parts`.
    pub(crate) fn assert_one_line_with(&self, parts: &[&str]) {
        let Self { code, lines, log } = self;
        assert!(code.is_some_and(|code| code != 0), "{parts:?}: {code:?}:\n{log}");
        let [line] = lines.as_slice() else { panic!("{parts:?}: {} lines:\n{log}", lines.len()) };
        assert!(line.starts_with("dsproxy: "), "{line}");
        for part in parts {
            assert!(line.contains(part), "{part:?} in {line}");
        }
    }
}

/// The log begins every line with a time.
fn is_log_line(line: &str) -> bool {
    let digits = line.bytes().take_while(u8::is_ascii_digit).count();
    digits == 4 && [" INFO ", " WARN ", "ERROR ", "DEBUG "].iter().any(|level| line.contains(level))
}

/// Where the daemon of a lab pins its maps.
pub(crate) fn bpffs(lab: &Lab) -> PathBuf {
    lab.directory().join("bpffs")
}

/// The directory of the pinned maps below a bpffs, whatever the version of their layout.
pub(crate) fn pinned_maps(bpffs: &Path) -> PathBuf {
    let ours = bpffs.join("dsproxy");
    let mut layouts = fs::read_dir(&ours).expect("maps are pinned").map(|entry| entry.expect("an entry").path());
    let layout = layouts.next().expect("a layout");
    assert!(layouts.next().is_none(), "one layout below {}", ours.display());
    layout.join("maps")
}
