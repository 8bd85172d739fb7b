//! `dsproxy-demo`: a small cluster in network namespaces, the daemon on one of its nodes, and real traffic
//! through the ClusterIPs of both families. `cargo xtask demo` builds and runs it.

mod report;
mod serve;
mod service;
mod stage;
mod traffic;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use dsproxy_tests::lab::{Daemon, DaemonOptions, Extent, Lab, find_leftovers, remove_leftovers};

#[derive(Parser)]
#[command(about = "Shows a dual-stack Service at work in network namespaces")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the small cluster, send traffic, report, and remove everything.
    Run {
        /// The directory with the Services and EndpointSlices.
        #[arg(long)]
        manifests: PathBuf,
        /// Leave everything standing.
        #[arg(long)]
        keep: bool,
    },
    /// Remove what `run --keep` left standing.
    Remove,
    /// What runs in a backend's namespace: a web server and a UDP server that tell their name.
    #[command(hide = true)]
    Serve {
        /// The backend's name.
        #[arg(long)]
        name: String,
        /// The port of both servers.
        #[arg(long)]
        port: u16,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run { manifests, keep } => run(&manifests, keep),
        Command::Remove => remove(),
        Command::Serve { name, port } => serve::run(&name, port).map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("dsproxy-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether every request was answered.
fn run(manifests: &Path, keep: bool) -> anyhow::Result<bool> {
    let manifests =
        manifests.canonicalize().with_context(|| format!("find the manifests in {}", manifests.display()))?;
    let frontends = service::read(&manifests)?;

    let lab = Lab::new()?;
    let stage = stage::Stage::set(&lab)?;
    report::topology(&lab, &stage, keep);

    let starting = Instant::now();
    let daemon = Daemon::start_on(&lab, &manifests, DaemonOptions::default())?;
    report::daemon_started(&manifests, starting.elapsed());

    let outcomes = traffic::measure(&stage, &frontends)?;
    let all_answered = report::outcomes(&outcomes, &stage);
    if !all_answered {
        eprintln!("\nThe end of dsproxy's log:\n{}", daemon.end_of_log());
    }
    if keep {
        report::how_to_look_around(&lab, &stage, &daemon, &frontends);
        stage.leave_running();
        daemon.leave_running();
        lab.keep()?;
    }
    Ok(all_answered)
}

fn remove() -> anyhow::Result<bool> {
    let found = find_leftovers(&Extent::Kept);
    if found.is_empty() {
        println!("No demo stands.");
    }
    for leftover in &found {
        println!("Removing {leftover}");
    }
    let failures = remove_leftovers(&Extent::Kept);
    for failure in &failures {
        eprintln!("{failure}");
    }
    Ok(failures.is_empty())
}
