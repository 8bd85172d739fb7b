//! The command `dsproxy`: reads the command line and calls what it names.

use std::process::ExitCode;

use clap::Parser as _;
use dsproxy::{cli::Arguments, complaint};

/// The exit status for a command line that cannot be read, as it is usual.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => match complaint::of_arguments(&error) {
            Some(complaint) => {
                eprintln!("dsproxy: {complaint}");
                return ExitCode::from(USAGE);
            }
            None => error.exit(),
        },
    };
    match arguments.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dsproxy: {}", complaint::of_error(&error));
            ExitCode::FAILURE
        }
    }
}
