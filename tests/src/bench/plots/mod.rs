//! What a run looks like: plots and tables for docs/benchmarks.md, made from its JSON and nothing else.

mod aims;
mod draw;
mod lists;
mod select;
mod tables;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{Report, Source, traffic::PART as TRAFFIC};
use select::Panel;

/// Where plots go, below the directory of the documents.
const DIRECTORY: &str = "plots";

/// The document whose tables are written.
const DOCUMENT: &str = "benchmarks.md";

const BEGIN: &str = "<!-- `cargo xtask bench plots` writes what follows; do not edit it -->";
const END: &str = "<!-- here ends what `cargo xtask bench plots` writes -->";

/// The flows whose forwarding is drawn.
const MANY_FLOWS: &str = "4096";

/// Why there is no picture.
#[derive(Debug, Error)]
pub enum PlotError {
    /// A plot could not be drawn or written.
    #[error("draw {}: {reason}", .path.display())]
    Draw {
        /// Where to.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{operation} {}: {source}", .path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The document has no place for tables.
    #[error("{} has no line `{line}`; put it where tables are to begin or end", .path.display())]
    NoMarker {
        /// The document.
        path: PathBuf,
        /// The line.
        line: &'static str,
    },
}

/// Draws the plots of `reports` below `directory`, and writes their tables into the document there, one after the other. Returns what
/// was written.
///
/// # Errors
///
/// When a file cannot be written, or the document does not say where tables are to be.
pub fn write_documents(reports: &[Report], directory: &Path) -> Result<Vec<PathBuf>, PlotError> {
    let plots = directory.join(DIRECTORY);
    fs::create_dir_all(&plots).map_err(|source| PlotError::File {
        operation: "create",
        path: plots.clone(),
        source,
    })?;
    let mut written = Vec::new();
    let mut content = String::new();
    let aims = aims::aims(&reports.iter().flat_map(|report| &report.figures).collect::<Vec<_>>());
    if !aims.is_empty() {
        content += &format!("### Aims\n\n{aims}\n");
    }
    for report in reports {
        content += &format!("{}\n\n", tables::machine(report));
        for plot in plots_of(report) {
            let path = plots.join(plot.file);
            plot.draw(&path)?;
            content += &format!("![{}]({DIRECTORY}/{})\n\n", plot.title, plot.file);
            written.push(path);
        }
        content += &format!("{}\n", tables::all(report));
    }
    let document = directory.join(DOCUMENT);
    let text = fs::read_to_string(&document).map_err(|source| PlotError::File {
        operation: "read",
        path: document.clone(),
        source,
    })?;
    let text = put(&text, content.trim_end()).map_err(|line| PlotError::NoMarker { path: document.clone(), line })?;
    fs::write(&document, text).map_err(|source| PlotError::File {
        operation: "write",
        path: document.clone(),
        source,
    })?;
    written.push(document);
    Ok(written)
}

/// A plot of one file.
struct Plot {
    file: &'static str,
    title: &'static str,
    /// What the vertical axis shows.
    axis: &'static str,
    panels: Vec<Panel>,
}

/// The plots that `report` has figures for.
fn plots_of(report: &Report) -> Vec<Plot> {
    let by_services =
        |measure, what| select::panels(&report.figures, &[("part", TRAFFIC), ("measure", measure), ("what", what)]);
    let forwarded = |source: Source, what| {
        let at = [("part", source.part()), ("flows", MANY_FLOWS), ("what", what)];
        select::panels(&report.figures, &at)
    };
    let plots = [
        Plot {
            file: "forwarded.svg",
            title: "Packets forwarded, of 4096 flows",
            axis: "a second, by one processor",
            panels: forwarded(Source::LiveFrames, "rate"),
        },
        Plot {
            file: "forwarded-processor-time.svg",
            title: "Packets forwarded, of 4096 flows: processor time of each",
            axis: "us",
            panels: forwarded(Source::LiveFrames, "processor time"),
        },
        Plot {
            file: "connections.svg",
            title: "New connections, one at a time: rate",
            axis: "share of the rate straight to the pod",
            panels: by_services("connections, one at a time", "rate, share of the floor"),
        },
        Plot {
            file: "connection-processor-time.svg",
            title: "New connections: processor time that each adds",
            axis: "us over straight to the pod",
            panels: by_services("connections, one at a time", "processor time added"),
        },
        Plot {
            file: "request-processor-time.svg",
            title: "Requests on a kept connection: processor time that each adds",
            axis: "us over straight to the pod",
            panels: by_services("requests on a kept connection", "processor time added"),
        },
    ];
    plots.into_iter().filter(|plot| plot.panels.iter().any(|panel| !panel.lines.is_empty())).collect()
}

/// `document` with `content` between its markers; fails with the marker that it lacks.
fn put(document: &str, content: &str) -> Result<String, &'static str> {
    let (before, rest) = document.split_once(BEGIN).ok_or(BEGIN)?;
    let (_, after) = rest.split_once(END).ok_or(END)?;
    Ok(format!("{before}{BEGIN}\n\n{content}\n\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_goes_between_the_markers_and_nowhere_else() {
        let document = format!("# Title\n{BEGIN}\nold\n{END}\nrest\n");
        let once = put(&document, "new").expect("the markers are there");
        assert_eq!(once, format!("# Title\n{BEGIN}\n\nnew\n\n{END}\nrest\n"));
        assert_eq!(put(&once, "new").as_deref(), Ok(once.as_str()), "again is the same");
        assert_eq!(put("no markers", "new"), Err(BEGIN));
        assert_eq!(put(&format!("{END}{BEGIN}"), "new"), Err(END));
    }
}
