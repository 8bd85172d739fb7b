//! `dsproxy-soak`: a node under load that goes through everything at once. `cargo xtask soak` builds and runs it.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use dsproxy_tests::soak::{Soak, run};

#[derive(Parser)]
#[command(name = "dsproxy-soak", about = "Load, churn, restarts and outages, all at once. Needs root")]
struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// What is planned by; without it, the time.
    #[arg(long)]
    seed: Option<u64>,
    /// Write the whole report to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Arguments { minutes, seed, json } = Arguments::parse();
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let soak = Soak { length: Duration::from_secs(minutes * 60), seed: seed.unwrap_or_else(now), json };
    match run(&soak) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("dsproxy-soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}
