//! The archive: files in a directory, none of them without an end. Knows nothing of what is in them.

use std::io::{self, Write};

use flate2::{Compression, write::GzEncoder};
use tar::{Builder, Header};

use super::shorten::{LONGEST, shortened};

/// An archive that is being written.
pub(super) struct Archive<W: Write> {
    directory: String,
    time: u64,
    tar: Builder<GzEncoder<W>>,
}

impl<W: Write> Archive<W> {
    /// An archive whose files are in `directory`, and of `time`, in seconds since 1970.
    pub(super) fn new(to: W, directory: &str, time: i64) -> Self {
        let tar = Builder::new(GzEncoder::new(to, Compression::default()));
        Self { directory: directory.to_owned(), time: u64::try_from(time).unwrap_or_default(), tar }
    }

    /// Adds a file, or as much of it as a file may have.
    pub(super) fn add(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let content = shortened(name, content, LONGEST);
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.time);
        self.tar.append_data(&mut header, format!("{}/{name}", self.directory), &*content)
    }

    /// Writes what ends an archive.
    pub(super) fn finish(self) -> io::Result<()> {
        self.tar.into_inner()?.finish()?.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn files_come_out_as_they_went_in_but_for_what_is_too_long() {
        let mut written = Vec::new();
        let mut archive = Archive::new(&mut written, "dsproxy-a", 1_700_000_000);
        archive.add("status.txt", b"all is well\n").expect("added");
        archive.add("daemon/metrics.txt", "a line\n".repeat(LONGEST / 7 + 1).as_bytes()).expect("added");
        archive.finish().expect("finished");
        let mut tar = tar::Archive::new(GzDecoder::new(&*written));
        let files: Vec<(String, Vec<u8>)> = tar
            .entries()
            .expect("an archive")
            .map(|entry| {
                let mut entry = entry.expect("an entry");
                let mut content = Vec::new();
                entry.read_to_end(&mut content).expect("its content");
                assert_eq!(entry.header().mtime().expect("a time"), 1_700_000_000);
                (entry.path().expect("a name").display().to_string(), content)
            })
            .collect();
        assert_eq!(files[0], ("dsproxy-a/status.txt".to_owned(), b"all is well\n".to_vec()));
        assert_eq!(files[1].0, "dsproxy-a/daemon/metrics.txt");
        assert!(files[1].1.ends_with(b"a line\n... cut off here\n"));
        assert!((LONGEST..LONGEST + 32).contains(&files[1].1.len()), "{}", files[1].1.len());
    }
}
