//! Elastic tab stops: cells that end in a tab are as wide as the widest of the lines above and below them.
//!
//! Source: Go's `text/tabwriter`, with a padding of two blanks.

const PADDING: usize = 2;

/// The text with its tabs replaced by blanks.
pub fn expand(text: &str) -> String {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    let mut out = String::new();
    format(&lines, &mut Vec::new(), &mut out);
    out
}

/// Lines that have the columns of `widths` in common.
fn format(lines: &[Vec<&str>], widths: &mut Vec<usize>, out: &mut String) {
    let column = widths.len();
    let (mut begin, mut at) = (0, 0);
    // The last cell of a line is in no column.
    let has = |line: &[&str]| column + 1 < line.len();
    while at < lines.len() {
        if !has(&lines[at]) {
            at += 1;
            continue;
        }
        write(&lines[begin..at], widths, out);
        begin = at;
        let mut width = 0;
        while at < lines.len() && has(&lines[at]) {
            width = width.max(lines[at][column].chars().count() + PADDING);
            at += 1;
        }
        widths.push(width);
        format(&lines[begin..at], widths, out);
        widths.pop();
        begin = at;
    }
    write(&lines[begin..], widths, out);
}

fn write(lines: &[Vec<&str>], widths: &[usize], out: &mut String) {
    for line in lines {
        for (index, cell) in line.iter().enumerate() {
            out.push_str(cell);
            if let Some(width) = widths.get(index) {
                out.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
            }
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_end_where_a_line_has_none() {
        let text =
            "Name:\ta\nLonger:\tb\nAlone:\n  X:\ty\n  Type\tStatus\n  Ready\tTrue\t\nEnd:\tz\n";
        let want = "Name:    a\nLonger:  b\nAlone:\n  X:     y\n  Type   Status\n  Ready  True  \nEnd:     z\n";
        assert_eq!(expand(text), want);
    }
}
