//! The Services that every contender is given, the same for each.

use std::net::Ipv4Addr;

/// Port of every Service.
pub(crate) const PORT: u16 = 80;
/// Port of every backend.
pub(crate) const TARGET_PORT: u16 = 8080;
/// Node port of the first Service.
pub(crate) const NODE_PORT: u16 = 30_080;
/// Addresses of Services, of all pods, of the pods of the node under test.
pub(crate) const SERVICE_CIDR: &str = "10.96.0.0/16";
pub(crate) const CLUSTER_CIDR: &str = "10.244.0.0/16";

/// One Service with one TCP port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) number: u32,
    pub(crate) address: Ipv4Addr,
    pub(crate) node_port: Option<u16>,
    pub(crate) endpoints: Vec<Ipv4Addr>,
}

impl Service {
    pub(crate) const NAMESPACE: &'static str = "bench";
    pub(crate) const PORT_NAME: &'static str = "http";

    pub(crate) fn name(&self) -> String {
        format!("svc-{}", self.number)
    }
}

/// `count` Services, all with the same endpoints; the first also answers at [`NODE_PORT`].
pub(crate) fn services(count: u32, endpoints: &[Ipv4Addr]) -> Vec<Service> {
    let service = |number: u32| Service {
        number,
        address: address(number),
        node_port: (number == 0).then_some(NODE_PORT),
        endpoints: endpoints.to_vec(),
    };
    (0..count).map(service).collect()
}

/// 10.96.0.1 upwards, without addresses that end in 0 or 255.
fn address(number: u32) -> Ipv4Addr {
    let [high, low] = u16::try_from(number / 250).unwrap_or(u16::MAX).to_be_bytes();
    let last = u8::try_from(number % 250 + 1).expect("at most 250");
    Ipv4Addr::new(10, 96 + high, low, last)
}

/// Services to connect to, spread evenly over all of them: what the first one costs is not what the last one costs
/// where rules are walked one after the other.
pub(crate) fn targets(services: &[Service], wanted: usize) -> Vec<Ipv4Addr> {
    let count = services.len().min(wanted);
    (0..count).map(|number| services[(2 * number + 1) * services.len() / (2 * count)].address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_distinct_and_inside_the_range() {
        let services = services(30_000, &[]);
        let mut addresses: Vec<Ipv4Addr> = services.iter().map(|service| service.address).collect();
        assert!(addresses.iter().all(|address| address.octets()[..2] == [10, 96]));
        addresses.dedup();
        assert_eq!(addresses.len(), 30_000);
        assert_eq!(addresses[0], Ipv4Addr::new(10, 96, 0, 1));
        assert_eq!(addresses[29_999], Ipv4Addr::new(10, 96, 119, 250));
    }

    #[test]
    fn target_table() {
        let place = |address: &Ipv4Addr| {
            let [.., high, low] = address.octets();
            u32::from(high) * 250 + u32::from(low) - 1
        };
        let cases =
            [("one", 1, 4, vec![0]), ("as many", 4, 4, vec![0, 1, 2, 3]), ("spread", 100, 2, vec![25, 75])];
        for (name, count, wanted, expect) in cases {
            let services = services(count, &[]);
            let found: Vec<u32> = targets(&services, wanted).iter().map(place).collect();
            assert_eq!(found, expect, "{name}");
        }
    }
}
