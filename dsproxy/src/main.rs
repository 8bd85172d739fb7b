//! The command `dsproxy`: reads the command line and calls what it names.

use std::process::ExitCode;

use clap::Parser as _;
use dsproxy::cli::Arguments;

fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, for people and for the log of a pod that does not start.
            eprintln!("dsproxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}
