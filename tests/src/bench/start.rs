//! What a start consists of, each step by itself, and where the daemon's memory is when it is over.
//!
//! The steps are those of `dsproxy run`, one after the other; there, several of them go on at the same time. A fresh process each time.

use std::time::Instant;

use dsproxy::{
    allocator,
    claims::Claims,
    cluster::Cluster,
    datapath::load::{
        DatapathSettings, load_maps, load_programs_for, load_rest, load_shortcut, load_socket_programs,
        load_xdp_program,
    },
    interfaces::Interfaces,
    local_node::LocalNode,
    maps::{Capacities, Contents, MapError, MapStore, Write},
    model::{EndpointSlice, ObjectName, Service},
    progress::Progress,
    reconcile::Reconciler,
    source::{
        Delta, Event,
        convert::{FromObject, from_json},
    },
};
use dsproxy_common::IpFamily;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    BenchError, Figure,
    control_plane::{capacities, child, list, name, processor_time, resident},
};

/// The name of the part, by which tables find these figures.
pub(super) const PART: &str = "a start";

/// How many objects the API server sends at a time.
const PAGE: usize = 500;

/// What one process has found, in the order in which it comes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StartAccount {
    /// Each step, in seconds of processor time.
    steps: Vec<(String, f64)>,
    /// Each piece of memory, in MiB.
    memory: Vec<(String, f64)>,
}

/// Maps that take everything and keep nothing: bringing Services into them is the daemon's own work alone.
struct NoMaps(Capacities);

impl MapStore for NoMaps {
    fn write(&mut self, _write: &Write) -> Result<(), MapError> {
        Ok(())
    }

    fn capacities(&self) -> Capacities {
        self.0
    }
}

/// Goes through a start with `services` Services with `endpoints` endpoints in each family, step by step, in this process.
///
/// # Errors
///
/// When the kernel refuses something, or what was written as JSON is not read as what it was.
pub fn account_for_start(services: u32, endpoints: u32) -> Result<StartAccount, BenchError> {
    allocator::share_memory();
    let mut account = StartAccount::default();
    let capacities = capacities(services, endpoints);
    account.memory(services, endpoints, &capacities)?;
    account.programs(&capacities)?;
    account.reading(services, endpoints)?;
    account.writing(services, endpoints, &capacities)?;
    Ok(account)
}

impl StartAccount {
    fn step<T>(&mut self, what: &str, work: impl FnOnce() -> T) -> Result<T, BenchError> {
        let before = processor_time()?;
        let outcome = work();
        self.steps.push((what.to_owned(), processor_time()? - before));
        Ok(outcome)
    }

    fn piece(&mut self, what: &str, mebibytes: f64) {
        self.memory.push((what.to_owned(), mebibytes));
    }

    /// The maps, and each set of programs.
    fn programs(&mut self, capacities: &Capacities) -> Result<(), BenchError> {
        let maps = self.step("empty maps", || load_maps(capacities, &DatapathSettings::default()))??;
        let (mut object, maps) = (maps.object, maps.maps);
        let no_interfaces = Interfaces::new();
        self.step("verifier: packets, devices with Ethernet", || load_programs_for(&no_interfaces, &mut object))??;
        self.step("verifier: sockets", || load_socket_programs(&mut object))??;
        self.step("verifier: XDP (where it is used)", || load_xdp_program(&mut object))??;
        self.step("verifier: past the stack (where asked for)", || load_shortcut(&mut object))??;
        self.step("verifier: packets, devices without Ethernet, and events (later)", || load_rest(&mut object))??;
        drop(maps);
        Ok(())
    }

    /// The objects, read from what an API server sends.
    fn reading(&mut self, services: u32, endpoints: u32) -> Result<(), BenchError> {
        let (list, slices) = list(services, endpoints);
        let services: Vec<String> = pages(list.iter().map(service_json));
        let slices: Vec<String> = pages(slices.iter().map(slice_json));
        let (services, slices) =
            self.step("read the objects", || (read::<Service>(&services), read::<EndpointSlice>(&slices)))?;
        let (services, slices) = (services.map_err(BenchError::Json)?, slices.map_err(BenchError::Json)?);
        let complete = |what, found, wanted| {
            if found == wanted { Ok(()) } else { Err(BenchError::Incomplete { what, found, wanted }) }
        };
        complete("Services that were read", services, list.len())?;
        complete("EndpointSlices that were read", slices, IpFamily::ALL.len() * list.len())
    }

