//! The maps as far as one packet is concerned, read once.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use dsproxy_common::{
    IpFamily, Protocol,
    service::{Affinity, Frontend, Slots},
    settings::{NetworkFlags, Settings},
};
use ipnet::IpNet;

use super::Question;
use crate::maps::{
    BackendRecord, FrontendAddress, MapError,
    kernel::{ConnectionRecord, KernelMaps},
};

/// What the maps hold that matters to one packet.
#[derive(Clone, Debug)]
pub struct Picture {
    /// What the programs were told.
    pub settings: Settings,
    /// The kernel's clock.
    pub now: u32,
    /// The frontend at the packet's destination, and the name of its service port.
    pub frontend: Option<(Frontend, String)>,
    /// The backends of the family.
    pub backends: HashMap<u32, BackendRecord>,
    /// The slots for clients inside and outside.
    pub slots: [Vec<u32>; 2],
    /// The connection that the packet belongs to.
    pub connection: Option<ConnectionRecord>,
    /// Where the client was last sent.
    pub affinity: Option<Affinity>,
    /// The source ranges of the service port.
    pub source_ranges: Vec<IpNet>,
    /// `NetworkFlags` of the packet's source and destination.
    pub networks: [u32; 2],
    /// The smallest network of the family that holds all ClusterIPs.
    pub services: Option<IpNet>,
}

impl Picture {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn read(maps: &KernelMaps, question: &Question, now: u32) -> Result<Self, MapError> {
        let Question { protocol, source, destination, from: _ } = *question;
        let family = IpFamily::of(destination.ip());
        let address = address(destination, protocol);
        let frontend = maps.frontends()?.into_iter().find(|(held, _)| *held == address).map(|(_, frontend)| frontend);
        let names: HashMap<u32, String> = maps.names()?.into_iter().collect();
        let slots = |slots: fn(&Frontend) -> Slots| {
            frontend.as_ref().map_or(Ok(Vec::new()), |frontend| maps.slots(family, slots(frontend)))
        };
        let service = frontend.as_ref().map(|frontend| frontend.service);
        let networks = maps.networks()?;
        let is_it = |held: &ConnectionRecord| held.client == (source.ip(), source.port()) && held.frontend == address;
        Ok(Self {
            settings: maps.settings()?,
            now,
            slots: [slots(|frontend| frontend.inside)?, slots(|frontend| frontend.outside)?],
            backends: maps
                .backends()?
                .into_iter()
                .filter(|(of, ..)| *of == family)
                .map(|(_, id, record)| (id, record))
                .collect(),
            connection: maps.connections().find(|held| held.as_ref().map_or(true, &is_it)).transpose()?,
            affinity: service.map_or(Ok(None), |service| maps.affinity(service, source.ip()))?,
            source_ranges: maps
                .source_ranges()?
                .into_iter()
                .filter(|(of, _)| Some(*of) == service)
                .map(|(_, range)| range)
                .collect(),
            networks: [source.ip(), destination.ip()].map(|address| flags(&networks, address)),
            services: covering(&networks, family),
            frontend: frontend.map(|frontend| (frontend, names.get(&frontend.service).cloned().unwrap_or_default())),
        })
    }
}

fn address(destination: SocketAddr, protocol: Protocol) -> FrontendAddress {
    FrontendAddress { address: destination.ip(), port: destination.port(), protocol }
}

/// The flags of the smallest network that `address` is in.
fn flags(networks: &[(IpNet, u32)], address: IpAddr) -> u32 {
    let holding = networks.iter().filter(|(network, _)| network.contains(&address));
    holding.max_by_key(|(network, _)| network.prefix_len()).map_or(0, |(_, flags)| *flags)
}

/// The smallest network that holds every ClusterIP and range of them.
fn covering(networks: &[(IpNet, u32)], family: IpFamily) -> Option<IpNet> {
    let relevant = networks
        .iter()
        .filter(|(network, flags)| {
            IpFamily::of(network.addr()) == family && flags & (NetworkFlags::SERVICE | NetworkFlags::CLUSTER_IP) != 0
        })
        .map(|(network, _)| *network);
    relevant.reduce(|mut covering, network| {
        while !covering.contains(&network) {
            match covering.supernet() {
                Some(larger) => covering = larger,
                None => break,
            }
        }
        covering
    })
}
