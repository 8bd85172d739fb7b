//! What is made from the command line's own description: completions for shells, and manual pages.

use std::{io, path::PathBuf};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Arguments;

/// What `dsproxy completions` is told.
#[derive(Debug, Args)]
pub(super) struct CompletionsArguments {
    /// The shell
    shell: Shell,
}

/// What `dsproxy man` is told.
#[derive(Debug, Args)]
pub(super) struct ManualArguments {
    /// The directory that the pages are written to; one page for each command
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Prints the script by which a shell completes dsproxy's commands and flags.
pub(super) fn completions(CompletionsArguments { shell }: &CompletionsArguments) {
    clap_complete::generate(*shell, &mut Arguments::command(), "dsproxy", &mut io::stdout());
}

/// Writes the manual pages.
pub(super) fn manual(ManualArguments { directory }: &ManualArguments) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("make the directory {}", directory.display()))?;
    clap_mangen::generate_to(Arguments::command(), directory)
        .with_context(|| format!("write manual pages to {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_completes_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "dsproxy", &mut script);
            let script = String::from_utf8(script).expect("text");
            for command in Arguments::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
            assert!(script.contains("cluster-cidr"), "{shell}");
        }
    }

    #[test]
    fn every_command_has_a_page_with_its_flags() {
        let directory = tempfile::tempdir().expect("a directory");
        manual(&ManualArguments { directory: directory.path().join("man1") }).expect("written");
        let page = |name: &str| std::fs::read_to_string(directory.path().join("man1").join(name)).expect(name);
        for command in Arguments::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            assert!(page("dsproxy.1").contains(&command.get_name().replace('-', "\\-")), "{}", command.get_name());
            page(&format!("dsproxy-{}.1", command.get_name()));
        }
        assert!(page("dsproxy-run.1").contains("\\-\\-cluster\\-cidr"));
    }
}