    /// What each Service asks for, planned and written.
    fn writing(&mut self, services: u32, endpoints: u32, capacities: &Capacities) -> Result<(), BenchError> {
        let (objects, slices) = list(services, endpoints);
        let mut cluster = Cluster::new(LocalNode::default());
        self.step("take the objects in", || {
            cluster.apply(Event::Services(Delta::Snapshot(objects)));
            cluster.apply(Event::EndpointSlices(Delta::Snapshot(slices)));
        })?;
        let names: Vec<ObjectName> = (0..services).map(name).collect();
        self.step("resolve", || names.iter().map(|name| cluster.resolve(name).ports.len()).sum::<usize>())?;
        drop(cluster);
        let mut planned = synced(NoMaps(*capacities), services, endpoints);
        let before = processor_time()?;
        planned.reconcile(Instant::now());
        let own = processor_time()? - before;
        drop(planned);
        let loaded = load_maps(capacities, &DatapathSettings::default())?;
        let mut written = synced(loaded.maps, services, endpoints);
        let before = processor_time()?;
        written.reconcile(Instant::now());
        let all = processor_time()? - before;
        let resolved = self.steps.last().map_or(0.0, |(_, seconds)| *seconds);
        self.steps.push(("plan, and mirror the maps".to_owned(), (own - resolved).max(0.0)));
        self.steps.push(("write to the maps".to_owned(), (all - own).max(0.0)));
        Ok(())
    }

    /// What the structures hold that stay.
    fn memory(&mut self, services: u32, endpoints: u32, capacities: &Capacities) -> Result<(), BenchError> {
        let process = resident()?;
        let before = in_use();
        let mut cluster = Cluster::new(LocalNode::default());
        let (objects, slices) = list(services, endpoints);
        cluster.apply(Event::Services(Delta::Snapshot(objects)));
        cluster.apply(Event::EndpointSlices(Delta::Snapshot(slices)));
        let model = in_use() - before;
        let before_claims = in_use();
        let mut claims = Claims::default();
        for name in (0..services).map(name) {
            claims.set(&name, None, &cluster.resolve(&name).ports);
        }
        let claimed = in_use() - before_claims;
        drop((cluster, claims));
        let mut reconciler = synced(NoMaps(*capacities), services, endpoints);
        reconciler.reconcile(Instant::now());
        let all = in_use() - before;
        let resident = resident()?;
        self.piece("the objects, as they were listed", model);
        self.piece("who claims which frontend", claimed);
        self.piece("the mirror of the maps, and what is noted by Service", all - model - claimed);
        self.piece("the process without any", process);
        self.piece("allocator: free, and between what is used", resident - all - process);
        self.piece("resident, altogether", resident);
        drop(reconciler);
        Ok(())
    }
}

/// A reconciler for `store` that was told everything, and has not acted on it.
fn synced<S: MapStore>(store: S, services: u32, endpoints: u32) -> Reconciler<S> {
    let (objects, slices) = list(services, endpoints);
    let contents = Contents::default();
    let mut reconciler =
        Reconciler::new(store, &contents, LocalNode::default(), Progress::default().into(), Instant::now());
    reconciler.apply(Event::Services(Delta::Snapshot(objects)));
    reconciler.apply(Event::EndpointSlices(Delta::Snapshot(slices)));
    reconciler.apply(Event::Nodes(Delta::Snapshot(Vec::new())));
    reconciler
}

/// What is in use, in MiB; where the allocator does not tell, what is resident.
fn in_use() -> f64 {
    allocator::in_use().map_or_else(|| resident().unwrap_or(f64::NAN), |bytes| bytes as f64 / f64::from(1 << 20))
}

fn pages(objects: impl Iterator<Item = Value>) -> Vec<String> {
    let objects: Vec<Value> = objects.collect();
    objects.chunks(PAGE).map(|page| json!({"items": page}).to_string()).collect()
}

