//! `dsproxy-fuzz`: packets thrown at the kernel programs by the million, and held against the model. Needs root; `cargo xtask fuzz`
//! builds it and hands its arguments on.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dsproxy_tests::fuzz;

#[derive(Parser)]
#[command(about = "Throws packets at the kernel programs, and holds what becomes of them against a model")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Packets, to every program that can be run on one
    Packets {
        /// How many
        #[arg(long, default_value_t = 1_000_000)]
        count: u64,
        /// What they follow from
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

fn main() -> ExitCode {
    let Arguments { command: Command::Packets { count, seed } } = Arguments::parse();
    match fuzz::packets(count, seed) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
