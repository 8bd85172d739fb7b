//! An API server that is of no use for an hour, which passes at once: what is waited for is not what a test has to wait for.

use std::time::Duration;

use dsproxy::{
    model::IpFamily,
    source::{Delta, kubernetes::Pace},
};
use dsproxy_tests::apiserver::{ApiServer, Fault, Matching, Refusal, Resource, StreamAct, Verb, network};
use tokio::time::{pause, resume, sleep};

use crate::{
    harness::Source,
    objects::{NAMESPACE, model_service, model_slice, name, service, slice},
};

const HOUR: Duration = Duration::from_secs(3600);

/// In which way it is of no use.
enum Outage {
    Gone,
    Refuses(Refusal),
    Hangs,
}

impl Outage {
    /// What passes from one attempt to the next once the delays have grown: at least, and at most.
    fn between_attempts(&self, pace: &Pace) -> [Duration; 2] {
        let (longest, before) = match self {
            Self::Gone => (pace.longest_retry_unreachable, Duration::ZERO),
            Self::Refuses(Refusal { retry_after: Some(asked_for), .. }) => {
                // Longer than any delay of its own, and some for those who were refused together.
                let asked_for = Duration::from_secs(*asked_for);
                return [asked_for, asked_for + pace.first_retry];
            }
            Self::Refuses(_) => (pace.longest_retry_refused, Duration::ZERO),
            Self::Hangs => (pace.longest_retry_unreachable, pace.answer),
        };
        [before + longest / 2, before + longest]
    }
}

#[test]
fn an_hour_without_the_server_is_forgotten_as_soon_as_it_is_back() {
    passes(&Outage::Gone);
}

#[test]
fn an_hour_of_refusals_is_forgotten_as_soon_as_it_is_over() {
    for refusal in [Refusal::with(503), Refusal::with(401), Refusal { retry_after: Some(45), ..Refusal::with(429) }] {
        passes(&Outage::Refuses(refusal));
    }
}

#[test]
fn an_hour_without_an_answer_is_forgotten_as_soon_as_there_is_one() {
    passes(&Outage::Hangs);
}

fn passes(outage: &Outage) {
    network::run(|| async {
        let mut server = ApiServer::start().await;
        for number in 1..=3 {
            server.put(service(&format!("web-{number}"), number));
        }
        server.put(slice("web-4", IpFamily::V4, &[1]));
        server.put(slice("web-6", IpFamily::V6, &[1]));
        // As in earnest, but that a watch that has only just begun is none that was cut short: that goes by real time.
        let pace = Pace { shortest_watch: Duration::ZERO, ..Pace::default() };
        let mut source = Source::at(&server, pace.clone()).await;
        assert_eq!(source.snapshot_of_services().await.len(), 3);
        assert_eq!(source.snapshot_of_slices().await.len(), 2);
        source.until_connected().await;
        server.until_watched().await;
        source.assert_silent();

        let lists = Resource::ALL.map(|resource| server.count(Verb::List, resource));
        let failures = source.status.failures();
        match outage {
            Outage::Gone => server.stop().await,
            Outage::Refuses(refusal) => fail(&server, &Fault::Refuse(refusal.clone())).await,
            Outage::Hangs => fail(&server, &Fault::Hang).await,
        }
        // What happens meanwhile.
        server.put(service("web-1", 9));
        server.delete(Resource::EndpointSlices, NAMESPACE, "web-4");
        pause();
        sleep(HOUR).await;
        let failed = (source.status.failures() - failures) as f64;
        let [least, most] = outage.between_attempts(&pace);
        let kinds = Resource::ALL.len() as f64;
        // Delays are short before they have grown, and the clock runs ahead while a request is on its way.
        let attempts = kinds * 0.9 * HOUR.div_duration_f64(most)..kinds * (HOUR.div_duration_f64(least) + 12.0);
        assert!(attempts.contains(&failed), "{failed} attempts failed, where {attempts:?} were to");
        assert!(!source.status.connected());
        source.assert_silent();

        match outage {
            Outage::Gone => server.restart().await,
            Outage::Refuses(_) | Outage::Hangs => server.faults().clear(),
        }
        // Nobody has to wait for longer than one delay.
        sleep(most + Duration::from_secs(1)).await;
        resume();
        assert!(source.status.connected(), "{:?}", source.status);
        assert_eq!(source.service().await, Delta::Apply(model_service("web-1", 9)));
        assert_eq!(source.slice().await, Delta::Delete(name("web-4")));
        assert_eq!(source.status.last_error(), None);
        // The watches go on from where they were: nothing was forgotten on either side.
        assert_eq!(Resource::ALL.map(|resource| server.count(Verb::List, resource)), lists);
        server.put(slice("web-6", IpFamily::V6, &[1, 2]));
        assert_eq!(source.slice().await, Delta::Apply(model_slice("web-6", IpFamily::V6, &[1, 2])));
        source.assert_silent();
    });
}

/// Has everything go wrong that is asked from now on, and waits until everything has been asked anew.
async fn fail(server: &ApiServer, fault: &Fault) {
    server.faults().always(Matching::default(), fault.clone());
    for resource in Resource::ALL {
        let before = server.count(Verb::Watch, resource);
        server.act_on_watches(resource, &StreamAct::End);
        server.until_watches(resource, before + 1).await;
    }
}
