//! Filling in default values.
//!
//! Source: `apiserver/schema/defaulting`.

use serde_json::Value;

use super::{Additional, Structural};

impl Structural {
    /// Sets what is absent, and what is null without being nullable, to its default; a null that may
    /// not be and has no default goes.
    pub fn set_defaults(&self, value: &mut Value) {
        self.settle(value, true);
    }

    /// The same of what was applied, whose nulls nobody takes away: they are mistakes.
    pub fn set_defaults_of_applied(&self, value: &mut Value) {
        self.settle(value, false);
    }

    fn settle(&self, value: &mut Value, drops_nulls: bool) {
        match value {
            Value::Object(map) => {
                if drops_nulls {
                    map.retain(|name, value| {
                        !value.is_null()
                            || self
                                .child(name)
                                .is_none_or(|schema| schema.nullable || schema.default.is_some())
                    });
                }
                for (name, schema) in &self.properties {
                    let Some(default) = &schema.default else { continue };
                    match map.get(name) {
                        None => drop(map.insert(name.clone(), default.clone())),
                        Some(Value::Null) if !schema.nullable => {
                            map.insert(name.clone(), default.clone());
                        }
                        Some(_) => {}
                    }
                }
                for (name, value) in map.iter_mut() {
                    match self.properties.get(name) {
                        Some(schema) => schema.settle(value, drops_nulls),
                        None => {
                            if let Some(Additional::Of(schema)) = &self.additional {
                                if let (true, Some(default)) =
                                    (value.is_null() && !schema.nullable, &schema.default)
                                {
                                    *value = default.clone();
                                }
                                schema.settle(value, drops_nulls);
                            }
                        }
                    }
                }
            }
            Value::Array(list) => {
                let Some(schema) = &self.items else { return };
                for item in list {
                    if let (true, Some(default)) =
                        (item.is_null() && !schema.nullable, &schema.default)
                    {
                        *item = default.clone();
                    }
                    schema.settle(item, drops_nulls);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn absent_values_get_defaults() {
        let schema = Structural::parse(
            &json!({"type": "object", "properties": {"spec": {"type": "object",
            "default": {}, "properties": {
                "replicas": {"type": "integer", "default": 1},
                "name": {"type": "string", "nullable": true, "default": "x"},
                "plain": {"type": "string"},
                "list": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "string", "default": "TCP"}}}},
                "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"q": {"type": "integer", "default": 7}}}}}}}}),
        );
        let cases = [
            (json!({}), json!({"spec": {"replicas": 1, "name": "x"}})),
            (
                json!({"spec": {"replicas": null, "name": null, "plain": null}}),
                json!({"spec": {"replicas": 1, "name": null}}),
            ),
            (
                json!({"spec": {"replicas": 3, "name": "n", "list": [{}, {"p": "UDP"}], "map": {"a": {}}}}),
                json!({"spec": {"replicas": 3, "name": "n", "list": [{"p": "TCP"}, {"p": "UDP"}], "map": {"a": {"q": 7}}}}),
            ),
        ];
        for (mut object, want) in cases {
            schema.set_defaults(&mut object);
            assert_eq!(object, want);
        }
        let mut applied = json!({"spec": {"replicas": null, "name": null, "plain": null}});
        schema.set_defaults_of_applied(&mut applied);
        assert_eq!(applied, json!({"spec": {"replicas": 1, "name": null, "plain": null}}));
    }
}
