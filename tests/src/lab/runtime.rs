//! The thread on which a process's echo servers run, and its answer to Ctrl-C and SIGTERM: remove every lab
//! of this process, then end.

use std::{process, sync::OnceLock, thread};

use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
};

use super::{Extent, leftovers};

/// Makes sure that labs of this process are removed when it is interrupted. The first lab does it too.
pub fn remove_on_signals() {
    handle();
}

/// The runtime of the process's echo servers.
pub(crate) fn handle() -> &'static Handle {
    static RUNTIME: OnceLock<Handle> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime needs an epoll descriptor, without which no lab can be built");
        let handle = runtime.handle().clone();
        thread::spawn(move || runtime.block_on(end_on_signal()));
        handle
    })
}

async fn end_on_signal() {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
        eprintln!("cannot listen for signals: an interrupted run leaves its lab to the next one");
        return std::future::pending().await;
    };
    let status = tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
    };
    for failure in leftovers::remove(&Extent::Own) {
        eprintln!("{failure}");
    }
    process::exit(status);
}
