//! Prometheus' older text format, which the stock server answers in, of OpenMetrics' text.
//!
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

/// Counters that upstream named before their names had to end in `_total`.
const WITHOUT_SUFFIX: [&str; 1] = ["authentication_attempts"];

/// The format's content type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// `text` in the older format: a counter is described under the name of its samples, and nothing marks the end.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len() + text.len() / 64);
    let mut help: Option<(&str, &str)> = None;
    let mut bare: Option<&str> = None;
    for line in text.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|described| described.split_once(' '))
        {
            bare = WITHOUT_SUFFIX.into_iter().find(|known| *known == name);
            let suffix = if kind == "counter" && bare.is_none() { "_total" } else { "" };
            if let Some((_, words)) = help.take() {
                plain.push_str(&format!("# HELP {name}{suffix} {words}\n"));
            }
            plain.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if line != "# EOF" {
            let sample = bare.and_then(|name| line.strip_prefix(name)?.strip_prefix("_total"));
            match (bare, sample) {
                (Some(name), Some(rest)) => plain.extend([name, rest]),
                _ => plain.push_str(line),
            }
            plain.push('\n');
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_described_under_the_name_of_their_samples() {
        let text = "# HELP a_requests All.\n# TYPE a_requests counter\na_requests_total{x=\"y\"} 1\n\
            # HELP b B.\n# TYPE b gauge\nb 2\n\
            # HELP authentication_attempts C.\n# TYPE authentication_attempts counter\n\
            authentication_attempts_total{result=\"success\"} 3\n# EOF\n";
        assert_eq!(
            plain(text),
            "# HELP a_requests_total All.\n# TYPE a_requests_total counter\na_requests_total{x=\"y\"} 1\n\
             # HELP b B.\n# TYPE b gauge\nb 2\n\
             # HELP authentication_attempts C.\n# TYPE authentication_attempts counter\n\
             authentication_attempts{result=\"success\"} 3\n"
        );
    }
}
