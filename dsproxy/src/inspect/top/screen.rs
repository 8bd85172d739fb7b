//! What the user has chosen to see. Pure: keys come in, and rows go out.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{
    SortBy,
    rates::{Rates, ServiceRate, sort},
};

/// The state of the screen.
#[derive(Clone, Debug, Default)]
pub(super) struct Screen {
    pub(super) sort: SortBy,
    pub(super) shows_idle: bool,
    pub(super) paused: bool,
    /// What has to be in a name.
    pub(super) search: String,
    /// Whether keys go to `search`.
    pub(super) is_searching: bool,
    /// The first row that is shown.
    pub(super) first: usize,
    /// How many rows there was room for.
    pub(super) room: usize,
}

impl Screen {
    /// A screen on which nothing was chosen yet but what to sort by.
    pub(super) fn new(sort: SortBy) -> Self {
        Self { sort, ..Self::default() }
    }

    /// Whether what is shown stays as it is.
    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// A key was pressed. True if the user has seen enough.
    pub(super) fn press(&mut self, key: KeyEvent) -> bool {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return matches!(key.code, KeyCode::Char('c' | 'd'));
        }
        if self.is_searching {
            self.type_in(key.code);
            return false;
        }
        match key.code {
            KeyCode::Char('q') => return true,
            KeyCode::Esc if self.search.is_empty() => return true,
            KeyCode::Esc => self.search.clear(),
            KeyCode::Char(' ') => self.paused = !self.paused,
            KeyCode::Char('i') => self.shows_idle = !self.shows_idle,
            KeyCode::Char('/') => self.is_searching = true,
            KeyCode::Char('b') => self.sort = SortBy::Bytes,
            KeyCode::Char('p') => self.sort = SortBy::Packets,
            KeyCode::Char('r') => self.sort = SortBy::Replies,
            KeyCode::Char('c') => self.sort = SortBy::Connections,
            KeyCode::Char('o') => self.sort = SortBy::Open,
            KeyCode::Char('d') => self.sort = SortBy::Drops,
            KeyCode::Char('n') => self.sort = SortBy::Name,
            KeyCode::Up => self.first = self.first.saturating_sub(1),
            KeyCode::Down => self.first += 1,
            KeyCode::PageUp => self.first = self.first.saturating_sub(self.room),
            KeyCode::PageDown => self.first += self.room,
            KeyCode::Home => self.first = 0,
            _ => {}
        }
        false
    }

    fn type_in(&mut self, key: KeyCode) {
        self.first = 0;
        match key {
            KeyCode::Enter => self.is_searching = false,
            KeyCode::Esc => {
                self.search.clear();
                self.is_searching = false;
            }
            KeyCode::Backspace => {
                self.search.pop();
            }
            KeyCode::Char(character) => self.search.push(character),
            _ => {}
        }
    }

    /// The rows for which there is `room`, and how many there are of all.
    pub(super) fn rows<'a>(&mut self, rates: &'a Rates, room: usize) -> (Vec<&'a ServiceRate>, usize) {
        let mut rows: Vec<_> = rates
            .services
            .iter()
            .filter(|service| service.name.contains(&self.search))
            .filter(|service| self.shows_idle || service.open > 0 || !service.is_idle())
            .collect();
        sort(&mut rows, self.sort);
        self.room = room;
        // Rows go while the user is at the end of them.
        self.first = self.first.min(rows.len().saturating_sub(room));
        let all = rows.len();
        (rows.into_iter().skip(self.first).take(room).collect(), all)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::rates::tests::rates, *};

    fn press(screen: &mut Screen, keys: &str) {
        for key in keys.chars() {
            let code = match key {
                '\n' => KeyCode::Enter,
                '<' => KeyCode::Backspace,
                'v' => KeyCode::Down,
                key => KeyCode::Char(key),
            };
            assert!(!screen.press(code.into()), "{key:?} does not end it");
        }
    }

    fn names(screen: &mut Screen, room: usize) -> (Vec<String>, usize) {
        let rates = rates();
        let (rows, all) = screen.rows(&rates, room);
        (rows.iter().map(|row| row.name.clone()).collect(), all)
    }

    #[test]
    fn rows_are_searched_sorted_and_scrolled() {
        let mut screen = Screen::new(SortBy::Name);
        assert_eq!(names(&mut screen, 9).1, 4, "idle, but with open connections");
        press(&mut screen, "vvvvvvv");
        assert_eq!(
            names(&mut screen, 3),
            (["a/reset:x/TCP", "a/steady:x/TCP", "b/new:x/TCP"].map(str::to_owned).into(), 4)
        );
        press(&mut screen, "/newt<\nb");
        assert_eq!(names(&mut screen, 9), (vec!["b/new:x/TCP".to_owned()], 1));
        assert_eq!(screen.sort, SortBy::Bytes, "keys are keys again after the search");
        assert!(!screen.press(KeyCode::Esc.into()), "the search ends first");
        assert_eq!(names(&mut screen, 1), (vec!["a/steady:x/TCP".to_owned()], 4));
        assert!(screen.press(KeyCode::Esc.into()));
    }

    #[test]
    fn it_is_paused_and_left() {
        let mut screen = Screen::new(SortBy::Bytes);
        press(&mut screen, " ");
        assert!(screen.is_paused());
        press(&mut screen, " ");
        assert!(!screen.is_paused());
        assert!(screen.press(KeyCode::Char('q').into()));
        assert!(screen.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        screen.is_searching = true;
        assert!(screen.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), "from everywhere");
    }
}
