//! iptables-legacy. Its rules are blobs that the kernel gives whole to the program that made them, so the programs are asked.
//! They are run only where the kernel says that a table is there: asking for another would make it.

use std::{
    fs, io,
    io::Write as _,
    process::{Command, Stdio},
};

use super::{
    Backend, Leftover, LeftoverError,
    chains::{TABLES, is_kube_proxys},
};
use crate::{end, model::IpFamily};

/// What belongs to a family.
struct Programs {
    /// The kernel's list of the tables that there are.
    tables: &'static str,
    save: &'static str,
    restore: &'static str,
}

fn programs(family: IpFamily) -> Programs {
    match family {
        IpFamily::V4 => Programs {
            tables: "/proc/net/ip_tables_names",
            save: "iptables-legacy-save",
            restore: "iptables-legacy-restore",
        },
        IpFamily::V6 => Programs {
            tables: "/proc/net/ip6_tables_names",
            save: "ip6tables-legacy-save",
            restore: "ip6tables-legacy-restore",
        },
    }
}

/// What kube-proxy has left of a family.
pub(super) fn find(family: IpFamily) -> Result<Vec<Leftover>, LeftoverError> {
    let found = saved(family)?;
    Ok(found.iter().filter_map(|(table, text)| leftover(family, table, text)).collect())
}

/// Removes what kube-proxy has left of a family, each table at once.
pub(super) fn remove(family: IpFamily) -> Result<Vec<Leftover>, LeftoverError> {
    let mut removed = Vec::new();
    for (table, text) in saved(family)? {
        let Some(leftover) = leftover(family, &table, &text) else { continue };
        let program = programs(family).restore;
        run(program, &["--noflush", "--wait", "5"], &removal(&table, &text))?;
        removed.push(leftover);
    }
    Ok(removed)
}

/// The tables there are, each as the program saves it.
fn saved(family: IpFamily) -> Result<Vec<(String, String)>, LeftoverError> {
    let Programs { tables: path, save, restore: _ } = programs(family);
    let list = match fs::read_to_string(path) {
        Ok(list) => list,
        // The kernel has no iptables-legacy, or nobody has used it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(LeftoverError::Read { path, source }),
    };
    let tables: Vec<String> = list.lines().filter(|table| TABLES.contains(table)).map(str::to_owned).collect();
    let mut saved = Vec::new();
    for table in &tables {
        let text = run(save, &["-t", table], "").map_err(|error| match error {
            LeftoverError::Run { program, source } if source.kind() == io::ErrorKind::NotFound => {
                LeftoverError::NoProgram { program, family, tables: tables.clone() }
            }
            other => other,
        })?;
        saved.push((table.clone(), text));
    }
    Ok(saved)
}

fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<String, LeftoverError> {
    let failed = |source| LeftoverError::Run { program, source };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = end::hears_signals(&mut command).spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let reason = format!("{} ({})", said.trim().lines().next().unwrap_or_default(), output.status);
        return Err(LeftoverError::Program { program, reason });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// kube-proxy's chains in a saved table, in which a chain stands as `:NAME POLICY [packets:bytes]`.
fn chains(saved: &str) -> impl Iterator<Item = &str> {
    let names = saved.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
    names.filter(|name| is_kube_proxys(name))
}

fn leftover(family: IpFamily, table: &str, saved: &str) -> Option<Leftover> {
    let example = chains(saved).find(|name| *name == "KUBE-SERVICES").or_else(|| chains(saved).next())?.to_owned();
    let count = chains(saved).count();
    Some(Leftover::Chains { backend: Backend::Legacy, family, table: table.to_owned(), count, example })
}

/// The words of a rule; what stands in quotes is one, and may hold quotes behind a backslash.
fn words(rule: &str) -> Vec<&str> {
    let (mut in_quotes, mut escaped) = (false, false);
    rule.split(move |character| {
        match character {
            '"' if !escaped => in_quotes = !in_quotes,
            _ => {}
        }
        escaped = character == '\\' && !escaped;
        character == ' ' && !in_quotes
    })
    .collect()
}

/// What the program restores from to remove kube-proxy's chains: naming a chain empties it; rules of others that lead there
/// are deleted as they were saved.
fn removal(table: &str, saved: &str) -> String {
    let mut text = format!("*{table}\n");
    for chain in chains(saved) {
        text.push_str(&format!(":{chain} - [0:0]\n"));
    }
    for rule in saved.lines().filter_map(|line| line.strip_prefix("-A ")) {
        let words = words(rule);
        let is_ours = words.first().is_some_and(|chain| is_kube_proxys(chain));
        let leads_there = words.windows(2).any(|pair| ["-j", "-g"].contains(&pair[0]) && is_kube_proxys(pair[1]));
        if !is_ours && leads_there {
            text.push_str(&format!("-D {rule}\n"));
        }
    }
    for chain in chains(saved) {
        text.push_str(&format!("-X {chain}\n"));
    }
    text.push_str("COMMIT\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "\
# Generated by iptables-save v1.8.9
*nat
:PREROUTING ACCEPT [1:60]
:OUTPUT ACCEPT [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-TCOU7JCQXEZGVUNU - [0:0]
:MINE - [0:0]
-A PREROUTING -m comment --comment \"no \\\" -j KUBE-SERVICES here\" -j MINE
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -g KUBE-SERVICES
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
-A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m udp --dport 53 -j KUBE-SVC-TCOU7JCQXEZGVUNU
-A MINE -d 10.0.0.1/32 -j ACCEPT
COMMIT
";

    #[test]
    fn rules_that_lead_to_kube_proxys_chains_go_and_others_stay() {
        let found = leftover(IpFamily::V4, "nat", SAVED).expect("found");
        assert_eq!(found.to_string(), "the IPv4 chain KUBE-SERVICES and 1 more in the table nat of iptables-legacy");
        assert_eq!(
            removal("nat", SAVED),
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-TCOU7JCQXEZGVUNU - [0:0]\n\
             -D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -D OUTPUT -g KUBE-SERVICES\n-X KUBE-SERVICES\n-X KUBE-SVC-TCOU7JCQXEZGVUNU\nCOMMIT\n"
        );
        let foreign = "*nat\n:KUBE-MARK-DROP - [0:0]\n:MINE - [0:0]\n-A MINE -j KUBE-MARK-DROP\nCOMMIT\n";
        assert_eq!(leftover(IpFamily::V4, "nat", foreign), None);
    }
}
