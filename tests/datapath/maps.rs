//! What user space writes into the kernel's maps is what it reads back.

use dsproxy::{
    datapath::load::{DatapathSettings, load_maps},
    maps::{BackendRecord, FilterOf, FrontendAddress, MapError, MapKind, MapStore as _, Write},
};
use dsproxy_common::{
    IpFamily, Protocol,
    service::{BackendState, Frontend, Slots},
};

use crate::world::CAPACITIES;

#[test]
fn runs_backends_and_filters_are_read_back_as_they_were_written() {
    let mut maps = load_maps(&CAPACITIES, &DatapathSettings::default()).expect("maps").maps;
    for (family, vip, address) in [(IpFamily::V4, "10.96.0.1", "10.0.0.7"), (IpFamily::V6, "fd00::1", "fd00::7")] {
        // The last run that has room; an id that is zero is one as well.
        let (count, last) = (10, CAPACITIES.slots - 10);
        let ids: Vec<u32> = (0..count).map(|id| id * 3).collect();
        let record = BackendRecord {
            address: address.parse().expect("an address"),
            port: 8080,
            generation: 7,
            service: 3,
            state: BackendState::Active,
            flags: 0,
        };
        let slots = Slots { first: last, count };
        let frontend = Frontend { service: 3, inside: slots, outside: slots, affinity: 0, flags: 0 };
        let address = FrontendAddress { address: vip.parse().expect("an address"), port: 80, protocol: Protocol::Tcp };
        let run = |first| Write::Slots { family, first, service: 3, backends: ids.clone() };
        let word = |filter, value| Write::FilterWord { family, filter, index: 131_071, value };
        let backend = CAPACITIES.backends - 1;
        for write in [
            Write::Backend { family, id: backend, record },
            run(last),
            word(FilterOf::Frontends, 1 << 63),
            word(FilterOf::Backends, 5),
            Write::Frontend { address, frontend },
        ] {
            maps.write(&write).unwrap_or_else(|error| panic!("{write:?}: {error}"));
        }
        let full = maps.write(&run(last + 1)).expect_err("one slot too many");
        assert!(
            matches!(full, MapError::Full { map: MapKind::Slots, capacity } if capacity == CAPACITIES.slots),
            "{full}"
        );

        let contents = maps.contents().expect("contents");
        assert_eq!(contents.runs.get(&(family, last)), Some(&ids));
        assert!(contents.backends.contains(&(family, backend, record)), "{:?}", contents.backends);
        assert!(contents.frontends.contains(&(address, frontend)), "{:?}", contents.frontends);
        for word in [(family, FilterOf::Frontends, 131_071, 1 << 63), (family, FilterOf::Backends, 131_071, 5)] {
            assert!(contents.filter.contains(&word), "{:?}", contents.filter);
        }
    }
    let contents = maps.contents().expect("contents");
    assert_eq!((contents.backends.len(), contents.frontends.len(), contents.runs.len()), (2, 2, 2));
    assert_eq!(contents.filter.len(), 4, "{:?}", contents.filter);
}
