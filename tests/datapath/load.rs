//! The kernel takes every program.

use dsproxy::datapath::load::{PROGRAMS, XDP_PROGRAM};
use dsproxy_common::IpFamily;
use dsproxy_tests::{
    packet::Link,
    prog::{Datapath, Entry, Hook, kernel_release, program_name},
};

use crate::world::CAPACITIES;

/// How many instructions the verifier may look at for one program. The kernel's limit is a million; far below it, one
/// more way through a program does not bring it near, whatever the kernel's version makes of it.
const VERIFIED: u32 = 500_000;

#[test]
fn every_program_passes_the_verifier() {
    let release = kernel_release().expect("a kernel that tells its release");
    let mut datapath = Datapath::load(&CAPACITIES)
        .unwrap_or_else(|error| panic!("kernel {release} does not take the programs: {error}"));
    let mut names: Vec<_> =
        Hook::ALL.into_iter().flat_map(|hook| Link::ALL.map(|link| program_name(hook, link))).collect();
    names.sort_unstable();
    let mut known = PROGRAMS;
    known.sort_unstable();
    assert_eq!(names, known, "a program is loaded that no test runs");
    for (hook, link) in Hook::ALL.into_iter().flat_map(|hook| Link::ALL.map(|link| (hook, link))) {
        let verified = datapath.verified_instructions(hook, link).expect("a program that can be looked at");
        println!("kernel {release} takes {}, verifying {verified} instructions", program_name(hook, link));
        assert!(verified > 0 && verified < VERIFIED, "{}: {verified}", program_name(hook, link));
    }
    let verified = datapath.verified_xdp_instructions().expect("a program that can be looked at");
    println!("kernel {release} takes {XDP_PROGRAM}, verifying {verified} instructions");
    assert!(verified > 0 && verified < VERIFIED, "{XDP_PROGRAM}: {verified}");
    datapath.listen().expect("programs that tell of packets");
    datapath.shorten().expect("programs that send past the stack");
    for (name, verified) in datapath.verified_ends().expect("programs that can be looked at") {
        println!("kernel {release} takes {name}, verifying {verified} instructions");
        assert!(verified > 0 && verified < VERIFIED, "{name}: {verified}");
    }
    for family in IpFamily::ALL {
        for entry in [Entry::Forward, Entry::Reply] {
            assert_eq!(datapath.connections().count(family, entry).expect("a table that can be read"), 0);
        }
    }
}
