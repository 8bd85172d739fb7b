//! Ten thousand Services and a hundred changes a second: a short time here, a minute of it in the soak.

use std::time::Duration;

use dsproxy_tests::churn::{Churn, run};

/// What a machine may stand still for that others use as well, and a backlog of some seconds would go far beyond.
const STANDSTILL: Duration = Duration::from_secs(3);

#[test]
fn a_daemon_keeps_up_with_a_hundred_changes_a_second_among_ten_thousand_services() {
    let churned =
        run(Churn { services: 10_000, rate: 100, length: Duration::from_secs(8) }).expect("the daemon serves");
    churned.judge(STANDSTILL, STANDSTILL).expect("it keeps up");
    assert!(churned.changes >= 500, "{churned:?}");
    eprintln!("{churned:?}");
}
