//! The task that keeps the programs attached to whatever interfaces there are.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use aya::Ebpf;
use tokio::{sync::oneshot, task::JoinHandle, time::sleep};
use tracing::{error, info, warn};

use crate::{
    app::Backoff,
    datapath::{
        attach::{AttachError, Attacher, Attachment, Failure, Programs},
        charge::InCharge,
        load,
    },
    interfaces::{Interfaces, Watch},
    maps::pod_devices::PodDevices,
};

/// How often devices are looked at again: nobody tells when somebody removes a qdisc with its filters, when a driver becomes able to do
/// XDP, when VLANs come to a device, or when the kernel begins to track connections.
const ANOTHER_LOOK: Duration = Duration::from_secs(60);

/// How often it is looked whether the data path is still this daemon's: nobody tells.
const LOOK_AT_PINS: Duration = Duration::from_secs(10);

/// What is attached now, for metrics and health.
#[derive(Debug, Default)]
pub struct Report {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    attachments: Vec<Attachment>,
    failing: usize,
    failures: u64,
    is_taken_away: bool,
}

impl Report {
    /// What is attached.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).attachments.clone()
    }

    fn set(&self, attachments: Vec<Attachment>, failing: usize, failures: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.failures += failures;
        // It may have been taken away meanwhile.
        if !state.is_taken_away {
            state.attachments = attachments;
            state.failing = failing;
        }
    }

    /// Whether what was pinned is gone, so that what the daemon writes leads to nothing.
    pub fn is_taken_away(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_taken_away
    }

    pub(crate) fn take_away(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State { failures: state.failures, is_taken_away: true, ..State::default() };
    }

    /// How many interfaces have no program now because attaching failed, and how often it has failed since the start.
    pub fn failures(&self) -> (usize, u64) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.failing, state.failures)
    }
}

/// A running task.
pub struct Attachments {
    report: Arc<Report>,
    task: JoinHandle<()>,
}

impl Attachments {
    /// Attaches to the interfaces of `watch` now, and follows them from here on. Those programs of `object` that none of them needs are
    /// loaded when they have theirs. The programs are told in `pod_devices`, if packets may pass the stack by, where pods are. Once the
    /// data path is taken away under the daemon that is `in_charge` of it, nothing is attached any more.
    ///
    /// # Errors
    ///
    /// When the kernel lacks the only way to attach that is allowed: trying again would not help.
    pub fn follow(
        mut attacher: Attacher,
        object: Box<Ebpf>,
        mut watch: Watch,
        mut pod_devices: Option<PodDevices>,
        in_charge: Arc<InCharge>,
    ) -> Result<Self, AttachError> {
        let report = Arc::new(Report::default());
        tokio::spawn(tell_when_taken_away(Arc::clone(&in_charge), Arc::clone(&report)));
        let shared = Arc::clone(&report);
        let interfaces = watch.current();
        let are_told = tell(pod_devices.as_mut(), &interfaces);
        let mut failures = sync(&mut attacher, &interfaces, &shared);
        if let Some(hopeless) = failures.iter().position(|failure| failure.error.is_hopeless()) {
            return Err(failures.swap_remove(hopeless).error);
        }
        let mut failing = !failures.is_empty() || !are_told;
        let mut rest = load_rest(object);
        let task = tokio::spawn(async move {
            let mut backoff = Backoff::new();
            let mut is_complete = false;
            loop {
                if !failing {
                    backoff.reset();
                }
                let interfaces = tokio::select! {
                    interfaces = watch.changed() => interfaces,
                    loaded = &mut rest, if !is_complete => {
                        is_complete = true;
                        if let Ok(programs) = loaded {
                            attacher.set_programs(programs);
                        }
                        watch.current()
                    }
                    () = backoff.wait(), if failing => watch.current(),
                    () = sleep(ANOTHER_LOOK), if !failing => watch.current(),
                };
                if !in_charge.lasts() {
                    // Of which `tell_when_taken_away` tells.
                    std::future::pending::<()>().await;
                }
                let are_told = tell(pod_devices.as_mut(), &interfaces);
                failing = !sync(&mut attacher, &interfaces, &shared).is_empty() || !are_told;
            }
        });
        Ok(Self { report, task })
    }

    /// Waits for the end of the task, which comes only with a fault in it.
    pub async fn ended(self) {
        // How it ended stands in the log: a panic has its message there.
        let _ = self.task.await;
    }

    /// What is attached, as it changes.
    pub fn report(&self) -> Arc<Report> {
        Arc::clone(&self.report)
    }
}

/// Waits until the data path is taken away under the daemon that is `in_charge` of it, and says so once.
async fn tell_when_taken_away(in_charge: Arc<InCharge>, report: Arc<Report>) {
    while in_charge.lasts() {
        sleep(LOOK_AT_PINS).await;
    }
    error!(
        "what was pinned is gone, as after `dsproxy cleanup`: this daemon attaches nothing any more, and Services are not served by it; \
         end it, or start it again to have everything attached anew"
    );
    report.take_away();
}

/// Loads what no device has asked for yet, in a thread that nobody has to wait for. Gives all programs, or nothing if that fails.
fn load_rest(mut object: Box<Ebpf>) -> oneshot::Receiver<Programs> {
    let (sender, programs) = oneshot::channel();
    let load = move || {
        load::load_rest(&mut object)?;
        // When nobody listens any more, the daemon is over.
        let _ = sender.send(Programs::of(&object)?);
        anyhow::Ok(())
    };
    let tell = move || {
        if let Err(error) = load() {
            warn!(%error, "devices without a link-layer header will not be served, should there be any");
        }
    };
    if let Err(error) = thread::Builder::new().name("verifier".to_owned()).spawn(tell) {
        warn!(%error, "no thread to load the rest of the programs: devices without a link-layer header will not be served");
    }
    programs
}

/// Tells the programs where pods are. False if that is to be tried again.
fn tell(devices: Option<&mut PodDevices>, interfaces: &Interfaces) -> bool {
    match devices.map(|devices| devices.sync(interfaces)) {
        Some(Err(error)) => {
            warn!(%error, "packets of some pods do not go the way that --pod-shortcut asks for");
            false
        }
        Some(Ok(())) | None => true,
    }
}

/// Returns what is to be tried again.
fn sync(attacher: &mut Attacher, interfaces: &Interfaces, report: &Report) -> Vec<Failure> {
    // It waits for the kernel's answers, which the other tasks of this thread should not.
    let outcome = tokio::task::block_in_place(|| attacher.sync(interfaces));
    if outcome.attached > 0 || outcome.detached > 0 {
        info!(attached = outcome.attached, detached = outcome.detached, "interfaces followed");
    }
    if outcome.unexamined > 0 {
        info!(
            programs = outcome.unexamined,
            "programs of others at interfaces were left unexamined: without CAP_SYS_ADMIN those of a dsproxy that had another \
             --bpffs look the same; if there was one on this node, run `dsproxy cleanup` with that --bpffs as root"
        );
    }
    let failing = outcome.failures.iter().map(|failure| &failure.interface).collect::<BTreeSet<_>>().len();
    report.set(attacher.attachments(), failing, outcome.failures.len() as u64);
    outcome.failures
}
