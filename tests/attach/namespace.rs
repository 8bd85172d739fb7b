//! Network namespaces that live as long as a thread. Knows nothing of dsproxy.

use std::{
    process::Command,
    sync::mpsc::{Sender, channel},
    thread::{self, JoinHandle},
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Pid, gettid},
};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, entered by a thread of its own that runs what it is given.
pub(crate) struct Namespace {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    id: Pid,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let (jobs, queue) = channel::<Job>();
        let (entered, id) = channel();
        let thread = thread::spawn(move || {
            // The mounts are the thread's own as well, for the tests that mount something.
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("unshare; needs root");
            entered.send(gettid()).expect("the maker waits");
            queue.iter().for_each(|job| job());
        });
        let id = id.recv().expect("the thread has entered its namespace");
        let namespace = Self { jobs: Some(jobs), thread: Some(thread), id };
        namespace.run(|| {
            command("mount --make-rprivate /");
            // Room for files and mounts that go with the thread.
            command("mount -t tmpfs dsproxy-tests /mnt");
        });
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs a closure within the namespace. Its panic is the caller's.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = channel();
        let job = move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            answer.send(result).expect("the caller waits");
        };
        self.jobs.as_ref().expect("alive").send(Box::new(job)).expect("the thread runs jobs");
        match result.recv().expect("the thread answers") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs `ip` within the namespace.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        let line = format!("ip {arguments}");
        self.run(move || command(&line))
    }

    /// Runs `tc` within the namespace.
    pub(crate) fn tc(&self, arguments: &str) -> String {
        let line = format!("tc {arguments}");
        self.run(move || command(&line))
    }

    /// A veth, `name` here and eth-`name` in `other`; the result is its index.
    pub(crate) fn veth_to(&self, name: &str, other: &Self) -> u32 {
        self.ip(&format!("link add {name} type veth peer name eth-{name} netns {}", other.id));
        self.index_of(name)
    }

    /// Moves an interface to another namespace.
    pub(crate) fn give(&self, name: &str, other: &Self) {
        self.ip(&format!("link set {name} netns {}", other.id));
    }

    /// Takes an interface from another namespace, whose own thread may be busy.
    pub(crate) fn take_from(&self, other: &Self, name: &str) {
        let line = format!("nsenter --net=/proc/{}/ns/net ip link set {name} netns {}", other.id, self.id);
        command(&line);
    }

    /// The index of an interface.
    pub(crate) fn index_of(&self, name: &str) -> u32 {
        let name = name.to_owned();
        self.run(move || nix::net::if_::if_nametoindex(name.as_str()).expect("an interface of that name"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the namespace's thread ended with {panic:?}");
        }
    }
}

/// Runs a command line and returns what it wrote.
pub(crate) fn command(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a command")).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("run {line}: {error}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}
