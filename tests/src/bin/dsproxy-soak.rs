//! `dsproxy-soak`: a node under load that goes through everything at once. `cargo xtask soak` builds and runs it.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use dsproxy_tests::{
    churn::{self, Churn},
    soak::{Soak, run},
};

#[derive(Parser)]
#[command(name = "dsproxy-soak", about = "Load, churn, restarts and outages, all at once. Needs root")]
struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// What is planned by; without it, the time.
    #[arg(long)]
    seed: Option<u64>,
    /// How many seconds of churn among ten thousand Services come first.
    #[arg(long, default_value_t = 60)]
    churn: u64,
    /// Write the whole report to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Arguments { minutes, seed, churn, json } = Arguments::parse();
    if churn > 0 {
        println!("{churn} s of 100 changes a second among 10,000 Services");
        let churn = Churn { services: 10_000, rate: 100, length: Duration::from_secs(churn) };
        match churn::run(churn).and_then(|churned| churned.judge(churn::LAG, churn::LATER).map(|()| churned)) {
            Ok(churned) => println!("{churned:?}"),
            Err(error) => {
                eprintln!("dsproxy-soak: {error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
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
