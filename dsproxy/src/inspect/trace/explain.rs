//! The rules of the packet path, for one packet, in words. Pure.

use std::net::{IpAddr, SocketAddr};

use dsproxy_common::{
    Addr4, Addr6, Address, Port,
    count::Reason,
    flow::{Age, FlowKey, ForwardEntry, Segment},
    hash,
    service::{Affinity, BackendFlags, BackendState, Frontend, FrontendFlags, FrontendKind, SLOT_TRIES},
    settings::{NetworkFlags, Passage},
};

use super::{From, Outcome, Picture, Question};
use crate::{maps::BackendRecord, model::Protocol};

/// What becomes of the packet of `question`, and how that is found out.
pub fn explain(question: &Question, picture: &Picture) -> (Vec<String>, Outcome) {
    let mut steps = vec![match question.from {
        From::Pod => "It enters by a pod's interface, so its sender is inside the cluster.".to_owned(),
        From::Node => "It enters by a node device.".to_owned(),
    }];
    let outcome = follow(question, picture, &mut steps).unwrap_or_else(|| match &picture.frontend {
        Some((frontend, name)) => open(question, picture, (frontend, name), &mut steps),
        None => unknown(question, picture, &mut steps),
    });
    steps.push(match outcome {
        Outcome::Passed(reason) => format!("It passes as it is ({}).", reason.name()),
        Outcome::Dropped(reason) => match reason {
            Reason::NoEndpoint | Reason::NoPort => format!("It is refused: the client is told at once ({}).", reason.name()),
            _ => format!("It is dropped without an answer ({}).", reason.name()),
        },
        Outcome::Sent { endpoint, passage: Passage::Plain } => {
            format!("Its destination becomes {endpoint}; the endpoint sees the client's address.")
        }
        Outcome::Sent { endpoint, passage: Passage::Masqueraded } => format!(
            "Its destination becomes {endpoint}, and where it leaves, its source an address of the node: the answer would not come \
             back this way by itself."
        ),
        Outcome::Sent { endpoint, passage: Passage::Direct } => format!(
            "Its destination becomes {endpoint}; the endpoint sees the client's address, and its node answers the client directly."
        ),
    });
    (steps, outcome)
}

/// The packet as the first of what it may belong to.
fn segment(protocol: Protocol) -> Segment {
    match protocol {
        Protocol::Tcp => Segment::tcp(0x02),
        Protocol::Udp | Protocol::Sctp => Segment::NOT_TCP,
    }
}

/// What the connection table says; nothing when it has no say.
fn follow(question: &Question, picture: &Picture, steps: &mut Vec<String>) -> Option<Outcome> {
    let held = picture.connection.as_ref()?;
    let Some(backend) = held.endpoint else {
        steps.push(
            "The connection table knows it, but its endpoint's place was given to another: it is opened anew.".into(),
        );
        return None;
    };
    let entry = ForwardEntry {
        backend: held.backend,
        generation: backend.generation,
        service: held.service,
        last_seen: held.last_seen,
        state: held.state.number(),
        source_port: Port::default(),
    };
    let endpoint = SocketAddr::new(backend.address, backend.port);
    let age = Age::of(entry.state, entry.last_seen, picture.now, &picture.settings);
    if !entry.goes_on(backend.generation, backend.state, segment(question.protocol), age) {
        steps.push(format!(
            "The connection table has it with {endpoint} ({:?}, {:?}), which is over or takes nothing new: it is opened anew.",
            held.state, backend.state
        ));
        return None;
    }
    steps.push(format!("It belongs to a connection ({:?}) with {endpoint}.", held.state));
    let passage = match (held.masquerade, held.is_direct) {
        (Some(_), _) => Passage::Masqueraded,
        (None, true) => Passage::Direct,
        (None, false) => Passage::Plain,
    };
    Some(Outcome::Sent { endpoint, passage })
}

/// A packet for no frontend.
fn unknown(question: &Question, picture: &Picture, steps: &mut Vec<String>) -> Outcome {
    let destination = question.destination;
    let [_, network] = picture.networks;
    if picture.services.is_some_and(|services| services.contains(&destination.ip()))
        && let Some(reason) = NetworkFlags::without_frontend(network)
    {
        let (address, port, protocol) = (destination.ip(), destination.port(), question.protocol);
        steps.push(if reason == Reason::NoPort {
            format!("{address} is a ClusterIP, and its Service has no port {port}/{protocol}.")
        } else {
            format!("{address} is in a range of ClusterIPs, and no Service has it.")
        });
        return Outcome::Dropped(reason);
    }
    steps.push(format!("No frontend is at {destination}/{}.", question.protocol));
    Outcome::Passed(Reason::NotService)
}

