//! Ten thousand Services and a hundred changes a second: a short time here, a minute of it in the soak.

use std::time::Duration;

use dsproxy_tests::churn::{Churn, run};

#[test]
fn a_daemon_keeps_up_with_a_hundred_changes_a_second_among_ten_thousand_services() {
    let churned =
        run(Churn { services: 10_000, rate: 100, length: Duration::from_secs(8) }).expect("the daemon serves");
    churned.judge().expect("it keeps up");
    assert!(churned.changes >= 700, "{churned:?}");
    eprintln!("{churned:?}");
}
