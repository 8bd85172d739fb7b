//! How many refusals a CPU may send: a token bucket.

use crate::{record::record, settings::Settings};

/// What a CPU has left of its refusals.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// When it was last looked at: the low half of the jiffies.
    pub updated: u32,
    /// Refusals times jiffies a second, so that each jiffy adds a whole number.
    pub credit: u32,
}

impl Budget {
    /// The budget once a refusal more was asked for at `now`, and whether it may be sent.
    ///
    /// At rest it fills up to the refusals of one second, which may then go at once. One that was never used, all zero, is
    /// full at practically any time. While none are allowed it stays as it is: were it emptied, the first refusals after that would
    /// wait for the clock's next tick.
    #[inline(always)]
    pub const fn take(self, now: u32, settings: &Settings) -> (Self, bool) {
        if settings.refusals_per_second == 0 {
            return (self, false);
        }
        let second = settings.jiffies_per_second;
        let most = second.saturating_mul(settings.refusals_per_second);
        let elapsed = now.wrapping_sub(self.updated);
        let credit = if elapsed >= second {
            most
        } else {
            let earned = elapsed.saturating_mul(settings.refusals_per_second);
            let credit = self.credit.saturating_add(earned);
            if credit > most { most } else { credit }
        };
        let is_granted = credit >= second;
        (Self { updated: now, credit: if is_granted { credit - second } else { credit } }, is_granted)
    }
}

record! {
    Budget { updated, credit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(refusals_per_second: u32) -> Settings {
        Settings { jiffies_per_second: 250, refusals_per_second, ..Settings::default() }
    }

    /// How many of `asked` refusals at `now` are granted.
    fn granted(budget: &mut Budget, asked: u32, now: u32, settings: &Settings) -> u32 {
        (0..asked)
            .filter(|_| {
                let (next, is_granted) = budget.take(now, settings);
                *budget = next;
                is_granted
            })
            .count() as u32
    }

    #[test]
    fn a_second_s_refusals_go_at_once_and_come_back_with_time() {
        let settings = settings(100);
        let mut budget = Budget::default();
        assert_eq!(granted(&mut budget, 1_000, 5_000, &settings), 100);
        assert_eq!(granted(&mut budget, 1_000, 5_001, &settings), 0, "two fifths of one so far");
        assert_eq!(granted(&mut budget, 1_000, 5_005, &settings), 2);
        assert_eq!(granted(&mut budget, 1_000, 5_130, &settings), 50);
        assert_eq!(granted(&mut budget, 1_000, 50_000, &settings), 100, "no more than of one second");
    }

    #[test]
    fn a_steady_stream_gets_what_is_set_however_it_falls() {
        for per_second in [1, 7, 100, 1_000] {
            let settings = settings(per_second);
            let mut budget = Budget::default();
            granted(&mut budget, 10_000, 1_000, &settings);
            let sum: u32 = (1_001..=1_000 + 250 * 20).map(|now| granted(&mut budget, 40, now, &settings)).sum();
            assert_eq!(sum, per_second * 20);
        }
    }

    #[test]
    fn time_wraps_round_and_nothing_is_granted_where_none_are_allowed() {
        let some = settings(10);
        let mut budget = Budget { updated: u32::MAX - 10, credit: 0 };
        assert_eq!(granted(&mut budget, 10, 14, &some), 1, "25 jiffies later");
        assert_eq!(granted(&mut Budget::default(), 10, 5_000, &settings(0)), 0);
        assert_eq!(granted(&mut Budget::default(), 10, 5_000, &Settings::default()), 0, "nothing is set");
        let mut budget = Budget::default();
        assert_eq!(granted(&mut budget, 10, 5_000, &settings(0)), 0);
        assert_eq!(granted(&mut budget, 20, 5_000, &some), 10, "what was not allowed has cost nothing");
        let endless = settings(u32::MAX);
        assert_eq!(granted(&mut Budget::default(), 10, 5_000, &endless), 10, "sums end at the largest number");
    }
}
