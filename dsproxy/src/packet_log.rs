//! What the kernel programs log through aya-log, into the daemon's log. Only in builds with the feature
//! `packet-log`; without it the programs hold no trace of it.

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;
use tracing::warn;

/// Follows the log for as long as the daemon runs.
///
/// # Errors
///
/// When the object has no log.
pub(crate) fn follow(object: &mut Ebpf) -> anyhow::Result<()> {
    let mut logger = AsyncFd::new(EbpfLogger::init(object)?)?;
    tokio::spawn(async move {
        loop {
            match logger.readable_mut().await {
                Ok(mut guard) => {
                    guard.get_inner_mut().flush();
                    guard.clear_ready();
                }
                Err(error) => {
                    warn!(%error, "the log of the kernel programs ends");
                    return;
                }
            }
        }
    });
    Ok(())
}
