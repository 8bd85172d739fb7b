//! The view at a terminal, from one happening to the next, and a terminal that is left as it was.

use std::{
    iter,
    ops::ControlFlow,
    sync::mpsc::{self, Receiver},
};

use anyhow::Context as _;
use ratatui::{Terminal, backend::Backend};

use super::{
    TopArguments, draw,
    happenings::{self, Happening, Reading},
    rates::Rates,
    screen::Screen,
};
use crate::inspect::{Live, fill::MapFill};

/// Shows what passes until the user has seen enough.
///
/// # Errors
///
/// When the terminal cannot be used, or the maps cannot be read any more.
pub(super) fn show(live: Live, arguments: &TopArguments) -> anyhow::Result<()> {
    let (sender, happenings) = mpsc::channel();
    happenings::signals(sender.clone())?;
    // Before the first change, for what fails half way has changed it as well.
    let _restored = Restored;
    let mut terminal = ratatui::try_init().context("use the terminal; --once prints text instead")?;
    happenings::keys(sender.clone())?;
    happenings::readings(sender, live, arguments.filter.clone(), arguments.interval)?;
    follow(&mut terminal, Shown { screen: Screen::new(arguments.sort), ..Shown::default() }, &happenings)
}

/// Leaves the terminal as it was, however the view ends.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn follow<B>(terminal: &mut Terminal<B>, mut shown: Shown, happenings: &Receiver<Happening>) -> anyhow::Result<()>
where
    B: Backend,
    B::Error: Send + Sync + 'static,
{
    loop {
        let Shown { screen, rates, maps } = &mut shown;
        terminal.draw(|frame| draw::draw(frame, screen, rates, maps)).context("draw on the terminal")?;
        let first = happenings.recv().context("wait for keys")?;
        // All that has happened by now, for a terminal that draws slowly.
        for happening in iter::once(first).chain(happenings.try_iter()) {
            if let ControlFlow::Break(outcome) = shown.take(happening) {
                return outcome;
            }
        }
    }
}

/// What is on the screen.
#[derive(Debug, Default)]
struct Shown {
    screen: Screen,
    rates: Rates,
    maps: Vec<MapFill>,
}

impl Shown {
    /// What it is after a happening; with an outcome, if that is the last.
    fn take(&mut self, happening: Happening) -> ControlFlow<anyhow::Result<()>> {
        match happening {
            Happening::Key(key) if self.screen.press(key) => return ControlFlow::Break(Ok(())),
            Happening::Signalled => return ControlFlow::Break(Ok(())),
            Happening::Failed(error) => return ControlFlow::Break(Err(error)),
            Happening::Read(Reading { rates, maps }) if !self.screen.is_paused() => {
                self.rates = rates;
                self.maps = maps.unwrap_or(std::mem::take(&mut self.maps));
            }
            Happening::Key(_) | Happening::Resized | Happening::Read(_) => {}
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use ratatui::{backend::TestBackend, crossterm::event::KeyCode};

    use super::{super::rates::tests::rates, *};

    fn reading(maps: Option<u64>) -> Happening {
        let fill = |bytes| MapFill { map: "connections", family: None, entries: Some(1), capacity: Some(2), bytes };
        Happening::Read(Reading { rates: rates(), maps: maps.map(|bytes| vec![fill(bytes)]) })
    }

    fn key(code: KeyCode) -> Happening {
        Happening::Key(code.into())
    }

    #[test]
    fn what_was_read_is_shown_unless_the_user_pauses() {
        let mut shown = Shown::default();
        let bytes = |shown: &Shown| shown.maps.iter().map(|map| map.bytes).collect::<Vec<_>>();
        let pause = || key(KeyCode::Char(' '));
        for (happening, services, expected) in [
            (pause(), 0, &[][..]),
            (reading(Some(1)), 0, &[]),
            (pause(), 0, &[]),
            (reading(Some(2)), 4, &[2]),
            (reading(None), 4, &[2]),
            (Happening::Resized, 4, &[2]),
            (reading(Some(3)), 4, &[3]),
        ] {
            let told = format!("{happening:?}");
            assert!(shown.take(happening).is_continue(), "{told}");
            assert_eq!((shown.rates.services.len(), &*bytes(&shown)), (services, expected), "{told}");
        }
    }

    #[test]
    fn it_ends_by_a_key_by_a_signal_and_by_what_fails() {
        let outcome = |last: Happening| {
            let (sender, happenings) = mpsc::channel();
            for happening in [key(KeyCode::Char('n')), reading(None), last, key(KeyCode::Char('n'))] {
                sender.send(happening).expect("the receiver is there");
            }
            let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a screen in memory");
            follow(&mut terminal, Shown::default(), &happenings).map_err(|error| error.to_string())
        };
        assert_eq!(outcome(key(KeyCode::Char('q'))), Ok(()));
        assert_eq!(outcome(Happening::Signalled), Ok(()));
        assert_eq!(outcome(Happening::Failed(anyhow::anyhow!("no maps"))), Err("no maps".to_owned()));
    }
}
