//! One network namespace: making it, entering it for the length of a closure, removing it.
//!
//! A thread that has entered a namespace ends there; a socket or process made inside keeps the namespace, so
//! both can be used from anywhere afterwards.

use std::{
    fs::{self, File},
    io,
    panic::resume_unwind,
    path::PathBuf,
    sync::Arc,
    thread,
};

use nix::sched::{CloneFlags, setns};

use super::{LabError, LabName, iproute};

/// Where `ip netns` keeps its namespaces.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// A network namespace that `ip netns` knows too.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: Arc<str>,
    file: Arc<File>,
}

impl Namespace {
    /// Makes the namespace of `role`, with loopback up and IPv6 addresses usable at once.
    pub(crate) fn create(lab: LabName, role: &str) -> Result<Self, LabError> {
        let name = lab.namespace(role);
        iproute::ip(&["netns", "add", &name])?;
        let path = PathBuf::from(DIRECTORY).join(&name);
        let file = File::open(&path).map_err(|source| LabError::file("open", path, source))?;
        let namespace = Self { name: name.into(), file: Arc::new(file) };
        namespace.set_sysctls(&[("net/ipv6/conf/all/accept_dad", "0"), ("net/ipv6/conf/default/accept_dad", "0")])?;
        iproute::batch(namespace.name(), &["link set lo up".to_owned()])?;
        Ok(namespace)
    }

    /// The name under which `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` in the namespace, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    Ok(work())
                })
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Starts a thread that lives in the namespace.
    pub fn spawn_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<Result<T, LabError>> {
        let namespace = self.clone();
        thread::spawn(move || {
            namespace.enter()?;
            Ok(work())
        })
    }

    /// Writes sysctls below `/proc/sys`.
    pub(crate) fn set_sysctls(&self, settings: &[(&str, &str)]) -> Result<(), LabError> {
        self.run(|| {
            for (key, value) in settings {
                let path = PathBuf::from("/proc/sys").join(key);
                fs::write(&path, value).map_err(|source| LabError::file("write", path, source))?;
            }
            Ok(())
        })?
    }

    fn enter(&self) -> Result<(), LabError> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| LabError::Enter { name: self.name().to_owned(), source: io::Error::from(errno) })
    }
}
