//! The page of `rootlet ui`: one document that asks nobody but the server it came from.

const HTML: &str = include_str!("../assets/ui/page.html");
const STYLE: &str = include_str!("../assets/ui/style.css");

/// The scripts, in the order in which they build upon each other.
const SCRIPTS: [&str; 16] = [
    include_str!("../assets/ui/dom.js"),
    include_str!("../assets/ui/values.js"),
    include_str!("../assets/ui/api.js"),
    include_str!("../assets/ui/watch.js"),
    include_str!("../assets/ui/yaml.js"),
    include_str!("../assets/ui/graph.js"),
    include_str!("../assets/ui/table.js"),
    include_str!("../assets/ui/dialog.js"),
    include_str!("../assets/ui/actions.js"),
    include_str!("../assets/ui/life.js"),
    include_str!("../assets/ui/logs.js"),
    include_str!("../assets/ui/terminal.js"),
    include_str!("../assets/ui/shell.js"),
    include_str!("../assets/ui/views.js"),
    include_str!("../assets/ui/detail.js"),
    include_str!("../assets/ui/main.js"),
];

/// The document. `nonce` is what its style and its script are known by, see [`policy`].
pub fn html(nonce: &str) -> String {
    let script = format!("\"use strict\";(() => {{\n{}}})();\n", lean(&SCRIPTS.concat()));
    let html = HTML.replace("{nonce}", nonce);
    html.replacen("{style}", &lean(STYLE), 1).replacen("{script}", &script, 1)
}

/// The text without what only its readers need: indentation, and lines that are comments.
fn lean(text: &str) -> String {
    let lines = text.lines().map(str::trim_start);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// The Content-Security-Policy of the document, served at `port` of loopback. Not every browser takes `'self'` for
/// WebSockets, so they are named.
pub fn policy(nonce: &str, port: u16) -> String {
    format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; \
         connect-src 'self' ws://127.0.0.1:{port} ws://localhost:{port}; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_whole() {
        const SIZE_MAX: usize = 150_000;
        let page = html("abc");
        assert!(page.len() < SIZE_MAX, "{} bytes", page.len());
        for left in ["{nonce}", "{style}", "{script}"] {
            assert!(!page.contains(left), "{left} is left");
        }
        assert_eq!(page.matches("</script>").count(), 1, "the script would end early");
        assert_eq!(page.matches("nonce=\"abc\"").count(), 2);
    }

    #[test]
    fn the_page_asks_no_other_server_and_builds_no_markup_from_text() {
        let page = html("abc").replace("http://www.w3.org/2000/svg", "");
        for part in [
            "https://",
            "src=\"http",
            "@import",
            "url(http",
            "innerHTML",
            "outerHTML",
            "eval(",
            "document.write",
        ] {
            assert!(!page.contains(part), "{part}");
        }
    }
}
