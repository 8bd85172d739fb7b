//! One daemon after another: the one in charge is waited for, and what it leaves in the kernel is taken over.

use std::{thread, time::Duration};

use anyhow::bail;
use tokio::time;
use tracing::warn;

use crate::{
    datapath::{
        attach::{AttachError, Attacher},
        bpffs::Bpffs,
        carry::Takeover,
        charge::{InCharge, Other},
        load::DatapathSettings,
    },
    interfaces::Interfaces,
    maps::kernel::KernelMaps,
};

/// How long another daemon may take to end: what the DaemonSet gives a pod, and some. A pod that is replaced is gone by then.
const PATIENCE: Duration = Duration::from_secs(15);

/// How often it is tried to attach the programs everywhere, before those of another layout go.
const ATTEMPTS: u32 = 10;

/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(200);

/// Takes charge of `bpffs`. Another daemon that is about to end is waited for.
///
/// # Errors
///
/// When it does not end, or cannot be asked for.
pub(crate) async fn take_charge(bpffs: &Bpffs) -> anyhow::Result<InCharge> {
    let started = time::Instant::now();
    let mut told: Option<Other> = None;
    loop {
        let other = match InCharge::take(bpffs)? {
            Ok(in_charge) => return Ok(in_charge),
            Err(other) => other,
        };
        let directory = bpffs.ours();
        if started.elapsed() > PATIENCE {
            bail!(
                "another dsproxy ({other}) is in charge of {}, and {} s were not enough for it to end; one daemon runs on a node: \
                 end that one, or give this one a --bpffs of its own",
                directory.display(),
                PATIENCE.as_secs()
            );
        }
        if told != Some(other) {
            warn!(
                directory = %directory.display(), %other, patience = ?PATIENCE,
                "another dsproxy is in charge here; waiting for it to end"
            );
            told = Some(other);
        }
        time::sleep(LOOK).await;
    }
}

/// Attaches the programs beside those of another layout, has them serve, and the others go.
///
/// # Errors
///
/// When the kernel refuses, or what the others have pinned cannot be read.
pub(crate) fn take_over(
    takeover: Takeover,
    attacher: &mut Attacher,
    maps: &mut KernelMaps,
    interfaces: &Interfaces,
    settings: &DatapathSettings,
) -> anyhow::Result<()> {
    attacher.set_beside_others(true);
    let mut failures = attacher.sync(interfaces).failures;
    // Where the old programs go, these have to be.
    for _ in 1..ATTEMPTS {
        if failures.is_empty() {
            break;
        }
        thread::sleep(LOOK);
        failures = attacher.sync(interfaces).failures;
    }
    // Of other failures it has told. What still has no room may have it once the others are gone, and is tried again then.
    if let Some(hopeless) = failures.into_iter().map(|failure| failure.error).find(AttachError::is_hopeless) {
        return Err(hopeless.into());
    }
    takeover.finish(maps, settings)?;
    attacher.set_beside_others(false);
    Ok(())
}
