//! Manifests as the API's own types have them: a field that a type does not have is an error, where a server would drop it
//! without a word.

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Container, PodSpec, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use serde::{Deserialize as _, de::DeserializeOwned};
use serde_json::Value;

/// The objects of a text of YAML documents, each held against its type.
pub(crate) fn objects(yaml: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(yaml);
    let objects: Vec<Value> =
        documents.map(|document| Value::deserialize(document).expect("the manifests are YAML")).collect();
    objects.iter().for_each(check);
    objects
}

fn check(object: &Value) {
    let kind = (object["apiVersion"].as_str().unwrap_or_default(), object["kind"].as_str().unwrap_or_default());
    match kind {
        ("v1", "ServiceAccount") => strictly::<ServiceAccount>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => strictly::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => strictly::<ClusterRoleBinding>(object),
        ("rbac.authorization.k8s.io/v1", "Role") => strictly::<Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => strictly::<RoleBinding>(object),
        ("apps/v1", "DaemonSet") => strictly::<DaemonSet>(object),
        other => panic!("no type for an object of {other:?}"),
    }
}

fn strictly<T: DeserializeOwned>(object: &Value) {
    let mut unknown = Vec::new();
    let read: Result<T, _> = serde_ignored::deserialize(object.clone(), |path| unknown.push(path.to_string()));
    let kind = &object["kind"];
    if let Err(error) = read {
        panic!("{kind}: {error}");
    }
    assert!(unknown.is_empty(), "{kind} has no such fields: {unknown:?}");
}

/// The pods of the one DaemonSet among `objects`.
pub(crate) fn pods(objects: &[Value]) -> PodSpec {
    let mut sets = objects.iter().filter(|object| object["kind"] == "DaemonSet");
    let set = sets.next().expect("a DaemonSet");
    assert!(sets.next().is_none(), "one DaemonSet");
    let set = DaemonSet::deserialize(set).expect("a DaemonSet");
    set.spec.expect("it has a spec").template.spec.expect("its pods have a spec")
}

/// The container `name`.
pub(crate) fn container<'a>(pods: &'a PodSpec, name: &str) -> &'a Container {
    let mut all = pods.containers.iter().chain(pods.init_containers.iter().flatten());
    all.find(|container| container.name == name).unwrap_or_else(|| panic!("no container {name}"))
}

#[test]
fn a_field_that_no_type_has_is_found() {
    let account = |field: &str| format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: a, {field}: b}}\n");
    assert_eq!(objects(&account("namespace")).len(), 1);
    let found = std::panic::catch_unwind(|| objects(&account("nameSpace")));
    let message = found.expect_err("it is refused").downcast::<String>().expect("with a message");
    assert!(message.contains("metadata.?.nameSpace"), "{message}");
}
