//! Whether a list that lacks what it cannot well lack is believed: when the API server says the same once more, after a time in which
//! nothing went wrong.
//!
//! It does not know what a list holds. What a watch tells is never doubted: a deletion that the server reports one by one has happened.

use std::time::{Duration, Instant};

/// What to think of the lists of one kind.
#[derive(Debug)]
pub(super) struct Doubt {
    /// How long the server has to stay with it, undisturbed.
    wait: Duration,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// The last list was as it should be.
    None,
    /// A list lacked something, and since then nothing went wrong.
    Since(Instant),
    /// After the wait it is listed once more.
    Asking,
}

impl Doubt {
    pub(super) fn new(wait: Duration) -> Self {
        Self { wait, state: State::None }
    }

    /// A list lacks what it cannot well lack. Says whether it is to be believed.
    pub(super) fn believes(&mut self, now: Instant) -> bool {
        match self.state {
            State::Asking => {
                self.state = State::None;
                true
            }
            State::None => {
                self.state = State::Since(now);
                false
            }
            State::Since(_) => false,
        }
    }

    /// A list lacks nothing.
    pub(super) fn settle(&mut self) {
        self.state = State::None;
    }

    /// Something went wrong between the server and us: what it says is to be heard twice anew.
    pub(super) fn disturb(&mut self, now: Instant) {
        if self.state != State::None {
            self.state = State::Since(now);
        }
    }

    /// When it is to be listed once more.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Since(since) => Some(since + self.wait),
            State::None | State::Asking => None,
        }
    }

    /// It is listed once more.
    pub(super) fn ask(&mut self) {
        self.state = State::Asking;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(60);

    #[test]
    fn a_list_is_believed_when_it_is_said_twice_with_a_quiet_wait_between() {
        let (mut doubt, start) = (Doubt::new(WAIT), Instant::now());
        assert_eq!(doubt.due(), None);
        assert!(!doubt.believes(start));
        assert_eq!(doubt.due(), Some(start + WAIT));
        assert!(!doubt.believes(start + WAIT / 2), "another list within the wait changes nothing");
        assert_eq!(doubt.due(), Some(start + WAIT));
        doubt.ask();
        assert_eq!(doubt.due(), None, "one list is under way");
        assert!(doubt.believes(start + WAIT));
        assert!(!doubt.believes(start + WAIT), "the next loss is another one");
    }

    #[test]
    fn the_wait_begins_anew_when_something_goes_wrong() {
        let (mut doubt, start) = (Doubt::new(WAIT), Instant::now());
        doubt.disturb(start);
        assert_eq!(doubt.due(), None, "there was no doubt");
        doubt.believes(start);
        let later = start + WAIT / 2;
        doubt.disturb(later);
        assert_eq!(doubt.due(), Some(later + WAIT));
        doubt.ask();
        // The list that was to confirm it failed; what comes next is a first list again.
        doubt.disturb(later + WAIT);
        assert!(!doubt.believes(later + WAIT));
        assert_eq!(doubt.due(), Some(later + 2 * WAIT));
    }

    #[test]
    fn a_list_that_lacks_nothing_ends_it() {
        let (mut doubt, start) = (Doubt::new(WAIT), Instant::now());
        doubt.believes(start);
        doubt.settle();
        assert_eq!(doubt.due(), None);
        assert!(!doubt.believes(start + WAIT));
    }
}
