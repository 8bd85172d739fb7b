//! Services brought into the maps: first those that are gone, then those that are there, then whatever they have left behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use tracing::warn;

use super::{Reconciler, ServiceError, note};
use crate::{
    claims::Conflict,
    diff::Plan,
    maps::{FrontendAddress, MapStore},
    model::ObjectName,
    networks::Proxy,
    progress::NoLocalEndpoints,
    resolve::{Resolution, ResolvedPort},
};

impl<S: MapStore> Reconciler<S> {
    /// Brings `services` up to date, and those that have another frontend by it. A frontend passes from one service port to another
    /// by a single write: whoever had it keeps it until then.
    pub(super) fn bring_up_to_date(&mut self, services: BTreeSet<ObjectName>, now: Instant) {
        if services.is_empty() {
            return;
        }
        self.known.settle(now);
        let wanted = self.settle(services);
        let (gone, present): (Vec<_>, Vec<_>) = wanted.iter().partition(|(_, ports)| ports.is_empty());
        let (awaited, gone): (Vec<_>, Vec<_>) = gone.into_iter().partition(|(service, _)| self.is_awaited(service));
        let mut errors: BTreeMap<ObjectName, ServiceError> = BTreeMap::new();
        for (service, ports) in gone {
            if let Err(error) = self.remove_unwanted(service, ports, now) {
                errors.insert(service.clone(), error);
            }
        }
        for (service, ports) in &present {
            if let Err(error) = self.put(service, ports, now) {
                errors.insert((*service).clone(), error);
            }
        }
        let mut removed = false;
        for (service, ports) in present.iter().chain(&awaited) {
            match self.remove_unwanted(service, ports, now) {
                Ok(anything) => removed |= anything,
                Err(error) => drop(errors.entry((*service).clone()).or_insert(error)),
            }
        }
        if removed {
            // What was removed may be just the room that was missing.
            for (service, ports) in present.iter().filter(|(_, ports)| !ports.is_empty()) {
                if errors.contains_key(*service) && self.put(service, ports, now).is_ok() {
                    errors.remove(*service);
                }
            }
        }
        self.note_failures(&wanted.into_keys().collect(), &errors, now);
    }

    /// What each of `services` is to have, and each of those that have more or less by what they claim.
    fn settle(&mut self, services: BTreeSet<ObjectName>) -> BTreeMap<ObjectName, Vec<ResolvedPort>> {
        let mut wanted = BTreeMap::new();
        let mut concerned = BTreeSet::new();
        for service in services {
            let ports = self.resolve(&service);
            let object = self.cluster.service(&service);
            let proxy = if object.is_some_and(|object| object.is_anothers) { Proxy::Another } else { Proxy::This };
            self.networks.set_service(&service, object.map_or(&[], |object| &object.cluster_ips), proxy);
            concerned.extend(self.claims.set(&service, object.and_then(|object| object.created), &ports));
            wanted.insert(service, ports);
        }
        for service in concerned {
            wanted.entry(service).or_insert_with_key(|service| self.resolve(service));
        }
        for (service, ports) in &mut wanted {
            let (settled, conflicts) = self.claims.settle(std::mem::take(ports));
            *ports = settled;
            self.note_conflicts(service, conflicts);
        }
        wanted
    }

    /// What a Service asks for; what is to be told of it elsewhere is noted.
    fn resolve(&mut self, service: &ObjectName) -> Vec<ResolvedPort> {
        let Resolution { ports, health_check, left_out } = self.cluster.resolve(service);
        self.health_checks.send_if_modified(|checks| match health_check {
            Some(check) => checks.insert(service.clone(), check.clone()) != Some(check),
            None => checks.remove(service).is_some(),
        });
        note(&mut self.without_local, service, NoLocalEndpoints::of(&ports));
        if self.left_out.get(service).is_none_or(|known| *known != left_out) {
            left_out.iter().for_each(|reason| warn!(%service, %reason, "part of a Service is not served"));
        }
        note(&mut self.left_out, service, left_out);
        ports
    }

    /// Whether a frontend that a Service has in the maps is claimed by somebody, who is to take it over.
    fn is_awaited(&self, service: &ObjectName) -> bool {
        self.frontends_of(service).any(|address| self.claims.holder(&address).is_some())
    }

    /// The frontends that a Service has in the maps.
    pub(super) fn frontends_of(&self, service: &ObjectName) -> impl Iterator<Item = FrontendAddress> {
        let names = self.served.get(service).into_iter().flatten();
        names.flat_map(|name| self.known.frontends_of(name))
    }

    /// Writes what the ports of one Service are to have, each as far as there is room for it. Gives the first failure.
    fn put(&mut self, service: &ObjectName, ports: &[ResolvedPort], now: Instant) -> Result<(), ServiceError> {
        let claimed: BTreeSet<FrontendAddress> =
            self.frontends_of(service).filter(|address| self.claims.holder(address).is_some()).collect();
        let mut outcome = Ok(());
        for port in ports {
            let written = self.plan(port, &claimed, now).and_then(|plan| {
                if !plan.writes.is_empty() {
                    self.served.entry(service.clone()).or_default().insert(port.name.to_string().into());
                }
                Ok(self.write(&plan.writes, now)?)
            });
            outcome = outcome.and(written);
        }
        outcome
    }

    /// In a full map, what a service port no longer wants goes before what it wants instead: it makes room, and
    /// endpoints that are gone must not be served for want of it.
    fn plan(
        &mut self,
        port: &ResolvedPort,
        claimed: &BTreeSet<FrontendAddress>,
        now: Instant,
    ) -> Result<Plan, ServiceError> {
        match self.known.plan(port, claimed, now) {
            Ok(plan) => Ok(plan),
            Err(full) => {
                let reduction = self.known.plan_reduction(port, claimed, now).ok_or(full)?;
                self.write(&reduction.writes, now)?;
                Ok(self.known.plan(port, claimed, now)?)
            }
        }
    }

    /// Takes out the service ports that a Service no longer has, and the frontends that are not those ports' any more: whoever
    /// claimed them had its chance. Says whether there was anything.
    fn remove_unwanted(
        &mut self,
        service: &ObjectName,
        ports: &[ResolvedPort],
        now: Instant,
    ) -> Result<bool, ServiceError> {
        let mut removed = false;
        for port in ports {
            let is_its = |address: &FrontendAddress| self.claims.holder(address) == Some(&port.name);
            let strays = self.known.plan_strays(&port.name.to_string(), is_its);
            removed |= !strays.is_empty();
            self.write(&strays, now)?;
        }
        let wanted: BTreeSet<String> = ports.iter().map(|port| port.name.to_string()).collect();
        let served = self.served.get(service).into_iter().flatten();
        let unwanted: Vec<Arc<str>> = served.filter(|name| !wanted.contains(&***name)).cloned().collect();
        for name in &unwanted {
            let writes = self.known.plan_removal(name);
            self.write(&writes, now)?;
            if let Some(served) = self.served.get_mut(service) {
                served.remove(name);
                if served.is_empty() {
                    self.served.remove(service);
                }
            }
        }
        Ok(removed || !unwanted.is_empty())
    }

    fn note_conflicts(&mut self, service: &ObjectName, conflicts: Vec<Conflict>) {
        if self.conflicting.get(service).map_or(&[][..], Vec::as_slice) != conflicts {
            for Conflict { address, holder } in &conflicts {
                warn!(%service, %address, %holder, "the frontend belongs to another Service, which goes before this one");
            }
        }
        note(&mut self.conflicting, service, conflicts);
    }
}
