//! A place for one program that routes: a network namespace with two wires, to which every neighbour is known beforehand. Nobody
//! is at the other ends.

use nix::net::if_::if_nametoindex;

use super::{
    DualStack, LabError, LabName, Namespace, iproute,
    leftovers::{self, Extent},
};

/// Its devices.
pub const WIRES: [&str; 2] = ["near", "far"];

/// The link-layer address of either device, and that of every neighbour: where packet tests send frames, and where they come
/// from.
pub const OWN_ADDRESS: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
const NEIGHBOUR: &str = "02:00:00:00:00:01";

/// The namespace. Dropping it removes it.
#[derive(Debug)]
pub struct Crossroads {
    name: LabName,
    namespace: Namespace,
}

impl Crossroads {
    /// Makes it, with `addresses` on its first device.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn build(addresses: DualStack) -> Result<Self, LabError> {
        let name = LabName::next();
        let crossroads = Self { name, namespace: Namespace::create(name, "crossroads")? };
        let [near, far] = WIRES;
        crossroads.namespace.set_sysctls(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
        let mut commands = Vec::new();
        for device in WIRES {
            let [a, b, c, d, e, f] = OWN_ADDRESS;
            commands.extend([
                format!("link add {device} type veth peer name {device}-end"),
                format!("link set {device} address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
                format!("link set {device} up"),
                format!("link set {device}-end up"),
            ]);
        }
        let DualStack { v4, v6 } = addresses;
        commands.extend([format!("addr add {v4}/24 dev {near}"), format!("addr add {v6}/64 dev {near}")]);
        commands.extend([format!("addr add 169.254.7.1/24 dev {far}"), format!("addr add fd00:7::1/64 dev {far}")]);
        iproute::batch(crossroads.namespace.name(), &commands)?;
        Ok(crossroads)
    }

    /// The namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The index of `device`.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn index(&self, device: &str) -> Result<u32, LabError> {
        self.namespace
            .run(|| if_nametoindex(device))?
            .map_err(|errno| LabError::IpRoute { commands: format!("find {device}"), reason: errno.desc().to_owned() })
    }

    /// Routes `destination`, an address or network, to the neighbour `via` behind `device`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn route(&self, destination: &str, via: &str, device: &str) -> Result<(), LabError> {
        self.change(&[
            format!("neigh replace {via} lladdr {NEIGHBOUR} dev {device} nud permanent"),
            format!("route replace {destination} via {via} dev {device}"),
        ])
    }

    /// Runs `ip` commands in it.
    ///
    /// # Errors
    ///
    /// When one fails.
    pub fn change(&self, commands: &[String]) -> Result<(), LabError> {
        iproute::batch(self.namespace.name(), commands)
    }
}

impl Drop for Crossroads {
    fn drop(&mut self) {
        for failure in leftovers::remove(&Extent::Lab(self.name)) {
            eprintln!("{}: {failure}", self.namespace.name());
        }
    }
}
