//! The kernel takes every program of sockets.

use aya::programs::CgroupSockAddr;
use dsproxy::{
    datapath::{
        attach::cgroup::SocketHook,
        load::{DatapathSettings, Loaded, load_maps, load_socket_programs},
    },
    maps::Capacities,
};

/// How many instructions the verifier may look at for one program; the kernel's limit is a million.
const VERIFIED: u32 = 50_000;

#[test]
fn every_program_passes_the_verifier() {
    // The programs need the maps.
    let Loaded { mut object, maps: _maps, found: _ } =
        load_maps(&Capacities::default(), &DatapathSettings::default()).unwrap_or_else(|error| panic!("{error}"));
    load_socket_programs(&mut object).unwrap_or_else(|error| panic!("{error}"));
    for hook in SocketHook::ALL {
        let program: &CgroupSockAddr =
            object.program(hook.program()).expect("it is in the object").try_into().expect("of its kind");
        let info = program.info().expect("the kernel tells");
        let verified = info.verified_instruction_count().unwrap_or_default();
        println!("{}: {verified} instructions", hook.program());
        assert!(verified > 0 && verified < VERIFIED, "{}: {verified}", hook.program());
    }
}
