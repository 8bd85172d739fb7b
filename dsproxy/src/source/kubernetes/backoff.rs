//! How long to wait before the next try.
//!
//! It does not know what failed.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// Delays that double up to a limit, with jitter so that the nodes of a cluster do not come back as one.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    failures: u32,
    jitter: Jitter,
}

impl Backoff {
    pub(super) fn new(first: Duration) -> Self {
        Self { first, failures: 0, jitter: Jitter::new() }
    }

    /// The delay before the next try: at most `longest`, but not less than what the server asked for.
    pub(super) fn next(&mut self, longest: Duration, asked_for: Option<Duration>) -> Duration {
        let doubled = self.first.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        let delay = self.jitter.between(doubled.min(longest).div_f64(2.0), doubled.min(longest));
        match asked_for {
            // Clients that were refused together were asked to wait equally long.
            Some(asked_for) => delay.max(asked_for + self.jitter.between(Duration::ZERO, self.first)),
            None => delay,
        }
    }

    /// The next failure is the first again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Random durations, from the randomness of the standard library's hasher.
#[derive(Debug)]
pub(super) struct Jitter {
    random: RandomState,
    drawn: u64,
}

impl Jitter {
    pub(super) fn new() -> Self {
        Self { random: RandomState::new(), drawn: 0 }
    }

    pub(super) fn between(&mut self, low: Duration, high: Duration) -> Duration {
        self.drawn = self.drawn.wrapping_add(1);
        let share = f64::from((self.random.hash_one(self.drawn) >> 32) as u32) / f64::from(u32::MAX);
        low + high.saturating_sub(low).mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    #[test]
    fn delays_double_up_to_the_limit_and_start_over_after_a_reset() {
        let mut backoff = Backoff::new(FIRST);
        for failure in 0..100_u32 {
            let most = FIRST.saturating_mul(1 << failure.min(20)).min(LONGEST);
            let delay = backoff.next(LONGEST, None);
            assert!(delay >= most.div_f64(2.0) && delay <= most, "{failure}: {delay:?} of {most:?}");
        }
        backoff.reset();
        assert!(backoff.next(LONGEST, None) <= FIRST);
    }

    #[test]
    fn a_server_that_asks_for_time_gets_it() {
        let mut backoff = Backoff::new(FIRST);
        let asked_for = Duration::from_secs(7);
        let delay = backoff.next(LONGEST, Some(asked_for));
        assert!(delay >= asked_for && delay <= asked_for + FIRST, "{delay:?}");
    }

    #[test]
    fn two_clients_do_not_come_back_together() {
        let (mut one, mut other) = (Backoff::new(FIRST), Backoff::new(FIRST));
        let delays = |backoff: &mut Backoff| -> Vec<Duration> { (0..8).map(|_| backoff.next(LONGEST, None)).collect() };
        assert_ne!(delays(&mut one), delays(&mut other));
    }
}
