//! An object as text, member by member: who changes one thing of it need not read the rest.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The members of a JSON object in their order, each as the text it has.
#[derive(Debug, Default)]
pub struct Members<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

/// A member's name, borrowed where nothing in it is escaped.
struct Name<'a>(Cow<'a, str>);

struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = Name<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the name of a member")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Name(Cow::Borrowed(name)))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Name(Cow::Owned(name.to_owned())))
    }
}

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Names)
    }
}

struct All;

impl<'de> Visitor<'de> for All {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::with_capacity(16);
        while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
            members.push((name, Cow::Borrowed(value.get())));
        }
        Ok(Members(members))
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(All)
    }
}

impl<'a> Members<'a> {
    /// The members of the object that `text` is.
    pub fn parse(text: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    fn find(&self, name: &str) -> Option<&Cow<'a, str>> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// The members of the object `name` as it was parsed; none where there is no such object.
    pub fn child(&self, name: &str) -> Result<Self, serde_json::Error> {
        match self.find(name) {
            Some(Cow::Borrowed(text)) if *text != "null" => Self::parse(text),
            _ => Ok(Self::default()),
        }
    }

    /// The member `name`; `None` where it is absent, null or something else.
    pub fn read<'s, T: Deserialize<'s>>(&'s self, name: &str) -> Option<T> {
        self.find(name).and_then(|text| serde_json::from_str::<Option<T>>(text).ok().flatten())
    }

    /// The member `name` as text, or the empty one.
    pub fn text(&self, name: &str) -> String {
        self.read(name).unwrap_or_default()
    }

    /// Makes `value`, which is JSON, the member `name`. A new one comes where the order of names has it.
    pub fn set(&mut self, name: &'a str, value: String) {
        let value = Cow::Owned(value);
        if let Some((_, known)) = self.0.iter_mut().find(|(known, _)| known == name) {
            *known = value;
        } else {
            let at = self.0.iter().position(|(known, _)| known.as_ref() > name);
            self.0.insert(at.unwrap_or(self.0.len()), (Cow::Borrowed(name), value));
        }
    }

    /// Takes the member `name` away.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }
}

impl std::fmt::Display for Members<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut before = '{';
        for (name, value) in &self.0 {
            let name = serde_json::to_string(name).map_err(|_| std::fmt::Error)?;
            write!(f, "{before}{name}:{value}")?;
            before = ',';
        }
        f.write_str(if before == '{' { "{}" } else { "}" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_touched_keeps_its_text() {
        let text = r#"{"a":{"x" : [1, "}"]},"c":"\u0041","k\n":1.50,"z":null}"#;
        let mut members = Members::parse(text).expect("an object");
        assert_eq!(members.to_string(), text);
        assert_eq!(
            (members.text("c"), members.text("z"), members.text("a")),
            ("A".into(), String::new(), String::new())
        );
        assert_eq!(
            members
                .child("a")
                .expect("an object")
                .read::<Vec<serde_json::Value>>("x")
                .map(|x| x.len()),
            Some(2)
        );
        assert_eq!(members.child("z").expect("nothing").to_string(), "{}");
        members.set("b", "true".into());
        members.set("c", "2".into());
        members.remove("z");
        members.set("zz", "3".into());
        assert_eq!(
            members.to_string(),
            r#"{"a":{"x" : [1, "}"]},"b":true,"c":2,"k\n":1.50,"zz":3}"#
        );
        assert!(Members::parse("[]").is_err() && Members::parse("{").is_err());
    }
}
