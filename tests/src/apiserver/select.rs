//! Label and field selectors, in exactly the forms that the proxy uses.
//!
//! Any other form is an error rather than a guess.

use serde_json::Value;

/// What a request wants to see.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    without_labels: Vec<String>,
    names: Vec<String>,
}

impl Selector {
    pub(super) fn parse(labels: Option<&str>, fields: Option<&str>) -> Result<Self, String> {
        let terms = |selector: Option<&str>| -> Vec<String> {
            selector.into_iter().flat_map(|terms| terms.split(',')).map(str::to_owned).collect()
        };
        let mut selector = Self::default();
        for term in terms(labels) {
            match term.strip_prefix('!') {
                Some(label) if label.contains('/') && !label.contains(['=', ' ', '!']) => {
                    selector.without_labels.push(label.to_owned());
                }
                _ => return Err(format!("label selector {term:?}")),
            }
        }
        for term in terms(fields) {
            // Every version of Kubernetes knows it of every resource; other fields only some, and the others answer 400.
            let Some(("metadata.name", name)) = term.split_once('=') else {
                return Err(format!("field selector {term:?}"));
            };
            selector.names.push(name.to_owned());
        }
        Ok(selector)
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let Self { without_labels, names } = self;
        let metadata = &object["metadata"];
        without_labels.iter().all(|label| metadata["labels"].get(label).is_none())
            && names.iter().all(|name| metadata["name"] == name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_forms_in_use_are_evaluated() {
        let selector = Selector::parse(Some("!example.org/no"), None).expect("a selector");
        for (object, expected) in [
            (json!({}), true),
            (json!({"metadata": {"labels": {"example.org/no": ""}}}), false),
            (json!({"metadata": {"labels": {"example.org/yes": ""}}}), true),
            (json!({"metadata": {"labels": "malformed"}}), true),
        ] {
            assert_eq!(selector.matches(&object), expected, "{object}");
        }
        let named = Selector::parse(None, Some("metadata.name=a")).expect("a selector");
        assert!(named.matches(&json!({"metadata": {"name": "a"}})) && !named.matches(&json!({"metadata": {}})));
    }

    #[test]
    fn other_forms_are_errors() {
        for labels in ["example.org/a", "example.org/a=b", "a in (b)", "!example.org/a=b", ""] {
            Selector::parse(Some(labels), None).expect_err(labels);
        }
        for fields in ["spec.clusterIP!=None", "spec.clusterIP=None", "metadata.name!=a", "spec.type!=a", ""] {
            Selector::parse(None, Some(fields)).expect_err(fields);
        }
    }
}
