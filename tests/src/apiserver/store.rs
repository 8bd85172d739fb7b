//! Objects and their history.
//!
//! It knows nothing of requests: what a list or a watch gets to see is worked out from here.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};

use super::own;

/// What can be listed and watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Services.
    Services,
    /// EndpointSlices.
    EndpointSlices,
    /// Nodes.
    Nodes,
    /// ServiceCIDRs.
    ServiceCidrs,
}

impl Resource {
    /// All resources.
    pub const ALL: [Self; 4] = [Self::Services, Self::EndpointSlices, Self::Nodes, Self::ServiceCidrs];

    pub(super) fn of_path(path: &str) -> Option<Self> {
        match path {
            "/api/v1/services" => Some(Self::Services),
            "/apis/discovery.k8s.io/v1/endpointslices" => Some(Self::EndpointSlices),
            "/api/v1/nodes" => Some(Self::Nodes),
            "/apis/networking.k8s.io/v1/servicecidrs" => Some(Self::ServiceCidrs),
            _ => None,
        }
    }

    fn of_object(object: &Value) -> Self {
        match (object["apiVersion"].as_str(), object["kind"].as_str()) {
            (Some("v1"), Some("Service")) => Self::Services,
            (Some("discovery.k8s.io/v1"), Some("EndpointSlice")) => Self::EndpointSlices,
            (Some("v1"), Some("Node")) => Self::Nodes,
            (Some("networking.k8s.io/v1"), Some("ServiceCIDR")) => Self::ServiceCidrs,
            other => panic!("no resource for an object of {other:?}"),
        }
    }

    /// The apiVersion and kind of its objects.
    pub(super) fn type_meta(self) -> (&'static str, &'static str) {
        match self {
            Self::Services => ("v1", "Service"),
            Self::EndpointSlices => ("discovery.k8s.io/v1", "EndpointSlice"),
            Self::Nodes => ("v1", "Node"),
            Self::ServiceCidrs => ("networking.k8s.io/v1", "ServiceCIDR"),
        }
    }

    /// The API group and the name that rules about who may do what call it by.
    pub fn group_and_name(self) -> (&'static str, &'static str) {
        match self {
            Self::Services => ("", "services"),
            Self::EndpointSlices => ("discovery.k8s.io", "endpointslices"),
            Self::Nodes => ("", "nodes"),
            Self::ServiceCidrs => ("networking.k8s.io", "servicecidrs"),
        }
    }

    fn is_namespaced(self) -> bool {
        matches!(self, Self::Services | Self::EndpointSlices)
    }
}

type Key = (Resource, String, String);

/// One change of one object.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) resource: Resource,
    pub(super) before: Option<Value>,
    pub(super) after: Option<Value>,
}

/// All objects, and how they came to be so.
#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    /// A watch can begin here or later.
    oldest: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    history: Vec<Change>,
    /// What is left of lists whose pages are being fetched.
    pages: BTreeMap<String, (u64, Vec<Arc<Value>>)>,
}

impl Store {
    /// A store that holds what every API server makes by itself, whose history begins at `version`.
    pub(super) fn new(version: u64) -> Self {
        let (objects, history, pages) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        let mut store = Self { version, oldest: version, objects, history, pages };
        for object in own::objects() {
            store.put(object);
        }
        store.compact();
        store
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn oldest(&self) -> u64 {
        self.oldest
    }

    pub(super) fn put(&mut self, mut object: Value) -> u64 {
        let resource = Resource::of_object(&object);
        self.version += 1;
        let metadata = &mut object["metadata"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let name = text(&metadata["name"]).expect("an object has a name");
        let namespace = match text(&metadata["namespace"]) {
            Some(namespace) => namespace,
            None if resource.is_namespaced() => panic!("{resource:?} have a namespace"),
            None => String::new(),
        };
        metadata["resourceVersion"] = json!(self.version.to_string());
        let held = self.objects.insert((resource, namespace, name), Arc::new(object.clone()));
        let before = held.map(Arc::unwrap_or_clone);
        let change = Change { version: self.version, resource, before, after: Some(object) };
        self.history.push(change);
        self.version
    }

    pub(super) fn delete(&mut self, resource: Resource, namespace: &str, name: &str) {
        let key = (resource, namespace.to_owned(), name.to_owned());
        let before = Arc::unwrap_or_clone(self.objects.remove(&key).expect("the object exists"));
        self.version += 1;
        let change = Change { version: self.version, resource, before: Some(before), after: None };
        self.history.push(change);
    }

    pub(super) fn compact(&mut self) {
        self.history.clear();
        self.pages.clear();
        self.oldest = self.version;
    }

    pub(super) fn begin_other_history(&mut self, first_version: u64) {
        self.compact();
        self.version = first_version;
        self.oldest = first_version;
        for object in self.objects.values_mut() {
            Arc::make_mut(object)["metadata"]["resourceVersion"] = json!(first_version.to_string());
        }
    }

    pub(super) fn objects(&self, resource: Resource) -> impl Iterator<Item = &Arc<Value>> {
        self.objects.iter().filter(move |((of, ..), _)| *of == resource).map(|(_, object)| object)
    }

    /// What happened to a resource after `version`.
    pub(super) fn changes_after(&self, version: u64, resource: Resource) -> Vec<Change> {
        let wanted = |change: &&Change| change.version > version && change.resource == resource;
        self.history.iter().filter(wanted).cloned().collect()
    }

    /// Keeps the rest of a list at `version` and returns the token for it.
    pub(super) fn keep_page(&mut self, version: u64, rest: Vec<Arc<Value>>) -> String {
        let token = format!("page-{version}-{}", rest.len());
        self.pages.insert(token.clone(), (version, rest));
        token
    }

    /// The rest of a list; none when it was forgotten.
    pub(super) fn take_page(&mut self, token: &str) -> Option<(u64, Vec<Arc<Value>>)> {
        self.pages.remove(token)
    }
}
