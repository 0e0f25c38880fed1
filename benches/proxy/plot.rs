//! The growth plot.

use std::path::Path;

use plotters::{coord::Shift, prelude::*};

use crate::Result;

/// One line of the plot.
pub struct Series {
    /// What grows.
    pub name: &'static str,
    /// From few to many.
    pub points: Vec<Point>,
}

/// What was measured with so many.
pub struct Point {
    /// How many there are; 0 is drawn at 1.
    pub count: usize,
    /// Microseconds of CPU per call.
    pub cpu: f64,
    /// MiB that the process holds.
    pub memory: f64,
}

/// Draws the CPU of every series, and its memory below, the numbers on a logarithmic axis.
pub fn draw(file: &Path, all: &[Series]) -> Result<()> {
    let area = SVGBackend::new(file, (800, 900)).into_drawing_area();
    area.fill(&WHITE)?;
    let (above, below) = area.split_vertically(450);
    chart(&above, "CPU per call, microseconds", all, |point| point.cpu)?;
    chart(&below, "Resident memory, MiB", all, |point| point.memory)?;
    area.present()?;
    Ok(())
}

fn chart(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    caption: &str,
    all: &[Series],
    of: fn(&Point) -> f64,
) -> Result<()> {
    let right = |point: &Point| point.count.max(1) as f64;
    let points = || all.iter().flat_map(|series| &series.points);
    let most = points().map(right).fold(1.0, f64::max);
    let top = points().map(of).fold(1.0, f64::max) * 1.2;
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .caption(caption, ("sans-serif", 20))
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d((1.0..most).log_scale(), 0.0..top)?;
    chart.configure_mesh().draw()?;
    for (n, Series { name, points }) in all.iter().enumerate() {
        let color = Palette99::pick(n).to_rgba();
        let line = points.iter().map(|point| (right(point), of(point)));
        chart
            .draw_series(LineSeries::new(line, color.stroke_width(2)).point_size(4))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperMiddle)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    Ok(())
}
