//! `docs/configuration.md`: every flag, variable and field of the file, from the definitions that the daemon itself goes by.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use anyhow::Context as _;
use clap::{Arg, Command, CommandFactory as _};
use serde_json::Value;

use super::Arguments;
use crate::config::{
    RunFlags, assemble, effect,
    kube_proxy::{MEANINGS, SECTIONS},
};

const HEAD: &str = "# Configuration

<!-- Made by `cargo xtask docs` from the code; what is written here by hand is lost. -->

Everything that dsproxy can be told. What kube-proxy knows can be said by kube-proxy's flags or by its file (`--config`), which
then stands in place of those flags; dsproxy's own flags always count. `dsproxy run --write-config-to FILE` writes what holds, in
the form of the file, and `/configz` shows it. What has no effect is named in the log at start, with the reason.
";

const FILE_HEAD: &str = "
## The file of `--config`

`apiVersion: kubeproxy.config.k8s.io/v1alpha1`, `kind: KubeProxyConfiguration`. Every field that kube-proxy has is read; a field
that it does not have is named with its line, and left out. What is obeyed:

";

const IGNORED_HEAD: &str = "
Without effect, and why:

";

/// Prints the reference.
pub(super) fn print() -> anyhow::Result<()> {
    print!("{}", reference()?);
    Ok(())
}

fn reference() -> anyhow::Result<String> {
    let mut text = HEAD.to_owned();
    let mut dsproxy = Arguments::command();
    dsproxy.build();
    for command in dsproxy.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help") {
        of_command(&mut text, command).context("write a text")?;
    }
    of_file(&mut text)?;
    Ok(text)
}

/// The flags of one command, under their headings.
fn of_command(text: &mut String, command: &Command) -> fmt::Result {
    writeln!(text, "\n## `dsproxy {}`\n", command.get_name())?;
    writeln!(text, "{}.", command.get_about().map(ToString::to_string).unwrap_or_default())?;
    let shown = command.get_arguments().filter(|argument| !argument.is_hide_set());
    let named = shown.filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version"));
    let mut headings: Vec<(&str, Vec<&Arg>)> = Vec::new();
    for argument in named {
        let heading = argument.get_help_heading().unwrap_or_default();
        match headings.iter_mut().find(|(held, _)| *held == heading) {
            Some((_, arguments)) => arguments.push(argument),
            None => headings.push((heading, vec![argument])),
        }
    }
    for (heading, arguments) in headings {
        if !heading.is_empty() {
            writeln!(text, "\n### {heading}")?;
        }
        writeln!(text, "\n| flag | default | what it says |\n|---|---|---|")?;
        for argument in arguments {
            of_argument(text, argument)?;
        }
    }
    let hidden = command.get_arguments().filter(|argument| argument.is_hide_set()).filter_map(Arg::get_long);
    let hidden: Vec<String> = hidden.map(|long| format!("`--{long}`")).collect();
    if !hidden.is_empty() {
        writeln!(text, "\nTaken as kube-proxy's, and without effect: {}.", hidden.join(", "))?;
    }
    Ok(())
}

fn of_argument(text: &mut String, argument: &Arg) -> fmt::Result {
    let values: Vec<String> = argument.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect();
    let is_switch = !argument.get_action().takes_values();
    let name = match (argument.get_long(), is_switch) {
        (Some(long), true) => format!("--{long}"),
        (Some(long), false) => format!("--{long} {}", values.join(" ")),
        (None, _) => values.join(" "),
    };
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    // Where the default is found out later, the help says which it is.
    let (help, said) = match help.split_once(" [default: ") {
        Some((before, rest)) => {
            let (default, after) = rest.rsplit_once(']').unwrap_or((rest, ""));
            (format!("{before}{after}"), Some(default.to_owned()))
        }
        None => (help, None),
    };
    let defaults: Vec<String> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    let default = said.or_else(|| (!is_switch && !defaults.is_empty()).then(|| defaults.join(",")));
    let mut notes = String::new();
    let possible: Vec<String> =
        argument.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    // What stands for yes and no is a matter of course.
    if !possible.is_empty() && !is_switch && !possible.contains(&"`true`".to_owned()) {
        write!(notes, ". One of {}", possible.join(", "))?;
    }
    if let Some(variable) = argument.get_env() {
        write!(notes, ". Environment: `{}`", variable.to_string_lossy())?;
    }
    let default = default.map(|default| format!("`{default}`")).unwrap_or_default();
    writeln!(text, "| `{}` | {default} | {}{notes} |", name.trim(), cell(&help))
}

/// A text as it may stand in a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn of_file(text: &mut String) -> anyhow::Result<()> {
    let defaults = defaults()?;
    let (mut obeyed, mut ignored) = (String::new(), String::new());
    for ((section, fields), meanings) in SECTIONS.iter().zip(MEANINGS) {
        for (field, meaning) in fields.iter().zip(meanings) {
            let name = if section.is_empty() { (*field).to_owned() } else { format!("{section}.{field}") };
            // Sections are told of field by field.
            if SECTIONS.iter().any(|(section, _)| *section == name) && name != "winkernel" {
                continue;
            }
            let meaning = cell(meaning.trim());
            match effect(&name) {
                Ok(()) => {
                    let default = defaults.get(&name).map(|value| format!("`{value}`")).unwrap_or_default();
                    writeln!(obeyed, "| `{name}` | {default} | {meaning} |")?;
                }
                Err(_) if section == &"winkernel" => {}
                Err(reason) => {
                    let rest = if matches!(*field, "featureGates" | "logging") { ", all else" } else { "" };
                    writeln!(ignored, "| `{name}`{rest} | {meaning} | {reason} |")?;
                }
            }
        }
    }
    // Known as a whole, and obeyed in parts.
    for (name, meaning) in [
        ("featureGates.AllowServiceExternalIPs", "Serve `spec.externalIPs` of Services; `false` leaves them alone."),
        ("logging.format", "The form of the log: `text` or `json`."),
        ("logging.verbosity", "How much is logged."),
    ] {
        effect(name).map_err(|reason| anyhow::anyhow!("{name}: {reason}"))?;
        writeln!(obeyed, "| `{name}` | | {meaning} |")?;
    }
    write!(text, "{FILE_HEAD}| field | default | what it says |\n|---|---|---|\n{obeyed}")?;
    write!(
        text,
        "{IGNORED_HEAD}| field | what it says to kube-proxy | why it says nothing here |\n|---|---|---|\n{ignored}"
    )?;
    Ok(())
}

/// What holds where nothing is said.
fn defaults() -> anyhow::Result<BTreeMap<String, Value>> {
    let flags = Arguments::command().try_get_matches_from(["dsproxy", "run", "--kubeconfig", "-"])?;
    let (_, run) = flags.subcommand().context("a command")?;
    let flags = <RunFlags as clap::FromArgMatches>::from_arg_matches(run)?;
    let mut said = assemble(&flags, None)?.kube_proxy.said()?;
    said.remove("clientConnection.kubeconfig");
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_in_the_tree_is_what_is_made() {
        let made = reference().expect("a text");
        let there = include_str!("../../../docs/configuration.md");
        assert!(made == there, "docs/configuration.md is of another time: `cargo xtask docs` makes it anew");
    }

    #[test]
    fn every_flag_of_every_command_is_there() {
        let made = reference().expect("a text");
        for command in Arguments::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            for long in command.get_arguments().filter_map(Arg::get_long) {
                assert!(made.contains(&format!("`--{long}")), "{} --{long}", command.get_name());
            }
        }
    }
}
