//! Users by static token: a file of lines `token,user,uid,"group,group"`.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#static-token-file>.

use std::collections::{BTreeMap, HashMap};

use crate::attributes::UserInfo;

/// A line of the file that is not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the token file: want token,user,uid[,\"group,…\"]")]
pub struct Error {
    /// Counted from one.
    pub line: usize,
}

/// Tokens that stand for users, for as long as the server runs.
#[derive(Default)]
pub struct StaticTokens(HashMap<String, UserInfo>);

impl StaticTokens {
    /// Reads the text of a token file.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut users = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let error = Error { line: index + 1 };
            let fields = fields(line);
            let [token, name, uid, rest @ ..] = fields.as_slice() else { return Err(error) };
            if token.is_empty() || name.is_empty() {
                return Err(error);
            }
            let groups = rest.first().map_or(Vec::new(), |groups| {
                groups
                    .split(',')
                    .map(str::trim)
                    .filter(|g| !g.is_empty())
                    .map(String::from)
                    .collect()
            });
            let user =
                UserInfo { name: name.clone(), uid: uid.clone(), groups, extra: BTreeMap::new() };
            users.insert(token.clone(), user);
        }
        Ok(Self(users))
    }

    /// The user whose token it is.
    pub fn user(&self, token: &str) -> Option<UserInfo> {
        self.0.get(token).cloned()
    }
}

/// Fields of a CSV line; a field in double quotes may hold commas.
fn fields(line: &str) -> Vec<String> {
    let (mut all, mut field, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => all.push(std::mem::take(&mut field).trim().to_owned()),
            _ => field.push(c),
        }
    }
    all.push(field.trim().to_owned());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_bad_ones_named() {
        let tokens = StaticTokens::parse("# people\na,alice,1,\"x, y\"\n\nb,bob,2\n").unwrap();
        assert_eq!(tokens.user("a").unwrap().groups, ["x", "y"]);
        assert_eq!(tokens.user("b").unwrap().name, "bob");
        assert_eq!(tokens.user("c"), None);
        assert_eq!(StaticTokens::parse("a,alice,1\nnonsense\n").err(), Some(Error { line: 2 }));
    }
}
