//! The directories of layouts on a bpffs, and how one takes another's place so that a kill at any moment leaves something that the
//! next start understands.
//!
//! `v5` is the layout in use, with the maps of the programs that serve. A layout that takes over is prepared as `v6-coming`, of
//! which no program knows yet; a start that finds such a thing throws it away. When it is complete two renames make it the one in
//! use: `v5` becomes `leaving-1-v5`, and `v6-coming` becomes `v6`. A start that finds nothing in use was killed between
//! the two, and takes the last that was leaving back. Leaving layouts stay, with the programs that still serve by their maps, until
//! these are detached; the number says which left last. Nothing here knows what is in the directories.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// The layouts in use by their versions: more than one only if one is of a version that knew nothing of all this.
    pub(super) in_use: Vec<(u32, PathBuf)>,
    /// Those that are leaving, in the order in which they left.
    pub(super) leaving: Vec<PathBuf>,
}

/// The directory of layout `version` below `ours`.
pub(super) fn of(ours: &Path, version: u32) -> PathBuf {
    ours.join(format!("v{version}"))
}

/// Where layout `version` is prepared.
pub(super) fn coming(ours: &Path, version: u32) -> PathBuf {
    ours.join(format!("v{version}-coming"))
}

fn version_of(name: &str) -> Option<u32> {
    name.strip_prefix('v')?.parse().ok()
}

fn leaving_of(name: &str) -> Option<(u64, u32)> {
    let (number, version) = name.strip_prefix("leaving-")?.split_once('-')?;
    Some((number.parse().ok()?, version_of(version)?))
}

fn is_coming(name: &str) -> bool {
    name.strip_suffix("-coming").is_some_and(|name| version_of(name).is_some())
}

/// The numbered layouts that are leaving, in their order.
fn numbered(ours: &Path) -> io::Result<Vec<(u64, u32, PathBuf)>> {
    let mut leaving = Vec::new();
    for name in names(ours)? {
        leaving.extend(leaving_of(&name).map(|(number, version)| (number, version, ours.join(name))));
    }
    leaving.sort();
    Ok(leaving)
}

fn names(ours: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(ours) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Puts right what a kill has left below `ours`, and tells what stands there.
pub(super) fn settle(ours: &Path) -> io::Result<Standing> {
    let mut in_use = Vec::new();
    for name in names(ours)? {
        if is_coming(&name) {
            fs::remove_dir_all(ours.join(name))?;
        } else {
            in_use.extend(version_of(&name).map(|version| (version, ours.join(name))));
        }
    }
    let mut leaving = numbered(ours)?;
    if in_use.is_empty()
        && let Some((_, version, path)) = leaving.pop()
    {
        let back = of(ours, version);
        fs::rename(path, &back)?;
        in_use.push((version, back));
    }
    in_use.sort();
    Ok(Standing { in_use, leaving: leaving.into_iter().map(|(.., path)| path).collect() })
}

/// Makes `version`, which has been prepared, the layout in use, in the place of `from`.
pub(super) fn commit(ours: &Path, from: u32, version: u32) -> io::Result<()> {
    let number = numbered(ours)?.last().map_or(1, |(number, ..)| number + 1);
    fs::rename(of(ours, from), ours.join(format!("leaving-{number}-v{from}")))?;
    fs::rename(coming(ours, version), of(ours, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(ours: &Path, names: &[&str]) {
        for name in names {
            fs::create_dir_all(ours.join(name).join("maps")).expect("made");
        }
    }

    /// What a start finds, by name.
    fn found(ours: &Path) -> (Vec<String>, Vec<String>) {
        let Standing { in_use, leaving } = settle(ours).expect("settled");
        let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
        (in_use.iter().map(|(_, path)| name(path)).collect(), leaving.iter().map(|path| name(path)).collect())
    }

    #[test]
    fn a_kill_at_any_moment_leaves_one_layout_in_use() {
        let directory = tempfile::tempdir().expect("a directory");
        let ours = directory.path();
        assert_eq!(found(ours), (vec![], vec![]));
        make(ours, &["v5", "v6-coming"]);
        assert_eq!(found(ours), (vec!["v5".to_owned()], vec![]), "killed while it was prepared");
        assert!(!ours.join("v6-coming").exists());
        make(ours, &["v6-coming"]);
        fs::rename(ours.join("v5"), ours.join("leaving-1-v5")).expect("renamed");
        assert_eq!(found(ours), (vec!["v5".to_owned()], vec![]), "killed between the renames");
        make(ours, &["v6-coming"]);
        commit(ours, 5, 6).expect("committed");
        let taken_over = (vec!["v6".to_owned()], vec!["leaving-1-v5".to_owned()]);
        assert_eq!(found(ours), taken_over, "killed before the old programs are gone");
        assert_eq!(found(ours), taken_over, "and killed again");
    }

    #[test]
    fn there_and_back_before_the_first_is_done() {
        let directory = tempfile::tempdir().expect("a directory");
        let ours = directory.path();
        make(ours, &["v5", "v6-coming"]);
        commit(ours, 5, 6).expect("committed");
        make(ours, &["v5-coming"]);
        commit(ours, 6, 5).expect("committed");
        let leaving = ["leaving-1-v5", "leaving-2-v6"].map(str::to_owned).to_vec();
        assert_eq!(found(ours), (vec!["v5".to_owned()], leaving));
        make(ours, &["v6-coming"]);
        fs::rename(ours.join("v5"), ours.join("leaving-3-v5")).expect("renamed");
        let leaving = ["leaving-1-v5", "leaving-2-v6"].map(str::to_owned).to_vec();
        assert_eq!(found(ours), (vec!["v5".to_owned()], leaving), "the last that was in use");
    }

    #[test]
    fn names_of_others_are_not_ours_to_judge() {
        let directory = tempfile::tempdir().expect("a directory");
        let ours = directory.path();
        let others = ["vault", "v", "v5x", "leaving-v5", "leaving-x-v5", "coming", "vault-coming"];
        make(ours, &others);
        assert_eq!(found(ours), (vec![], vec![]));
        assert!(others.iter().all(|name| ours.join(name).exists()));
    }
}
