//! nftables, over nfnetlink: the table of kube-proxy's mode `nftables`, and the chains that iptables-nft keeps in tables of
//! its own (include/uapi/linux/netfilter/nf_tables.h).
//!
//! Numbers are in network byte order, unlike elsewhere in netlink.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Backend, Leftover, LeftoverError,
    chains::{TABLES, is_kube_proxys},
};
use crate::{
    model::IpFamily,
    netlink::{BlockingSocket, Message, NetlinkError, Request, attributes, text},
};

/// The name of kube-proxy's own table.
const TABLE: &str = "kube-proxy";

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_DELRULE: u16 = 8;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CHAIN: u16 = 2;

/// The length of `struct nfgenmsg`.
const HEADER: usize = 4;

/// How many changes go into one batch. More would not fit into a socket's buffer.
const BATCH: usize = 500;

/// How often a list that changes meanwhile is asked for.
const ATTEMPTS: usize = 5;

/// The family's name in nftables.
pub(super) fn family_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ip",
        IpFamily::V6 => "ip6",
    }
}

/// What kube-proxy has left of a family.
pub(super) fn find(family: IpFamily) -> Result<Vec<Leftover>, LeftoverError> {
    let Some(mut nftables) = Nftables::open(family)? else { return Ok(Vec::new()) };
    let tables = nftables.tables()?;
    let mut found: Vec<Leftover> = tables.contains(TABLE).then_some(Leftover::Table(family)).into_iter().collect();
    for (table, chains) in nftables.chains_of_kube_proxy(&tables)? {
        found.extend(leftover(family, table, &chains));
    }
    Ok(found)
}

/// Removes what kube-proxy has left of a family. Rules that lead to its chains go first and at once, so that no packet
/// finds half of them.
pub(super) fn remove(family: IpFamily) -> Result<Vec<Leftover>, LeftoverError> {
    let Some(mut nftables) = Nftables::open(family)? else { return Ok(Vec::new()) };
    let tables = nftables.tables()?;
    let mut removed = Vec::new();
    if tables.contains(TABLE) {
        let request = nftables.request(NFT_MSG_DELTABLE).attribute(NFTA_TABLE_NAME, &terminated(TABLE));
        nftables.change(&format!("remove the table {TABLE}"), vec![request])?;
        removed.push(Leftover::Table(family));
    }
    for (table, chains) in nftables.chains_of_kube_proxy(&tables)? {
        nftables.remove_chains(table, &chains)?;
        removed.extend(leftover(family, table, &chains));
    }
    Ok(removed)
}

fn leftover(family: IpFamily, table: &str, chains: &BTreeSet<String>) -> Option<Leftover> {
    // The well-known one, if it is there, tells more than a hash.
    let example = chains.get("KUBE-SERVICES").or_else(|| chains.first())?.clone();
    Some(Leftover::Chains { backend: Backend::Nft, family, table: table.to_owned(), count: chains.len(), example })
}

/// A rule, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
struct Rule {
    table: String,
    chain: String,
    /// As the kernel numbers it, in its byte order.
    handle: Vec<u8>,
    /// The chains that it jumps to.
    jumps: Vec<String>,
}

struct Nftables {
    socket: BlockingSocket,
    family: IpFamily,
}

impl Nftables {
    /// None when the kernel has no nftables.
    fn open(family: IpFamily) -> Result<Option<Self>, LeftoverError> {
        match BlockingSocket::open_to(libc::NETLINK_NETFILTER as isize) {
            Ok(socket) => Ok(Some(Self { socket, family })),
            Err(NetlinkError::Open(error)) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Ok(None),
            Err(source) => Err(LeftoverError::Netlink { operation: "reach nftables".to_owned(), source }),
        }
    }

    /// `struct nfgenmsg`: the family, a version, a number that only batches use.
    fn header(&self) -> [u8; HEADER] {
        let family = match self.family {
            IpFamily::V4 => libc::NFPROTO_IPV4,
            IpFamily::V6 => libc::NFPROTO_IPV6,
        };
        [family as u8, 0, 0, 0]
    }