/// The first packet of a connection to a frontend.
fn open(
    question: &Question,
    picture: &Picture,
    (frontend, name): (&Frontend, &str),
    steps: &mut Vec<String>,
) -> Outcome {
    let kind = match frontend.kind() {
        Some(FrontendKind::ClusterIp) => "the ClusterIP",
        Some(FrontendKind::NodePort) => "a NodePort",
        Some(FrontendKind::LoadBalancer) => "a load balancer's address",
        Some(FrontendKind::ExternalIp) => "an external IP",
        None => "a frontend of a kind unknown to this version",
    };
    steps.push(format!("{}/{} is {kind} of {name}.", question.destination, question.protocol));
    let client = question.source.ip();
    if frontend.has(FrontendFlags::SOURCE_RANGES) {
        match picture.source_ranges.iter().find(|range| range.contains(&client)) {
            Some(range) => steps.push(format!("{client} is within the source range {range}.")),
            None => {
                steps.push(format!("{client} is within none of the source ranges {}.", list(&picture.source_ranges)));
                return Outcome::Dropped(Reason::SourceRange);
            }
        }
    }
    let [source_network, _] = picture.networks;
    let by_network = picture.settings.knows_inside(source_network);
    let is_inside = question.from == From::Pod || by_network;
    if question.from == From::Node {
        steps.push(if by_network {
            format!("{client} is a pod's address, so it is inside the cluster.")
        } else {
            format!("{client} is outside the cluster.")
        });
    }
    let run = frontend.run(is_inside);
    let slots = &picture.slots[usize::from(!is_inside)];
    let whose = if run.list == BackendFlags::IN_LOCAL_LIST {
        "this node's endpoints, as the traffic policy says"
    } else {
        "the endpoints of the whole cluster"
    };
    if slots.is_empty() {
        steps.push(if run.drops {
            "The traffic policy wants an endpoint on this node: there are some, and none here.".to_owned()
        } else {
            "The service port has no endpoint.".to_owned()
        });
        return Outcome::Dropped(run.nobody());
    }
    let mut distinct = slots.clone();
    distinct.sort_unstable();
    distinct.dedup();
    steps.push(format!("It may go to {whose}: {} of them.", distinct.len()));
    let eligible = |id: &u32| {
        let record = picture.backends.get(id)?;
        let is_one =
            record.service == frontend.service && record.state == BackendState::Active && record.flags & run.list != 0;
        is_one.then_some(record)
    };
    let picked = remembered(frontend, picture, &eligible, steps).or_else(|| {
        let hash = spread(question, frontend);
        let first = hash::slot(hash, slots.len() as u32) as usize;
        steps.push(format!("The hash of the {} falls on slot {first} of {}.", spread_of(frontend), slots.len()));
        (0..slots.len().min(SLOT_TRIES as usize))
            .find_map(|step| eligible(&slots[(first + step) % slots.len()]))
            .copied()
    });
    let Some(backend) = picked else {
        steps.push("No endpoint on the slots that are tried takes connections.".into());
        return Outcome::Dropped(Reason::NoEndpoint);
    };
    let by_node_device = question.from == From::Node;
    let (protocol, is_hairpin) = (question.protocol.number().into(), backend.address == client);
    let passage = picture.settings.passage(frontend, backend.flags, protocol, by_node_device, is_hairpin);
    let passage = if source_network & NetworkFlags::POD == 0 { passage } else { passage.without_direct() };
    Outcome::Sent { endpoint: SocketAddr::new(backend.address, backend.port), passage }
}

fn remembered<'a>(
    frontend: &Frontend,
    picture: &Picture,
    eligible: &impl Fn(&u32) -> Option<&'a BackendRecord>,
    steps: &mut Vec<String>,
) -> Option<BackendRecord> {
    let Affinity { backend: id, generation, last_opened } = picture.affinity.filter(|_| frontend.affinity != 0)?;
    let age = picture.now.wrapping_sub(last_opened);
    let timeout = frontend.affinity.saturating_mul(picture.settings.jiffies_per_second);
    let backend = eligible(&id).filter(|backend| backend.generation == generation && age <= timeout);
    steps.push(match backend {
        Some(backend) => {
            format!("Session affinity: the client stays with {}.", SocketAddr::new(backend.address, backend.port))
        }
        None => "Session affinity: what the client had is too old, or takes no connections any more.".into(),
    });
    backend.copied()
}

fn spread_of(frontend: &Frontend) -> &'static str {
    if frontend.affinity == 0 { "addresses and ports" } else { "client's address" }
}

/// What the connection is spread over the slots by.
fn spread(question: &Question, frontend: &Frontend) -> u32 {
    match question.source.ip() {
        IpAddr::V4(_) => spread_in::<Addr4>(question, frontend),
        IpAddr::V6(_) => spread_in::<Addr6>(question, frontend),
    }
}

fn spread_in<A: Address>(question: &Question, frontend: &Frontend) -> u32 {
    let Question { protocol, source, destination, from: _ } = question;
    let (Some(client), Some(vip)) = (A::from_ip(source.ip()), A::from_ip(destination.ip())) else { return 0 };
    frontend.spread(&FlowKey {
        source: client,
        destination: vip,
        source_port: Port::new(source.port()),
        destination_port: Port::new(destination.port()),
        protocol: protocol.number().into(),
    })
}

fn list<T: ToString>(values: &[T]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
