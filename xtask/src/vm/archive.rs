//! The archive that a kernel unpacks as its first file system: cpio in the format that the kernel reads ("newc", see
//! Documentation/driver-api/early-userspace/buffer-format.rst of the kernel). Uncompressed, for an emulated machine takes longer
//! to decompress it than to read it.

use std::io::{self, Write};

/// The name that ends an archive.
const END: &str = "TRAILER!!!";

/// Everything in an archive starts at a multiple of this.
const ALIGNMENT: usize = 4;

/// What an entry is, as `stat` has it in the upper bits of the mode.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive that is being written.
pub(super) struct Archive<W> {
    to: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to, entries: 0 }
    }

    /// Adds a directory; its parent has to be there.
    pub(super) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY | 0o755, &[])
    }

    /// Adds a file that may be executed.
    pub(super) fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR | 0o755, content)
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &str, to: &str) -> io::Result<()> {
        self.entry(path, LINK | 0o777, to.as_bytes())
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.entry(END, 0, &[])?;
        self.to.flush()
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::other(format!("{path} is too large for the archive: {} bytes", content.len())))?;
        self.entries += 1;
        let links = if mode & DIRECTORY == 0 { 1 } else { 2 };
        let (inode, name_size) = (self.entries, path.len() as u32 + 1);
        // Inode, mode, user, group, links, time, size, four numbers of devices, size of the name, checksum.
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header += &format!("{field:08x}");
        }
        self.padded(&[header.as_bytes(), path.as_bytes(), &[0]].concat())?;
        self.padded(content)
    }

    fn padded(&mut self, content: &[u8]) -> io::Result<()> {
        self.to.write_all(content)?;
        self.to.write_all(&[0; ALIGNMENT][..content.len().next_multiple_of(ALIGNMENT) - content.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_header_name_and_content_each_padded() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.file("/a/b", b"hello").expect("memory takes everything");
        archive.finish().expect("memory takes everything");
        let text = String::from_utf8(bytes).expect("text");
        // 110 bytes of header and 5 of name make 115, and 116 with padding.
        assert_eq!(&text[..6], "070701");
        assert_eq!(&text[14..22], "000081ed", "a file that may be executed");
        assert_eq!(&text[54..62], "00000005", "its size");
        assert_eq!(&text[110..116], "a/b\0\0\0");
        assert_eq!(&text[116..124], "hello\0\0\0");
        assert!(text[124..].starts_with("070701") && text.contains(END));
        assert_eq!(text.len() % ALIGNMENT, 0);
    }
}
