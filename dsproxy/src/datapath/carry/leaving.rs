//! The filter of backends towards which packets are rewritten as they leave: it follows from the connections that were carried over,
//! whatever layout they are from. As the programs do, it leaves out what pods send to those that are no backends.

use std::{collections::BTreeSet, io, net::IpAddr, path::Path};

use dsproxy_common::{
    Addr4, Addr6, Address, IpFamily, Port,
    filter::{self, FilterBit},
    flow::{EgressEntry, EgressKind, FlowKey},
    layout::family_maps,
    record::Record,
    service::FrontendKey,
};

use super::CarryError;
use crate::datapath::raw_map::RawMap;

/// Marks the backends of all connections that this version's maps in `maps` hold.
pub(super) fn mark(maps: &Path) -> Result<(), CarryError> {
    mark_family::<Addr4>(maps)?;
    mark_family::<Addr6>(maps)
}

fn mark_family<A: Address>(maps: &Path) -> Result<(), CarryError>
where
    FlowKey<A>: Record,
    EgressEntry<A>: Record,
{
    let names = family_maps(A::FAMILY);
    let open = |name| {
        let path = maps.join(name);
        let failed = CarryError::on("open the map", &path);
        RawMap::pinned(&path).and_then(|map| map.ok_or_else(|| io::ErrorKind::NotFound.into())).map_err(failed)
    };
    let (backends, filter) = (open(names.egress_filter)?, open(names.leaving_filter)?);
    let mut destinations = BTreeSet::new();
    // What is confirmed meanwhile moves from the one to the other: what is read first must be what it leaves.
    for name in [names.egress_brief, names.egress] {
        let look = |key: &[u8], value: &[u8]| destinations.extend(towards::<A>(key, value));
        open(name)?.for_each(look).map_err(CarryError::on("read the map", Path::new(name)))?;
    }
    let failed = CarryError::on("read the filter", Path::new(names.egress_filter));
    let mut cells = BTreeSet::new();
    for (bit, cell) in destinations {
        let word = backends.get(&bit.word().to_ne_bytes()).map_err(&failed)?;
        let word = word.and_then(|word| Some(u64::from_ne_bytes(*word.first_chunk()?)));
        cells.extend(word.is_some_and(|word| word & bit.mask() != 0).then_some(cell));
    }
    let failed = CarryError::on("write the filter", Path::new(names.leaving_filter));
    for cell in cells {
        filter.set(&cell.to_ne_bytes(), &1u32.to_ne_bytes()).map_err(&failed)?;
    }
    Ok(())
}

/// Where packets of `key` are rewritten towards, if that is what their entry says: as the filters of backends and of what leaves towards
/// them have it.
fn towards<A: Address>(key: &[u8], value: &[u8]) -> Option<(FilterBit, u32)>
where
    FlowKey<A>: Record,
    EgressEntry<A>: Record,
{
    let [kind] = *field::<EgressEntry<A>>(value, "kind")? else { return None };
    if EgressKind::from_number(kind).is_of_backend() {
        return None;
    }
    let destination = field::<FlowKey<A>>(key, "destination")?;
    let address: IpAddr = match A::FAMILY {
        IpFamily::V4 => <[u8; 4]>::try_from(destination).ok()?.into(),
        IpFamily::V6 => <[u8; 16]>::try_from(destination).ok()?.into(),
    };
    let port = u16::from_be_bytes(field::<FlowKey<A>>(key, "destination_port")?.try_into().ok()?);
    let protocol = u32::from_ne_bytes(field::<FlowKey<A>>(key, "protocol")?.try_into().ok()?);
    let destination = FrontendKey::new(A::from_ip(address)?, Port::new(port), protocol as u8);
    Some((FilterBit::of(&destination), filter::cell(&destination)))
}

/// The bytes of the field `name` of a record.
fn field<'a, R: Record>(record: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let field = R::FIELDS.iter().find(|field| field.name == name)?;
    record.get(field.offset..field.offset + field.size)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    /// A record of zeros, but for `fields`.
    fn record<R: Record>(fields: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<R>()];
        for (name, value) in fields {
            let field = R::FIELDS.iter().find(|field| field.name == *name).expect("a field");
            bytes[field.offset..field.offset + field.size].copy_from_slice(value);
        }
        bytes
    }

    fn marked<A: Address>(destination: &[u8], kind: EgressKind) -> Option<u32>
    where
        FlowKey<A>: Record,
        EgressEntry<A>: Record,
    {
        let (port, protocol) = (8080u16.to_be_bytes(), 6u32.to_ne_bytes());
        let key = record::<FlowKey<A>>(&[
            ("destination", destination),
            ("destination_port", port.as_slice()),
            ("protocol", protocol.as_slice()),
        ]);
        let found = towards::<A>(&key, &record::<EgressEntry<A>>(&[("kind", [kind.number()].as_slice())]));
        found.map(|(_, cell)| cell)
    }

    #[test]
    fn the_backends_of_what_leaves_towards_them_are_marked_as_the_programs_do() {
        let (v4, v6) = (Ipv4Addr::new(10, 244, 1, 7), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7));
        let cell_v4 = filter::cell(&FrontendKey::<Addr4>::new(v4.into(), Port::new(8080), 6));
        let cell_v6 = filter::cell(&FrontendKey::<Addr6>::new(v6.into(), Port::new(8080), 6));
        for kind in [EgressKind::Unsettled, EgressKind::Masquerade, EgressKind::Direct] {
            assert_eq!(marked::<Addr4>(&v4.octets(), kind), Some(cell_v4), "{kind:?}");
            assert_eq!(marked::<Addr6>(&v6.octets(), kind), Some(cell_v6), "{kind:?}");
        }
        for kind in [EgressKind::Reply, EgressKind::DirectReply] {
            assert_eq!(marked::<Addr4>(&v4.octets(), kind), None, "{kind:?}");
        }
    }
}