/// Reads pages of objects as the source does: each becomes JSON first, and then what is used of it.
fn read<T: FromObject>(pages: &[String]) -> Result<usize, serde_json::Error> {
    let mut names = 0;
    for page in pages {
        let page: Value = serde_json::from_str(page)?;
        let objects = page.get("items").and_then(Value::as_array);
        names += objects.into_iter().flatten().filter(|object| from_json::<T>(object).object_name().is_some()).count();
    }
    Ok(names)
}

/// What stands in the metadata of every object that was applied once.
fn metadata(name: &ObjectName) -> Value {
    json!({
        "name": &*name.name,
        "namespace": &*name.namespace,
        "uid": "3e6b3f5e-5f0a-4d8e-9b7a-0d6d3a1c2b4f",
        "resourceVersion": "123456",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"app.kubernetes.io/name": &*name.name, "app.kubernetes.io/managed-by": "Helm"},
        "managedFields": [{
            "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
            "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app.kubernetes.io/name": {}}}, "f:spec": {"f:ports": {}}},
        }],
    })
}

pub(super) fn service_json(service: &Service) -> Value {
    let ports = service.ports.iter();
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata(&service.name),
        "spec": {
            "type": "ClusterIP", "clusterIP": service.cluster_ips.first(), "clusterIPs": service.cluster_ips,
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack", "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster", "selector": {"app.kubernetes.io/name": &*service.name.name},
            "ports": ports.map(|port| json!({"name": &*port.name, "protocol": "TCP", "port": port.port, "targetPort": "http"})).collect::<Vec<_>>(),
        },
        "status": {"loadBalancer": {}},
    })
}

pub(super) fn slice_json(slice: &EndpointSlice) -> Value {
    let mut metadata = metadata(&slice.name);
    metadata["labels"]["kubernetes.io/service-name"] = json!(&*slice.service.name);
    let endpoint = |(number, endpoint): (usize, &dsproxy::model::Endpoint)| {
        json!({
            "addresses": [endpoint.address],
            "conditions": {"ready": endpoint.ready, "serving": endpoint.serving, "terminating": endpoint.terminating},
            "nodeName": format!("node-{number}"), "zone": "zone-a",
            "targetRef": {"kind": "Pod", "namespace": &*slice.name.namespace, "name": format!("{}-{number}", slice.service.name),
                          "uid": "3e6b3f5e-5f0a-4d8e-9b7a-0d6d3a1c2b4f"},
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
        "addressType": slice.family.to_string(),
        "endpoints": slice.endpoints.iter().enumerate().map(endpoint).collect::<Vec<_>>(),
        "ports": slice.ports.iter().map(|port| json!({"name": &*port.name, "protocol": "TCP", "port": port.port})).collect::<Vec<_>>(),
    })
}

/// Runs `account_for_start` in `processes` fresh processes, one after the other.
///
/// # Errors
///
/// When one of them fails.
pub fn measure_start(services: u32, endpoints: u32, processes: u32) -> Result<Vec<Figure>, BenchError> {
    let mut runs: Vec<StartAccount> = Vec::new();
    for _ in 0..processes {
        runs.push(child("account-for-start", services, endpoints)?);
    }
    let Some(first) = runs.first() else { return Ok(Vec::new()) };
    let kinds = [("s", first.steps.clone()), ("MiB", first.memory.clone())];
    let mut figures = Vec::new();
    for (unit, rows) in kinds {
        for (what, _) in rows {
            let of_run = |run: &StartAccount| {
                let mut all = run.steps.iter().chain(&run.memory);
                all.find(|(other, _)| *other == what).map_or(f64::NAN, |(_, value)| *value)
            };
            let title = format!("{services} Services x {endpoints} endpoints, both families, by itself: {what}");
            figures.push(
                Figure::of_samples(title, unit, runs.iter().map(of_run))
                    .at("part", PART)
                    .at("services", services)
                    .at("unit", unit)
                    .at("what", &what),
            );
        }
    }
    Ok(figures)
}
