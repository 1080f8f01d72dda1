//! Who is compared: each contender on a ground of its own, all alive at the same time, so that rounds can take turns.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::cluster::{NODE_PORT, PORT, Service, TARGET_PORT, targets};
use crate::ground::{BACKENDS, Ground, NODE, Worker};
use crate::pith::Pith;
use crate::server::Server;
use crate::tools::{Ended, Tool};
use crate::{iptables, nftables, pin};

/// A way from a client to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Contender {
    /// To the backend's own address: no Service at all.
    Straight,
    Pith,
    Nftables,
    Iptables,
    /// No way at all: what measuring a program by itself takes.
    AtOnce,
}

impl Contender {
    pub(crate) const ALL: [Self; 5] =
        [Self::Straight, Self::Pith, Self::Nftables, Self::Iptables, Self::AtOnce];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Straight => "straight to the pod",
            Self::Pith => "pith (eBPF)",
            Self::Nftables => "kube-proxy nftables",
            Self::Iptables => "kube-proxy iptables",
            Self::AtOnce => "passed at once",
        }
    }
}

/// The tools of the contenders that need any.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    pub(crate) iptables: Option<Tool>,
    pub(crate) nft: Option<Tool>,
}

impl Tools {
    /// Contenders that cannot take part, and why.
    pub(crate) fn left_out(&self) -> Vec<String> {
        let mut left_out = Vec::new();
        if self.iptables.is_none() {
            left_out.push(
                "iptables: no `iptables-legacy-restore` here (Debian: apt-get install iptables)".to_owned(),
            );
        }
        if self.nft.is_none() {
            left_out.push("nftables: no `nft` here (Debian: apt-get install nftables)".to_owned());
        }
        left_out
    }
}

enum Means {
    Straight,
    Pith(Box<Pith>),
    Iptables(Tool),
    Nftables(Tool),
}

/// A contender on its ground. Fields are dropped in order: clients leave before what they went through.
pub(crate) struct Contestant {
    pub(crate) contender: Contender,
    /// A pod on the node.
    pub(crate) client: Worker,
    /// Someone outside of the cluster.
    pub(crate) outside: Worker,
    means: Means,
    /// Services that it was given.
    loaded: usize,
    _server: Server,
    pub(crate) ground: Ground,
}

impl Contestant {
    /// `None` where the contender's tool is missing, or where there is no way to connect.
    pub(crate) fn new(contender: Contender, tools: &Tools) -> Result<Option<Self>> {
        let ground = Ground::new()?;
        let means = match contender {
            Contender::AtOnce => return Ok(None),
            Contender::Straight => Means::Straight,
            Contender::Pith => Means::Pith(Box::new(Pith::new(&ground)?)),
            Contender::Iptables => match &tools.iptables {
                Some(tool) => Means::Iptables(tool.clone()),
                None => return Ok(None),
            },
            Contender::Nftables => match &tools.nft {
                Some(tool) => Means::Nftables(tool.clone()),
                None => return Ok(None),
            },
        };
        let cgroup = match &means {
            Means::Pith(pith) => Some(&pith.cgroup),
            Means::Straight | Means::Iptables(_) | Means::Nftables(_) => None,
        };
        let client = Worker::new(&ground.client, cgroup)?;
        let outside = Worker::new(&ground.outside, None)?;
        for worker in [&client, &outside] {
            worker.run(|| {
                pin::to_client_cpu();
                Ok(())
            })?;
        }
        let server = Server::new(&ground.backends)?;
        Ok(Some(Self { contender, client, outside, means, loaded: 0, _server: server, ground }))
    }

    /// All contenders whose tools are here.
    pub(crate) fn all(tools: &Tools) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for contender in Contender::ALL {
            all.extend(Self::new(contender, tools)?);
        }
        Ok(all)
    }

    /// Brings it to these Services, of which it may have the first ones already.
    pub(crate) fn load(&mut self, services: &[Service], deadline: Duration) -> Result<Ended> {
        let begin = Instant::now();
        let ended = match &mut self.means {
            Means::Straight => Ok(Ended::After(Duration::ZERO)),
            Means::Pith(pith) => pith.apply(services).map(Ended::After),
            Means::Iptables(tool) => {
                let text = iptables::full(services);
                let ended = self.ground.node.run(|| tool.feed(&["--wait"], &text, deadline))?;
                Ok(since(begin, ended))
            }
            Means::Nftables(tool) => {
                // Unchanged ones stay as they are: nft would need many times as long to replace them.
                let text = match self.loaded {
                    0 => nftables::full(services),
                    there => nftables::more(services.get(there..).unwrap_or_default()),
                };
                let ended = self.ground.node.run(|| tool.feed(&["-f", "-"], &text, deadline))?;
                Ok(since(begin, ended))
            }
        }?;
        if ended != Ended::TooLate {
            self.loaded = services.len();
        }
        Ok(ended)
    }

    /// One Service has other endpoints now; `removed` are those that went. Returns how long it took until new
    /// connections follow, from the parsed event on.
    pub(crate) fn change(
        &mut self,
        services: &[Service],
        changed: &Service,
        removed: &[Ipv4Addr],
        deadline: Duration,
    ) -> Result<Ended> {
        let begin = Instant::now();
        match &mut self.means {
            Means::Straight => bail!("nothing stands between a client and its pod that could be changed"),
            Means::Pith(pith) => pith.change(changed).map(Ended::After),
            Means::Iptables(tool) => {
                let text = iptables::change(services, changed, removed);
                let ended = self.ground.node.run(|| tool.feed(&["--wait", "--noflush"], &text, deadline))?;
                Ok(since(begin, ended))
            }
            Means::Nftables(tool) => {
                let text = nftables::change(changed, removed);
                let ended = self.ground.node.run(|| tool.feed(&["-f", "-"], &text, deadline))?;
                Ok(since(begin, ended))
            }
        }
    }

    /// Where a pod connects to.
    pub(crate) fn inside(&self, services: &[Service], wanted: usize) -> (Vec<Ipv4Addr>, u16) {
        match self.contender {
            Contender::Straight | Contender::AtOnce => (BACKENDS.to_vec(), TARGET_PORT),
            Contender::Pith | Contender::Iptables | Contender::Nftables => (targets(services, wanted), PORT),
        }
    }

    /// Where someone outside connects to.
    pub(crate) fn outside_places(&self) -> (Vec<Ipv4Addr>, u16) {
        match self.contender {
            Contender::Straight | Contender::AtOnce => (BACKENDS.to_vec(), TARGET_PORT),
            Contender::Pith | Contender::Iptables | Contender::Nftables => (vec![NODE], NODE_PORT),
        }
    }
}

/// The writing of the rules' text counts as well.
fn since(begin: Instant, ended: Ended) -> Ended {
    match ended {
        Ended::After(_) => Ended::After(begin.elapsed()),
        Ended::TooLate => Ended::TooLate,
    }
}
