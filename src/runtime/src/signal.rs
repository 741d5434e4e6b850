//! Stop signals: as image configs spell them, and as CRI numbers them.

use std::str::FromStr;

use k8s_cri::v1::Signal;

/// The first real-time signal of programs: glibc keeps two before it for itself.
const RT_MIN: i32 = 34;
/// The last one.
const RT_MAX: i32 = 64;

/// A signal's number by its name, with or without `SIG`, or by number, as image configs spell it.
pub fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RT_MAX).contains(&number).then_some(number);
    }
    let name = text.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |rest: &str, sign: char| -> Option<i32> {
        if rest.is_empty() { Some(0) } else { rest.strip_prefix(sign)?.parse().ok() }
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest, '+').map(|by| RT_MIN + by).filter(|number| *number <= RT_MAX);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return offset(rest, '-').map(|by| RT_MAX - by).filter(|number| *number >= RT_MIN);
    }
    match name {
        "CLD" => Some(libc::SIGCHLD),
        "IOT" => Some(libc::SIGABRT),
        "POLL" => Some(libc::SIGIO),
        _ => {
            nix::sys::signal::Signal::from_str(&format!("SIG{name}")).ok().map(|found| found as i32)
        }
    }
}

/// The name of CRI's signal, in the spelling of image configs; `None` for the runtime's default.
pub fn name(signal: Signal) -> Option<String> {
    if signal == Signal::RuntimeDefault {
        return None;
    }
    Some(signal.as_str_name().replace("PLUS", "+").replace("MINUS", "-"))
}

/// CRI's signal of this name; SIGTERM, which stops containers, when there is none.
pub fn of_name(text: &str) -> Signal {
    let wanted = number(text);
    let named = |signal: &Signal| name(*signal).and_then(|name| number(&name)) == wanted;
    let mut known = (1..).map_while(|value| Signal::try_from(value).ok());
    wanted.and_then(|_| known.find(named)).unwrap_or(Signal::Sigterm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_are_read_in_all_spellings() {
        for (text, expected) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGPOLL", Some(29)),
            ("", None),
            ("SIGNONSENSE", None),
            ("SIGRTMIN+40", None),
            ("99", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
    }

    #[test]
    fn every_signal_of_cri_has_a_number_and_comes_back() {
        let all = (1..).map_while(|value| Signal::try_from(value).ok());
        let mut count = 0;
        for signal in all {
            count += 1;
            let name = name(signal).unwrap();
            let same = of_name(&name);
            assert_eq!(number(&name), number(&super::name(same).unwrap()), "{name}");
        }
        assert_eq!(count, 65);
        assert_eq!(of_name(""), Signal::Sigterm);
        assert_eq!(of_name("SIGUSR1"), Signal::Sigusr1);
        assert_eq!(of_name("SIGRTMIN+3"), Signal::Sigrtminplus3);
    }
}
