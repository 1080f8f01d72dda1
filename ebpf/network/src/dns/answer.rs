//! Answers about the cluster's names, after Kubernetes' specification of them (dns specification 1.1.0).
//! Pure.

use std::net::IpAddr;

use hickory_proto::{
    op::ResponseCode,
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
    },
};

use super::{
    catalog::{Catalog, Endpoint, Kind, Port, ServiceKey, View},
    question::{Subject, Zone},
};

/// How long an answer may be remembered, in seconds: endpoints come and go.
const TTL_S: u32 = 5;
/// Version of the specification that is followed.
const SPEC_VERSION: &str = "1.1.0";

/// What is known about a question.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// The answer, whole.
    Known { code: ResponseCode, answers: Vec<Record>, additionals: Vec<Record>, authority: Vec<Record> },
    /// These records, and whatever this other name stands for.
    Alias { answers: Vec<Record>, target: Name },
    /// Others must be asked.
    Elsewhere,
}

impl Answer {
    /// Without any records.
    pub(crate) fn code(code: ResponseCode) -> Self {
        Self::Known { code, answers: Vec::new(), additionals: Vec::new(), authority: Vec::new() }
    }
}

/// Answers a question of class IN.
pub(crate) fn answer(zone: &Zone, catalog: &Catalog, name: &Name, kind: RecordType) -> Answer {
    let subject = zone.subject(name);
    if subject == Subject::Elsewhere {
        return Answer::Elsewhere;
    }
    let reply = Reply { zone, name, kind };
    if let Subject::Address(address) = subject {
        let targets: Vec<Name> = catalog
            .names_of(address)
            .into_iter()
            .filter_map(|(key, label)| reply.service_name(key, label.as_deref()))
            .collect();
        return match (targets.is_empty(), zone.owns(address)) {
            (true, false) => Answer::Elsewhere,
            (true, true) if !catalog.complete() => Answer::code(ResponseCode::ServFail),
            (true, true) => reply.nothing(),
            (false, _) => reply.records(targets.into_iter().map(|name| RData::PTR(PTR(name)))),
        };
    }
    if !catalog.complete() && subject != Subject::NameServer {
        return Answer::code(ResponseCode::ServFail);
    }
    match subject {
        Subject::Apex => reply.apex(),
        Subject::Inner => reply.records([]),
        Subject::Namespace(namespace) if catalog.has_namespace(&namespace) => reply.records([]),
        Subject::Service(key) => match catalog.service(&key) {
            Some(view) => reply.service(&key, view),
            None => reply.nothing(),
        },
        Subject::Endpoint(key, label) => match catalog.service(&key) {
            Some(view) if view.facts.kind == Kind::Headless => reply.endpoint(view, &label),
            Some(_) | None => reply.nothing(),
        },
        Subject::Protocol(key, protocol) => match catalog.service(&key) {
            Some(view) if has_port(view, |port| *port.protocol == protocol) => reply.records([]),
            Some(_) | None => reply.nothing(),
        },
        Subject::Port(key, name, protocol) => match catalog.service(&key) {
            Some(view) => {
                let wanted = |port: &Port| *port.name == name && *port.protocol == protocol;
                if has_port(view, wanted) { reply.srv(&key, view, wanted) } else { reply.nothing() }
            }
            None => reply.nothing(),
        },
        Subject::Pod(address) => reply.addresses([address]),
        Subject::SpecVersion => reply.records([RData::TXT(TXT::new(vec![SPEC_VERSION.to_owned()]))]),
        Subject::NameServer => reply.addresses([zone.address]),
        Subject::Namespace(_) | Subject::Nothing => reply.nothing(),
        Subject::Address(_) | Subject::Elsewhere => unreachable!("answered above"),
    }
}

/// A named port of the Service or, if it is headless, of its endpoints.
fn has_port(view: View<'_>, wanted: impl Fn(&Port) -> bool) -> bool {
    match view.facts.kind {
        Kind::Cluster(_) => view.facts.ports.iter().any(wanted),
        Kind::Headless => {
            view.facts.ports.iter().any(&wanted)
                || view.endpoints().any(|(_, ports)| ports.iter().any(&wanted))
        }
        Kind::External(_) => false,
    }
}

struct Reply<'a> {
    zone: &'a Zone,
    /// As the client wrote it: some compare the case (draft-vixie-dnsext-dns0x20).
    name: &'a Name,
    kind: RecordType,
}

