//! Who may come in: the browser that was given the address, on behalf of the page itself and of no other.
//!
//! Any program of this machine reaches a loopback port, and any web page can make a browser call it. So the
//! address carries a secret, which becomes a cookie; names that a stranger's DNS may lead here are refused;
//! and what another origin asks for is, too.

use http::header::{COOKIE, HOST, HeaderName, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is answered.
    Open,
    /// It brought the secret in its address: it gets the cookie, and is sent on without.
    Welcome,
    /// It is not answered.
    Refused(StatusCode, &'static str),
}

/// The lock of one server.
#[derive(Clone, Debug)]
pub struct Door {
    port: u16,
    token: String,
}

impl Door {
    /// A lock that `token` opens, for a server at `port` of loopback.
    pub fn new(port: u16, token: String) -> Self {
        Self { port, token }
    }

    /// The server's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where a browser is to begin.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}/?token={}", self.port, self.token)
    }

    /// The cookie, as it is set. Cookies know no ports, so its name tells of which server it is.
    pub fn cookie(&self) -> String {
        format!("{}={}; Path=/; HttpOnly; SameSite=Strict", self.cookie_name(), self.token)
    }

    fn cookie_name(&self) -> String {
        format!("rootlet-ui-{}", self.port)
    }

    /// Judges a request.
    pub fn judge(&self, request: &Parts) -> Verdict {
        let headers = &request.headers;
        let host = text(headers, HOST).unwrap_or_default();
        if !["127.0.0.1", "localhost", "[::1]"]
            .iter()
            .any(|name| host == format!("{name}:{}", self.port))
        {
            return Verdict::Refused(
                StatusCode::MISDIRECTED_REQUEST,
                "this server has no such name\n",
            );
        }
        if headers.contains_key(ORIGIN) && text(headers, ORIGIN) != Some(&format!("http://{host}"))
        {
            return Verdict::Refused(StatusCode::FORBIDDEN, "only the page itself may ask\n");
        }
        if request.method == Method::GET && request.uri.path() == "/" && self.is_in_query(request) {
            return Verdict::Welcome;
        }
        if !matches!(text(headers, FETCH_SITE), None | Some("same-origin" | "none")) {
            return Verdict::Refused(StatusCode::FORBIDDEN, "only the page itself may ask\n");
        }
        if self.is_in_cookies(headers) {
            return Verdict::Open;
        }
        let told =
            "open the address that `rootlet ui` printed: it has the secret that lets you in\n";
        Verdict::Refused(StatusCode::UNAUTHORIZED, told)
    }

    fn is_in_query(&self, request: &Parts) -> bool {
        let query = request.uri.query().unwrap_or_default();
        url::form_urlencoded::parse(query.as_bytes())
            .any(|(key, value)| key == "token" && self.is_token(&value))
    }

    fn is_in_cookies(&self, headers: &HeaderMap) -> bool {
        let name = self.cookie_name();
        headers
            .get_all(COOKIE)
            .into_iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .any(|(key, value)| key == name && self.is_token(value))
    }

    /// Compares without telling by its time how much was right.
    fn is_token(&self, given: &str) -> bool {
        let pairs = self.token.bytes().zip(given.bytes());
        self.token.len() == given.len() && pairs.fold(0, |wrong, (a, b)| wrong | (a ^ b)) == 0
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn judge(method: &str, path: &str, headers: &[(&str, &str)]) -> Verdict {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Door::new(8000, "secret".into()).judge(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn the_secret_and_the_page_itself_come_in() {
        let host = ("host", "127.0.0.1:8000");
        let cookie = ("cookie", "other=1; rootlet-ui-8000=secret");
        let (open, welcome) = (Some(Verdict::Open), Some(Verdict::Welcome));
        // `None` stands for refused.
        let cases: [(&str, &str, &[(&str, &str)], Option<Verdict>); 17] = [
            ("GET", "/", &[host, cookie], open),
            ("GET", "/api/v1/pods", &[("host", "localhost:8000"), cookie], Some(Verdict::Open)),
            ("GET", "/api/v1/pods", &[("host", "[::1]:8000"), cookie], Some(Verdict::Open)),
            ("GET", "/", &[host], None),
            ("GET", "/?token=secret", &[host], welcome),
            (
                "GET",
                "/?token=secret",
                &[host, ("sec-fetch-site", "cross-site")],
                Some(Verdict::Welcome),
            ),
            ("POST", "/?token=secret", &[host], None),
            ("GET", "/api?token=secret", &[host], None),
            ("GET", "/?token=secreT", &[host], None),
            ("GET", "/?token=", &[host], None),
            ("GET", "/", &[host, ("cookie", "rootlet-ui-8001=secret")], None),
            ("GET", "/", &[("host", "evil.example:8000"), cookie], None),
            ("GET", "/", &[("host", "127.0.0.1:8001"), cookie], None),
            ("GET", "/", &[cookie], None),
            ("DELETE", "/api/v1/nodes/a", &[host, cookie, ("origin", "http://evil.example")], None),
            ("DELETE", "/api/v1/nodes/a", &[host, cookie, ("origin", "null")], None),
            ("GET", "/api", &[host, cookie, ("sec-fetch-site", "same-site")], None),
        ];
        for (method, path, headers, want) in cases {
            let verdict = judge(method, path, headers);
            match want {
                Some(want) => assert_eq!(verdict, want, "{method} {path} {headers:?}"),
                None => {
                    assert!(matches!(verdict, Verdict::Refused(..)), "{method} {path} {headers:?}");
                }
            }
        }
        let own =
            [host, cookie, ("origin", "http://127.0.0.1:8000"), ("sec-fetch-site", "same-origin")];
        assert_eq!(judge("PATCH", "/api/v1/nodes/a", &own), Verdict::Open);
    }
}