    fn request(&self, message: u16) -> Request {
        Request::batched(kind(message), &self.header())
    }

    fn failed(&self, operation: &str, source: NetlinkError) -> LeftoverError {
        let operation = format!("nftables, {}: {operation}", family_name(self.family));
        LeftoverError::Netlink { operation, source }
    }

    /// Asks for a list, again if it changed while it was sent.
    fn list<T>(
        &mut self,
        operation: &str,
        request: impl Fn(&Self) -> Request,
        read: impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, LeftoverError> {
        for _ in 0..ATTEMPTS {
            let mut list = Vec::new();
            let request = request(self);
            match self.socket.exchange(request, |message| list.extend(read(&message))) {
                Ok(()) => return Ok(list),
                Err(NetlinkError::Interrupted) => {}
                // A kernel without nftables knows no such message.
                Err(error) if matches!(error.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT)) => {
                    return Ok(Vec::new());
                }
                Err(source) => return Err(self.failed(operation, source)),
            }
        }
        Err(self.failed(operation, NetlinkError::Interrupted))
    }

    fn tables(&mut self) -> Result<BTreeSet<String>, LeftoverError> {
        let request = |this: &Self| Request::dump(kind(NFT_MSG_GETTABLE), &this.header());
        let tables =
            self.list("list the tables", request, |message| string(message.payload, HEADER, NFTA_TABLE_NAME))?;
        Ok(tables.into_iter().collect())
    }

    /// kube-proxy's chains in tables of iptables-nft.
    fn chains_of_kube_proxy(
        &mut self,
        tables: &BTreeSet<String>,
    ) -> Result<BTreeMap<&'static str, BTreeSet<String>>, LeftoverError> {
        let mut found: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
        if !TABLES.iter().any(|table| tables.contains(*table)) {
            return Ok(found);
        }
        let request = |this: &Self| Request::dump(kind(NFT_MSG_GETCHAIN), &this.header());
        let chains = self.list("list the chains", request, |message| {
            let table = string(message.payload, HEADER, NFTA_CHAIN_TABLE)?;
            let table = TABLES.into_iter().find(|known| *known == table)?;
            let chain = string(message.payload, HEADER, NFTA_CHAIN_NAME)?;
            is_kube_proxys(&chain).then_some((table, chain))
        })?;
        for (table, chain) in chains {
            found.entry(table).or_default().insert(chain);
        }
        Ok(found)
    }

    fn rules(&mut self, table: &str) -> Result<Vec<Rule>, LeftoverError> {
        let request = |this: &Self| {
            Request::dump(kind(NFT_MSG_GETRULE), &this.header()).attribute(NFTA_RULE_TABLE, &terminated(table))
        };
        let rules = self.list("list the rules", request, |message| rule(message.payload))?;
        Ok(rules.into_iter().filter(|rule| rule.table == table).collect())
    }

    fn remove_chains(&mut self, table: &str, chains: &BTreeSet<String>) -> Result<(), LeftoverError> {
        let leads_there =
            |rule: &Rule| !chains.contains(&rule.chain) && rule.jumps.iter().any(|to| chains.contains(to));
        let rules = self.rules(table)?;
        let of_rule = |chain: &str| {
            self.request(NFT_MSG_DELRULE)
                .attribute(NFTA_RULE_TABLE, &terminated(table))
                .attribute(NFTA_RULE_CHAIN, &terminated(chain))
        };
        let jumps: Vec<Request> = rules
            .iter()
            .filter(|rule| leads_there(rule))
            .map(|rule| of_rule(&rule.chain).attribute(NFTA_RULE_HANDLE, &rule.handle))
            .collect();
        // Without a handle it is all rules of the chain.
        let contents: Vec<Request> = chains.iter().map(|chain| of_rule(chain)).collect();
        let chains: Vec<Request> = chains
            .iter()
            .map(|chain| {
                self.request(NFT_MSG_DELCHAIN)
                    .attribute(NFTA_CHAIN_TABLE, &terminated(table))
                    .attribute(NFTA_CHAIN_NAME, &terminated(chain))
            })
            .collect();
        self.change(&format!("remove the rules of the table {table} that lead to kube-proxy's chains"), jumps)?;
        self.change(&format!("empty kube-proxy's chains of the table {table}"), contents)?;
        self.change(&format!("remove kube-proxy's chains of the table {table}"), chains)
    }

    fn change(&mut self, operation: &str, requests: Vec<Request>) -> Result<(), LeftoverError> {
        let mut requests = requests.into_iter();
        loop {
            let batch: Vec<Request> = requests.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                return Ok(());
            }
            let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
            let limit = |kind| Request::batched(kind, &[0, 0, high, low]);
            self.socket
                .exchange_batch(limit(NFNL_MSG_BATCH_BEGIN), batch, limit(NFNL_MSG_BATCH_END))
                .map_err(|source| self.failed(operation, source))?;
        }
    }
}

