//! The growth plot.

use std::path::Path;

use plotters::prelude::*;

use crate::Result;

/// One line of the plot.
pub struct Series {
    /// What grows.
    pub name: &'static str,
    /// How many there are, and the microseconds of CPU per call.
    pub points: Vec<(f64, f64)>,
}

/// Draws every series over the same axes, the numbers on a logarithmic one.
pub fn draw(file: &Path, all: &[Series]) -> Result<()> {
    let most = |of: fn(&(f64, f64)) -> f64| {
        all.iter()
            .flat_map(|series| series.points.iter().map(of))
            .fold(1.0, f64::max)
    };
    let (right, top) = (most(|point| point.0), most(|point| point.1) * 1.2);
    let area = SVGBackend::new(file, (800, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(16)
        .caption("CPU per call, microseconds", ("sans-serif", 20))
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d((1.0..right).log_scale(), 0.0..top)?;
    chart.configure_mesh().draw()?;
    for (n, Series { name, points }) in all.iter().enumerate() {
        let color = Palette99::pick(n).to_rgba();
        chart
            .draw_series(
                LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(4),
            )?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    area.present()?;
    Ok(())
}
