//! `dsproxy-soak`: a node under load that goes through everything at once. `cargo xtask soak` builds and runs it.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use dsproxy_tests::{
    churn::Churn,
    soak::{Soak, run},
};

#[derive(Parser)]
#[command(name = "dsproxy-soak", about = "Load, churn, restarts and outages, all at once. Needs root")]
struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// What is planned by, and packets follow from; without it, the time.
    #[arg(long)]
    seed: Option<u64>,
    /// How many packets are thrown at the kernel programs first.
    #[arg(long, default_value_t = 1_000_000)]
    packets: u64,
    /// How many seconds of 100 changes a second among 10,000 Services come before the load.
    #[arg(long, default_value_t = 60)]
    churn: u64,
    /// Write the whole report to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Arguments { minutes, seed, packets, churn, json } = Arguments::parse();
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let churn = (churn > 0).then(|| Churn { services: 10_000, rate: 100, length: Duration::from_secs(churn) });
    let length = Duration::from_secs(minutes * 60);
    let soak = Soak { length, seed: seed.unwrap_or_else(now), packets, churn, json };
    match run(&soak) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("dsproxy-soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}
