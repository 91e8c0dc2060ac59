//! The chart: rate against latency, both on log axes, a line from p50 to p99 for each load of each system.

use crate::figures::{Figures, Medians, Shape};
use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;

/// The decades shown: 100/s to 1,000,000/s, and 0.1 ms to 1 s.
const RATE_DECADES: (i32, i32) = (2, 6);
const LATENCY_US_DECADES: (i32, i32) = (2, 6);

/// Draws it as SVG.
pub(crate) fn svg(figures: &Figures) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">Durable writes on three replicas: rate and latency (p50 to p99)</text>\n"
    );
    axes(&mut out);
    for shape in Shape::ALL {
        let Some((etcd, synod)) = figures.medians(shape) else {
            continue;
        };
        // etcd's puts beside the two-branch transaction are those of 256 in flight again.
        if shape != Shape::TwoBranches {
            point(&mut out, &etcd, shape, "#c0392b");
        }
        point(&mut out, &synod, shape, "#1f6fb2");
    }
    let y = TOP + 14.0;
    for (index, (name, color)) in [("etcd, puts", "#c0392b"), ("Synod, decisions", "#1f6fb2")]
        .iter()
        .enumerate()
    {
        let x = WIDTH - RIGHT - 300.0 + 130.0 * if index == 0 { 0.0 } else { 1.0 };
        let _ = writeln!(
            out,
            "<circle cx=\"{x}\" cy=\"{}\" r=\"5\" fill=\"{color}\"/>",
            y - 4.0
        );
        let _ = writeln!(out, "<text x=\"{}\" y=\"{y}\">{name}</text>", x + 10.0);
    }
    out.push_str("</svg>\n");
    out
}

fn axes(out: &mut String) {
    for decade in RATE_DECADES.0..=RATE_DECADES.1 {
        let x = x(10f64.powi(decade));
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{}\" stroke=\"#ddd\"/>",
            HEIGHT - BOTTOM
        );
        let label = if decade < 3 {
            "100".to_owned()
        } else {
            format!("{} k", 10i64.pow(decade.unsigned_abs() - 3))
        };
        let _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            HEIGHT - BOTTOM + 18.0
        );
    }
    for decade in LATENCY_US_DECADES.0..=LATENCY_US_DECADES.1 {
        let y = y(10f64.powi(decade));
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>",
            WIDTH - RIGHT
        );
        let label = 10f64.powi(decade - 3);
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label} ms</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">a second (log)</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - BOTTOM + 40.0
    );
}

fn point(out: &mut String, medians: &Medians, shape: Shape, color: &str) {
    let (x, top, bottom) = (x(medians.per_second), y(medians.p99_us), y(medians.p50_us));
    let _ = writeln!(
        out,
        "<line x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"{color}\" stroke-width=\"2\"/>\n\
         <circle cx=\"{x:.1}\" cy=\"{bottom:.1}\" r=\"5\" fill=\"{color}\"/>\n\
         <line x1=\"{:.1}\" y1=\"{top:.1}\" x2=\"{:.1}\" y2=\"{top:.1}\" stroke=\"{color}\" stroke-width=\"2\"/>",
        x - 4.0,
        x + 4.0
    );
    let label = match shape {
        Shape::One => "1",
        Shape::SixtyFour => "64",
        Shape::Many => "256",
        Shape::ManySessions => "256 over 64 sessions",
        Shape::TwoBranches => "256, two branches delivered",
    };
    // Labels stand on different sides, since the loads of 256 lie close together.
    let (offset, anchor) = match shape {
        Shape::ManySessions => (-10.0, "end"),
        Shape::TwoBranches => (-10.0, "end"),
        _ => (9.0, "start"),
    };
    let lift = match shape {
        Shape::TwoBranches => 18.0,
        _ => 4.0,
    };
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"{color}\" font-size=\"11\">{label}</text>",
        x + offset,
        bottom + lift
    );
}

fn x(rate: f64) -> f64 {
    LEFT + (WIDTH - LEFT - RIGHT) * place(rate, RATE_DECADES)
}

fn y(us: f64) -> f64 {
    HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * place(us, LATENCY_US_DECADES)
}

/// Where a value lies between the ends of a log axis; what lies outside stands at the edge.
fn place(value: f64, (low, high): (i32, i32)) -> f64 {
    ((value.max(f64::MIN_POSITIVE).log10() - f64::from(low)) / f64::from(high - low)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decade_is_as_wide_as_the_next_and_the_ends_hold() {
        let width = |from: f64, to: f64| x(to) - x(from);
        assert!((width(1e2, 1e3) - width(1e5, 1e6)).abs() < 1e-9);
        assert_eq!((x(1.0), x(1e9)), (LEFT, WIDTH - RIGHT));
    }
}
