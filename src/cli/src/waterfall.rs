//! A pod's timed steps as a picture: one HTML document that needs nothing beside itself.

use std::fmt::Write;

use crate::trace::{Step, Trace};

/// Later steps than so long after the others (restarts, the end) would leave no room for those that tell
/// how the pod started; they are listed below.
const PAUSE_US: u64 = 5_000_000;

/// Which part of the way each step belongs to, for its colour; `rootlet ui` shows the same.
const PARTS: [(&str, &str, &[&str]); 6] = [
    ("api", "API server", &["submit", "authenticate", "authorise", "admit", "store", "watch"]),
    ("schedule", "scheduler", &["schedule", "bind"]),
    ("kubelet", "volumes, sandbox", &["kubelet", "volumes", "sandbox"]),
    ("image", "image", &["image"]),
    ("run", "containers", &["containers"]),
    ("report", "observation, report", &["observe", "report"]),
];

const STYLE: &str = include_str!("../assets/waterfall.css");

/// The document.
pub fn html(trace: &Trace) -> String {
    let start = trace.steps.iter().map(|step| step.start_us).min().unwrap_or_default();
    let first = first(&trace.steps);
    let total = first.iter().map(|step| end(step) - start).max().unwrap_or_default().max(1);
    let name = escaped(&format!("{}/{}", trace.namespace, trace.name));
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>pod {name}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>pod {name}</h1>\n<p>started within <b>{}</b>; uid {}</p>\n",
        told(total),
        escaped(&trace.uid),
    );
    if first.is_empty() {
        out.push_str("<p>Nothing was recorded about it.</p>\n</body>\n</html>\n");
        return out;
    }
    legend(&mut out, first);
    let ticks = ticks(total);
    out.push_str("<div class=\"lane top\"><span></span><div class=\"room\">");
    for at in &ticks {
        let words = if *at == 0 { "0".to_owned() } else { told(*at) };
        let _ = write!(out, "<span style=\"left:{}%\">{words}</span>", share(*at, total));
    }
    out.push_str("</div></div>\n");
    for step in first {
        lane(&mut out, step, start, total, &ticks);
    }
    later(&mut out, &trace.steps[first.len()..], start);
    out.push_str("</body>\n</html>\n");
    out
}

fn end(step: &Step) -> u64 {
    step.start_us + step.duration_us
}

/// The steps up to the first long pause.
fn first(steps: &[Step]) -> &[Step] {
    let mut last = steps.first().map(end).unwrap_or_default();
    for (index, step) in steps.iter().enumerate() {
        if step.start_us > last + PAUSE_US {
            return &steps[..index];
        }
        last = last.max(end(step));
    }
    steps
}

fn part(step: &str) -> &'static str {
    PARTS.iter().find(|(_, _, steps)| steps.contains(&step)).map_or("report", |(part, ..)| part)
}

fn legend(out: &mut String, steps: &[Step]) {
    out.push_str("<p class=\"legend\">");
    for (class, name, _) in PARTS {
        if steps.iter().any(|step| part(&step.step) == class) {
            let _ = write!(out, "<i class=\"{class}\"></i>{name} ");
        }
    }
    out.push_str("</p>\n");
}

fn lane(out: &mut String, step: &Step, start: u64, total: u64, ticks: &[u64]) {
    let name = escaped(&step.step);
    let _ = write!(out, "<div class=\"lane\"><span>{name}</span><div class=\"room\">");
    for at in ticks {
        let _ = write!(out, "<u style=\"left:{}%\"></u>", share(*at, total));
    }
    let _ = writeln!(
        out,
        "<i class=\"{}\" style=\"left:{}%;width:{}%\" title=\"after {}\"></i></div>\
         <b>{}</b><span class=\"detail\">{}</span></div>",
        part(&step.step),
        share(step.start_us - start, total),
        share(step.duration_us, total),
        told(step.start_us - start),
        told(step.duration_us),
        escaped(&step.detail),
    );
}

fn later(out: &mut String, steps: &[Step], start: u64) {
    if steps.is_empty() {
        return;
    }
    out.push_str("<h2>Later</h2>\n<table>\n<tr><th>after<th>step<th>took<th>what</tr>\n");
    for step in steps {
        let _ = writeln!(
            out,
            "<tr><td>{}<td>{}<td>{}<td>{}</tr>",
            told(step.start_us - start),
            escaped(&step.step),
            told(step.duration_us),
            escaped(&step.detail),
        );
    }
    out.push_str("</table>\n");
}

/// A part in percent.
fn share(us: u64, total: u64) -> f64 {
    (us as f64 * 100_000.0 / total as f64).round() / 1000.0
}

/// Round distances for an axis: about five of them.
fn ticks(total: u64) -> Vec<u64> {
    let rough = total.div_ceil(5);
    let power = 10_u64.pow(rough.max(1).ilog10());
    let step = [1, 2, 5, 10].into_iter().map(|by| by * power).find(|by| *by >= rough);
    (0..=total).step_by(step.unwrap_or(total) as usize).collect()
}

/// A duration with three digits or so.
fn told(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        1_000_000..10_000_000 => format!("{:.2} s", us as f64 / 1e6),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, start_us: u64, duration_us: u64, detail: &str) -> Step {
        Step { step: name.into(), start_us, duration_us, detail: detail.into() }
    }

    fn page(steps: Vec<Step>) -> String {
        html(&Trace { namespace: "n".into(), name: "p".into(), uid: "u".into(), steps })
    }

    #[test]
    fn bars_stand_where_and_as_long_as_the_steps_were() {
        let page = page(vec![
            step("submit", 1_000, 100, ""),
            step("image", 1_250, 750, "busybox <latest> & \"more\""),
            step("observe", 61_001_000, 10, "restart"),
        ]);
        let bars: Vec<&str> = page.lines().filter(|line| line.contains("class=\"lane\"")).collect();
        assert_eq!(bars.len(), 2, "{page}");
        assert!(bars[0].contains("class=\"api\" style=\"left:0%;width:10%\""), "{}", bars[0]);
        assert!(bars[1].contains("class=\"image\" style=\"left:25%;width:75%\""), "{}", bars[1]);
        assert!(bars[1].contains("busybox &lt;latest&gt; &amp; &quot;more&quot;"), "{}", bars[1]);
        assert!(page.contains("started within <b>1.00 ms</b>"));
        assert!(page.contains("<tr><td>61.0 s<td>observe<td>10 µs<td>restart</tr>"), "{page}");
    }

    #[test]
    fn a_page_asks_nobody_and_stands_without_steps() {
        for page in [page(vec![]), page(vec![step("submit", 5, 0, "")])] {
            assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"), "{page}");
            assert!(
                !page.contains("http:") && !page.contains("https:") && !page.contains("<script")
            );
        }
        assert!(page(vec![]).contains("Nothing was recorded"));
    }

    #[test]
    fn axes_have_about_five_round_marks() {
        for (total, want) in [
            (1, &[0, 1][..]),
            (1_000, &[0, 200, 400, 600, 800, 1_000]),
            (1_001, &[0, 500, 1_000]),
            (123_456, &[0, 50_000, 100_000]),
        ] {
            assert_eq!(ticks(total), want, "{total}");
        }
    }
}