/// The kind of a netlink message that carries a message of nftables.
fn kind(message: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | message
}

fn terminated(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn find_in(payload: &[u8], skip: usize, wanted: u16) -> Option<&[u8]> {
    attributes(payload, skip).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn string(payload: &[u8], skip: usize, wanted: u16) -> Option<String> {
    find_in(payload, skip, wanted).map(text)
}

fn rule(payload: &[u8]) -> Option<Rule> {
    let expressions = find_in(payload, HEADER, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
    let expressions = attributes(expressions, 0).filter(|(kind, _)| *kind == NFTA_LIST_ELEM);
    Some(Rule {
        table: string(payload, HEADER, NFTA_RULE_TABLE)?,
        chain: string(payload, HEADER, NFTA_RULE_CHAIN)?,
        handle: find_in(payload, HEADER, NFTA_RULE_HANDLE)?.to_vec(),
        jumps: expressions.filter_map(|(_, expression)| jump(expression)).collect(),
    })
}

/// The chain that an expression leads to, if it is an immediate verdict that does.
fn jump(expression: &[u8]) -> Option<String> {
    let data = find_in(expression, 0, NFTA_EXPR_DATA)?;
    let value = find_in(data, 0, NFTA_IMMEDIATE_DATA)?;
    let verdict = find_in(value, 0, NFTA_DATA_VERDICT)?;
    string(verdict, 0, NFTA_VERDICT_CHAIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::messages;

    #[test]
    fn the_jumps_of_a_rule_are_read() {
        const NFTA_EXPR_NAME: u16 = 1;
        let bytes = Request::batched(kind(6), &[2, 0, 0, 0])
            .attribute(NFTA_RULE_TABLE, b"nat\0")
            .attribute(NFTA_RULE_CHAIN, b"PREROUTING\0")
            .attribute(NFTA_RULE_HANDLE, &7u64.to_be_bytes())
            .nested(NFTA_RULE_EXPRESSIONS, |list| {
                list.nested(NFTA_LIST_ELEM, |it| {
                    it.attribute(NFTA_EXPR_NAME, b"counter\0")
                        .nested(NFTA_EXPR_DATA, |data| data.attribute(1, &[0; 8]).attribute(2, &[0; 8]))
                })
                .nested(NFTA_LIST_ELEM, |it| {
                    it.attribute(NFTA_EXPR_NAME, b"immediate\0").nested(NFTA_EXPR_DATA, |data| {
                        data.attribute(1, &[0; 4]).nested(NFTA_IMMEDIATE_DATA, |value| {
                            value.nested(NFTA_DATA_VERDICT, |verdict| {
                                verdict
                                    .attribute(1, &(-3i32).to_be_bytes())
                                    .attribute(NFTA_VERDICT_CHAIN, b"KUBE-SERVICES\0")
                            })
                        })
                    })
                })
            })
            .numbered(1);
        let message = messages(&bytes).next().expect("one").expect("well formed");
        let expected = Rule {
            table: "nat".to_owned(),
            chain: "PREROUTING".to_owned(),
            handle: vec![0, 0, 0, 0, 0, 0, 0, 7],
            jumps: vec!["KUBE-SERVICES".to_owned()],
        };
        assert_eq!(rule(message.payload), Some(expected));
        assert_eq!(rule(&[]), None);
    }
}
