//! The kernel takes every program.

use dsproxy::datapath::load::PROGRAMS;
use dsproxy_common::IpFamily;
use dsproxy_tests::{
    packet::Link,
    prog::{Datapath, Entry, Hook, kernel_release, program_name},
};

use crate::world::CAPACITIES;

#[test]
fn every_program_passes_the_verifier() {
    let release = kernel_release().expect("a kernel that tells its release");
    let mut datapath = Datapath::load(&CAPACITIES)
        .unwrap_or_else(|error| panic!("kernel {release} does not take the programs: {error}"));
    let mut names: Vec<_> = [Hook::Ingress, Hook::Egress]
        .into_iter()
        .flat_map(|hook| Link::ALL.map(|link| program_name(hook, link)))
        .collect();
    names.sort_unstable();
    let mut known = PROGRAMS;
    known.sort_unstable();
    assert_eq!(names, known, "a program is loaded that no test runs");
    println!("kernel {release} takes {}", names.join(", "));
    for family in IpFamily::ALL {
        for entry in [Entry::Forward, Entry::Reply] {
            assert_eq!(datapath.connections().count(family, entry).expect("a table that can be read"), 0);
        }
    }
}
