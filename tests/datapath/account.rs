//! What packets take, counted: what docs/design.md says of it, and no more of it unnoticed.

use dsproxy_common::IpFamily;
use dsproxy_tests::bench::{Taken, follow_life};

/// A connection of a pod to a pod of its node. The account follows the programs by itself and fails where a packet comes out otherwise than in
/// the kernel.
#[test]
fn each_step_of_a_connection_takes_the_calls_that_it_is_said_to() {
    let step = |lookups, checksums| Taken { lookups, checksums, ..Taken::default() };
    let expected = [
        ("SYN, from the client's device", Taken { entered: 2, ..step(4, 1) }),
        ("SYN, to the backend's device", step(0, 0)),
        ("SYN+ACK, from the backend's device", step(0, 0)),
        ("SYN+ACK, to the client's device", step(2, 1)),
        ("first ACK, from the client's device", Taken { entered: 2, removed: 2, ..step(3, 1) }),
        ("first ACK, to the backend's device", step(0, 0)),
        ("data, from the client's device", step(1, 1)),
        ("data, to the backend's device", step(0, 0)),
        ("data, from the backend's device", step(0, 0)),
        ("data, to the client's device", step(1, 1)),
        ("FIN, to the client's device", step(2, 1)),
        ("FIN in answer, from the client's device", step(2, 1)),
        ("FIN in answer, to the backend's device", step(0, 0)),
        ("last ACK, to the client's device", step(1, 1)),
    ];
    for family in IpFamily::ALL {
        let taken = follow_life(family).expect("every step can be followed");
        assert_eq!(taken, expected, "{family}");
    }
}
