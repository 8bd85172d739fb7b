//! Drawing: small line plots side by side, one legend for all, as SVG whose letters are the viewer's own.

use std::path::Path;

use plotters::prelude::*;

use super::{
    Plot, PlotError,
    select::{Line, Panel, range},
};

/// Of one panel, in pixels.
const PANEL: (u32, u32) = (360, 260);

/// For the title and the legend above the panels.
const HEAD: u32 = 64;

const FONT: &str = "sans-serif";

/// Colours that most colour-blind people can tell apart (Okabe and Ito), by the variant's place.
const COLOURS: [RGBColor; 6] = [
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(0, 0, 0),
    RGBColor(230, 159, 0),
];

impl Plot {
    /// Draws it into the file `path`.
    pub(super) fn draw(&self, path: &Path) -> Result<(), PlotError> {
        self.try_draw(path).map_err(|error| PlotError::Draw { path: path.to_owned(), reason: error.to_string() })
    }

    fn try_draw(&self, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let Self { file: _, title, axis, panels } = self;
        let columns = panels.len().div_ceil(2).max(1) as u32;
        let rows = (panels.len() as u32).div_ceil(columns);
        let area = SVGBackend::new(path, (PANEL.0 * columns, HEAD + PANEL.1 * rows)).into_drawing_area();
        area.fill(&WHITE)?;
        let (head, body) = area.split_vertically(HEAD);
        let mut variants: Vec<&str> = Vec::new();
        for line in panels.iter().flat_map(|panel| &panel.lines) {
            if !variants.contains(&line.variant.as_str()) {
                variants.push(&line.variant);
            }
        }
        head.draw(&Text::new(format!("{title} ({axis})"), (12, 10), (FONT, 18).into_font()))?;
        for (place, variant) in variants.iter().enumerate() {
            let left = 12 + 180 * place as i32;
            head.draw(&PathElement::new([(left, 50), (left + 28, 50)], colour(place).stroke_width(3)))?;
            head.draw(&Circle::new((left + 14, 50), 4, colour(place).filled()))?;
            head.draw(&Text::new((*variant).to_owned(), (left + 36, 43), (FONT, 14).into_font()))?;
        }
        let heights = range(panels);
        for (panel, place) in panels.iter().zip(body.split_evenly((rows as usize, columns as usize))) {
            draw_panel(panel, &place, heights, &variants)?;
        }
        area.present()?;
        Ok(())
    }
}

fn colour(place: usize) -> RGBColor {
    COLOURS[place % COLOURS.len()]
}

fn draw_panel(
    panel: &Panel,
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    heights: (f64, f64),
    variants: &[&str],
) -> Result<(), Box<dyn std::error::Error>> {
    let Panel { title, lines } = panel;
    let services = || lines.iter().flat_map(|line| &line.points).map(|point| point.0);
    let (fewest, most) = (services().fold(f64::MAX, f64::min), services().fold(1.0, f64::max));
    // Numbers of Services lie powers of ten apart; half of one on each side keeps the points off the frame.
    let fewest = fewest.min(most);
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .caption(title, (FONT, 14))
        .x_label_area_size(34)
        .y_label_area_size(44)
        .build_cartesian_2d((fewest / 2.0..most * 2.0).log_scale(), heights.0..heights.1)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(BLACK.mix(0.12))
        .x_labels(6)
        .y_labels(6)
        .x_desc("Services")
        .x_label_formatter(&|services| format!("{services:.0}"))
        .y_label_formatter(&|height| {
            if heights.1 - heights.0 > 10.0 { format!("{height:.0}") } else { format!("{height:.1}") }
        })
        .label_style((FONT, 12))
        .draw()?;
    for Line { variant, points } in lines {
        let place = variants.iter().position(|name| name == variant).unwrap_or_default();
        chart.draw_series(LineSeries::new(points.iter().copied(), colour(place).stroke_width(2)))?;
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 4, colour(place).filled())))?;
    }
    Ok(())
}