impl Reply<'_> {
    /// Those of `data` that were asked for; none of them is an answer too.
    fn records(&self, data: impl IntoIterator<Item = RData>) -> Answer {
        self.records_with(data, Vec::new())
    }

    fn records_with(&self, data: impl IntoIterator<Item = RData>, additionals: Vec<Record>) -> Answer {
        let asked = |data: &RData| self.kind == RecordType::ANY || data.record_type() == self.kind;
        let answers: Vec<Record> =
            data.into_iter().filter(asked).map(|data| self.record(self.name.clone(), data)).collect();
        let authority = if answers.is_empty() { vec![self.soa()] } else { Vec::new() };
        Answer::Known { code: ResponseCode::NoError, answers, additionals, authority }
    }

    fn addresses(&self, addresses: impl IntoIterator<Item = IpAddr>) -> Answer {
        self.records(addresses.into_iter().map(address_data))
    }

    fn nothing(&self) -> Answer {
        Answer::Known {
            code: ResponseCode::NXDomain,
            answers: Vec::new(),
            additionals: Vec::new(),
            authority: vec![self.soa()],
        }
    }

    fn record(&self, name: Name, data: RData) -> Record {
        Record::from_rdata(name, TTL_S, data)
    }

    fn below(&self, label: &str) -> Option<Name> {
        Name::from_ascii(label).ok()?.append_domain(&self.zone.domain).ok()
    }

    /// `web.default.svc.cluster.local`, or an endpoint of it.
    fn service_name(&self, key: &ServiceKey, label: Option<&str>) -> Option<Name> {
        let service = format!("{}.{}.svc", key.name, key.namespace);
        self.below(&label.map_or_else(|| service.clone(), |label| format!("{label}.{service}")))
    }

    fn name_server(&self) -> Name {
        self.below("ns.dns").unwrap_or_else(|| self.zone.domain.clone())
    }

    fn soa_data(&self) -> RData {
        let mailbox = self.below("hostmaster").unwrap_or_else(|| self.zone.domain.clone());
        // There are no secondaries to which the other numbers would say something.
        RData::SOA(SOA::new(self.name_server(), mailbox, 1, 7200, 1800, 86400, TTL_S))
    }

    fn soa(&self) -> Record {
        self.record(self.zone.domain.clone(), self.soa_data())
    }

    fn apex(&self) -> Answer {
        let server = address_data(self.zone.address);
        let additional = self.record(self.name_server(), server);
        self.records_with([self.soa_data(), RData::NS(NS(self.name_server()))], vec![additional])
    }

    fn service(&self, key: &ServiceKey, view: View<'_>) -> Answer {
        match &view.facts.kind {
            Kind::External(target) => match Name::from_ascii(target) {
                Ok(mut target) => {
                    target.set_fqdn(true);
                    let data = RData::CNAME(CNAME(target.clone()));
                    if self.kind == RecordType::CNAME {
                        return self.records([data]);
                    }
                    Answer::Alias { answers: vec![self.record(self.name.clone(), data)], target }
                }
                Err(_) => Answer::code(ResponseCode::ServFail),
            },
            Kind::Cluster(_) | Kind::Headless if self.kind == RecordType::SRV => {
                self.srv(key, view, |port| !port.name.is_empty())
            }
            Kind::Cluster(addresses) => self.addresses(addresses.iter().copied()),
            Kind::Headless => self.addresses(distinct(view.endpoints().map(|(it, _)| it.address))),
        }
    }

    /// All addresses of the label: several endpoints may share a hostname.
    fn endpoint(&self, view: View<'_>, label: &str) -> Answer {
        let found = view.endpoints().filter(|(endpoint, _)| endpoint.label() == label);
        let addresses = distinct(found.map(|(endpoint, _)| endpoint.address));
        if addresses.is_empty() { self.nothing() } else { self.addresses(addresses) }
    }

    /// One record for each port that is wanted, of the Service or of each of its endpoints.
    fn srv(&self, key: &ServiceKey, view: View<'_>, wanted: impl Fn(&Port) -> bool) -> Answer {
        let mut records = Vec::new();
        let mut additionals = Vec::new();
        let mut add = |port: &Port, target: Option<Name>, addresses: &[IpAddr]| {
            let Some(target) = target else { return };
            let data = RData::SRV(SRV::new(0, 100, port.port, target.clone()));
            if !records.contains(&data) {
                records.push(data);
            }
            for address in addresses {
                let record = self.record(target.clone(), address_data(*address));
                if !additionals.contains(&record) {
                    additionals.push(record);
                }
            }
        };
        match &view.facts.kind {
            Kind::Cluster(addresses) => {
                for port in view.facts.ports.iter().filter(|port| wanted(port)) {
                    add(port, self.service_name(key, None), addresses);
                }
            }
            Kind::Headless => {
                for (endpoint, ports) in view.endpoints() {
                    let Endpoint { address, .. } = endpoint;
                    for port in ports.iter().filter(|port| wanted(port)) {
                        add(port, self.service_name(key, Some(&endpoint.label())), &[*address]);
                    }
                }
            }
            Kind::External(_) => {}
        }
        if self.kind != RecordType::SRV && self.kind != RecordType::ANY {
            additionals.clear();
        }
        self.records_with(records, additionals)
    }
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

fn distinct(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut addresses: Vec<_> = addresses.collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}
