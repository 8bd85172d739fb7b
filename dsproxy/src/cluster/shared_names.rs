//! Names that very many objects have in common, such as those of nodes: each is in memory once.

use std::{collections::HashSet, sync::Arc};

use crate::model::EndpointSlice;

/// From how many names on it is looked whether all of them are in use.
const MANY: usize = 1024;

/// The names that objects have in common.
#[derive(Debug, Default)]
pub(super) struct SharedNames {
    names: HashSet<Arc<str>>,
    /// How many were in use when it was last looked.
    in_use: usize,
}

impl SharedNames {
    /// Has `slice` use the names that others have as well.
    pub(super) fn share(&mut self, slice: &mut EndpointSlice) {
        slice.ports.iter_mut().for_each(|port| self.share_name(&mut port.name));
        for endpoint in &mut slice.endpoints {
            if let Some(node) = &mut endpoint.node {
                self.share_name(node);
            }
            if let Some(hints) = &mut endpoint.hints {
                hints.zones.iter_mut().chain(&mut hints.nodes).for_each(|name| self.share_name(name));
            }
        }
        if self.names.len() >= 2 * self.in_use.max(MANY) {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.in_use = self.names.len();
        }
    }

    fn share_name(&mut self, name: &mut Arc<str>) {
        match self.names.get(name) {
            Some(shared) => *name = Arc::clone(shared),
            None => drop(self.names.insert(Arc::clone(name))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, Hints, IpFamily, ObjectName};

    fn slice(node: &str, zone: &str) -> EndpointSlice {
        let endpoint = Endpoint {
            node: Some(node.into()),
            hints: Hints::new([zone.into()].into(), [node.into()].into()),
            ..Endpoint::new([10, 0, 0, 1].into())
        };
        EndpointSlice {
            name: ObjectName::new("ns", "slice"),
            service: ObjectName::new("ns", "service"),
            family: IpFamily::V4,
            ports: Vec::new(),
            endpoints: vec![endpoint],
            triggered: None,
        }
    }

    #[test]
    fn a_name_is_in_memory_once() {
        let mut names = SharedNames::default();
        let [mut one, mut other] = [slice("node-a", "zone"), slice("node-a", "zone")];
        let before = (one.clone(), other.clone());
        names.share(&mut one);
        names.share(&mut other);
        assert_eq!((&one, &other), (&before.0, &before.1));
        let [one, other] = [&one, &other].map(|slice| &slice.endpoints[0]);
        let all = [&one.node, &other.node].map(|node| node.as_ref().expect("a node"));
        assert!(Arc::ptr_eq(all[0], all[1]) && Arc::ptr_eq(all[0], &one.node_hints()[0]));
        assert!(Arc::ptr_eq(&one.zone_hints()[0], &other.zone_hints()[0]));
    }

    #[test]
    fn names_that_nobody_has_any_more_go() {
        let mut names = SharedNames::default();
        let mut kept = slice("kept", "kept");
        names.share(&mut kept);
        for number in 0..10 * MANY {
            names.share(&mut slice(&format!("node-{number}"), "zone"));
            assert!(names.names.len() <= 2 * MANY, "{number}");
        }
        assert!(names.names.contains("kept"));
    }
}
