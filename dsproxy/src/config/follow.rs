//! Sees the file of `--config` change.
//!
//! It is read again and again: a ConfigMap is exchanged by turning a symbolic link in another directory than the file's, and
//! reading a few KiB sees that like any other change, without one of the host's few inotify instances.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// How soon a change is seen.
const INTERVAL: Duration = Duration::from_secs(2);

/// Waits until the file no longer holds `text`, and says what became of it.
pub async fn until_changed(path: PathBuf, text: String) -> String {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if let Some(change) = change(&path, &text) {
            return change;
        }
    }
}

fn change(path: &Path, text: &str) -> Option<String> {
    match std::fs::read_to_string(path) {
        Ok(now) => (now != text).then(|| "has changed".to_owned()),
        Err(error) => Some(format!("can no longer be read ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_content_and_no_file_are_changes() {
        let directory = tempfile::tempdir().expect("a directory");
        let (old, new) = (directory.path().join("old"), directory.path().join("new"));
        let link = directory.path().join("config.conf");
        std::fs::write(&old, "a").and_then(|()| std::fs::write(&new, "b")).expect("written");
        std::os::unix::fs::symlink(&old, &link).expect("linked");
        assert_eq!(change(&link, "a"), None);
        std::fs::write(&old, "a").expect("written again");
        assert_eq!(change(&link, "a"), None);
        std::fs::remove_file(&link).and_then(|()| std::os::unix::fs::symlink(&new, &link)).expect("turned");
        assert_eq!(change(&link, "a").as_deref(), Some("has changed"));
        std::fs::remove_file(&new).expect("removed");
        let gone = change(&link, "b").expect("a change");
        assert!(gone.contains("No such file"), "{gone}");
    }
}
