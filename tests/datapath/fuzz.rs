//! Some of the packets that `cargo xtask fuzz packets` throws by the million: none becomes what the model does not say.

use dsproxy_common::count::Reason;
use dsproxy_tests::fuzz;

/// As many as take some twenty seconds.
const PACKETS: u64 = 80_000;

/// Always the same, so that what fails fails again.
const SEED: u64 = 1;

#[test]
fn mutated_packets_become_what_the_model_says() {
    match fuzz::packets(PACKETS, SEED) {
        Ok(report) => {
            println!("{report}");
            // Were most of them nobody's, little would be tested.
            let count = |reason| report.reasons.get(&reason).copied().unwrap_or_default();
            let translated =
                [Reason::Opened, Reason::Forwarded, Reason::Replied, Reason::Masqueraded, Reason::Unmasqueraded];
            assert!(translated.map(count).iter().sum::<u64>() > PACKETS / 10, "{report}");
            for reason in [Reason::SentDirect, Reason::DirectArrived] {
                assert!(count(reason) > PACKETS / 200, "{reason:?}: {report}");
            }
            assert!(report.past_stack > PACKETS / 400, "{report}");
        }
        Err(error) => panic!("{error}"),
    }
}
