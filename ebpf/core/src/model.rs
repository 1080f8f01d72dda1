//! What the uplink should do, written down once more and plainly: a load balancer with hash maps and from
//! scratch, which shares no packet logic with the programs. Streams of events are run through it and through
//! the programs, which have to agree in verdict and bytes.
//!
//! Chance is the programs' own: the model accepts any backend that the Service has and any source port that is
//! free, remembers what was chosen, and from then on insists on it.

use std::{collections::HashMap, format, string::String, vec, vec::Vec};

use pith_abi::{Tuple, proto};

use crate::{
    host::{Buffer, wire},
    packet::tcp::{ACK, FIN, RST, SYN},
};

pub const NODE: [u8; 4] = [172, 30, 0, 2];
pub const BALANCER: [u8; 4] = [172, 30, 0, 200];
pub const NODE_PORT: u16 = 30_080;
pub const SERVICE_PORT: u16 = 80;
pub const TARGET: u16 = 8080;
/// Two of this node, two of others.
pub const BACKENDS: [[u8; 4]; 4] = [[10, 244, 1, 5], [10, 244, 1, 6], [10, 244, 2, 6], [10, 244, 3, 7]];
const CLIENTS: [[u8; 4]; 3] = [[172, 30, 0, 1], [192, 0, 2, 7], [198, 51, 100, 9]];
const SNAT: core::ops::RangeInclusive<u16> = 1024..=29_999;

const SECOND: u64 = 1_000_000_000;
/// Steps of time: never a whole number of them in one of the timeouts.
pub const STEP_NS: u64 = 6_500_000_000;
const DAY_NS: u64 = 86_400 * SECOND;

/// Where a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    In,
    Out,
}

/// What became of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pass,
    Drop,
    /// Out of the uplink past the stack.
    Redirect,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Packet(Side, Buffer),
    /// The Service has these of [`BACKENDS`], a bit each.
    Serve(u8),
    /// So much time passes, and then flows that are over are collected.
    Pass(u64),
    /// The proxy is another process.
    Restart,
}

/// Under test: the programs, or the core in memory.
pub trait System {
    fn run(&mut self, side: Side, packet: &Buffer) -> (Action, Buffer);
    /// Gives the Service its backends, and collects.
    fn serve(&mut self, backends: &[[u8; 4]]);
    fn pass(&mut self, time_ns: u64);
    fn restart(&mut self);
}

#[derive(Clone, Debug)]
struct Flow {
    first: Tuple,
    to_service: bool,
    answered: bool,
    fin_first: bool,
    fin_other: bool,
    reset: bool,
    last_ns: u64,
}

impl Flow {
    fn closed(&self) -> bool {
        self.reset || (self.fin_first && self.fin_other)
    }

    fn note(&mut self, forward: bool, flags: u8, now_ns: u64) {
        self.last_ns = now_ns;
        if self.closed() {
            return;
        }
        self.reset |= flags & RST != 0;
        self.answered |= !forward;
        self.fin_first |= forward && flags & FIN != 0;
        self.fin_other |= !forward && flags & FIN != 0;
    }

    fn over(&self, now_ns: u64) -> bool {
        let half = self.fin_first || self.fin_other;
        let seconds = match self.first.proto {
            proto::TCP if self.closed() => 10,
            proto::TCP if half || !self.answered => 120,
            proto::TCP => 7_440,
            proto::UDP if self.answered => 120,
            proto::SCTP if self.answered => 210,
            _ => 30,
        };
        now_ns - self.last_ns > seconds * SECOND
    }
}

/// A packet as the model reads it.
struct Seen {
    tuple: Tuple,
    flags: u8,
    ttl: u8,
    l4: usize,
}

/// The reference.
#[derive(Debug, Default)]
pub struct Model {
    now_ns: u64,
    backends: Vec<[u8; 4]>,
    /// By the tuple of the replies.
    flows: HashMap<Tuple, Flow>,
    /// From the tuple of first packets to that of the replies.
    forward: HashMap<Tuple, Tuple>,
}

/// What a packet has to become.
enum Expect {
    /// As it came.
    Same(Action),
    To(Tuple),
    /// The first of a new flow: to one of these, from that address, if need be under another port.
    New {
        to: Vec<(u32, u16)>,
        src_be: u32,
        keep_port: bool,
        to_service: bool,
    },
}

impl Model {
    /// Runs an event through both; says where they differ.
    pub fn step(&mut self, system: &mut impl System, event: &Event) -> Result<(), String> {
        match event {
            Event::Packet(side, packet) => {
                let (action, after) = system.run(*side, packet);
                return self.judge(*side, packet, action, &after);
            }
            Event::Serve(bits) => {
                let has = |at: &usize| bits >> at & 1 != 0;
                self.backends = (0..BACKENDS.len()).filter(has).map(|at| BACKENDS[at]).collect();
                system.serve(&self.backends);
            }
            Event::Pass(time_ns) => {
                self.now_ns += time_ns;
                system.pass(*time_ns);
            }
            Event::Restart => system.restart(),
        }
        let (now, backends) = (self.now_ns, &self.backends);
        let has = |key: &Tuple| backends.iter().any(|backend| be(*backend) == key.src_be);
        self.flows.retain(|key, flow| !flow.over(now) && (!flow.to_service || has(key)));
        let flows = &self.flows;
        self.forward.retain(|first, key| flows.get(key).is_some_and(|flow| flow.first == *first));
        Ok(())
    }

    fn judge(&mut self, side: Side, before: &Buffer, action: Action, after: &Buffer) -> Result<(), String> {
        let (expect, seen) = match read(before) {
            // What must leave under the node's address and cannot does not leave.
            None if side == Side::Out && addresses(before).is_some_and(leaves) => {
                (Expect::Same(Action::Drop), None)
            }
            None => (Expect::Same(Action::Pass), None),
            Some(seen) => (self.expect(side, &seen), Some(seen)),
        };
        let to = match (expect, &seen) {
            (Expect::Same(wanted), _) => return same(wanted, action, before, after),
            (_, None) => return Err("a packet that cannot be read becomes another".into()),
            (Expect::To(to), Some(_)) => to,
            (Expect::New { to, src_be, keep_port, to_service }, Some(seen)) => {
                let Some(got) = read(after).map(|seen| seen.tuple) else {
                    return Err("it cannot be read any more".into());
                };
                if !to.contains(&(got.dst_be, got.dport_be)) {
                    return Err(format!("{got:?} is none of {to:?}"));
                }
                self.begin(seen, &got, src_be, keep_port, to_service)?;
                got
            }
        };
        let seen = seen.ok_or("unreachable: such packets stay as they are")?;
        let hop = side == Side::In && !is_local(to.dst_be);
        let wanted = match hop {
            true if seen.ttl <= 1 => return same_action(Action::Drop, action),
            true => Action::Redirect,
            false => Action::Pass,
        };
        same_action(wanted, action)?;
        let (expect, exact) = rewritten(before, &seen, &to, hop);
        let blank = |packet: &Buffer| if exact { packet.clone() } else { without_checksums(packet, &seen) };
        if blank(&expect) == blank(after) {
            Ok(())
        } else {
            Err(format!("{after:02x?} and not {expect:02x?}"))
        }
    }

    fn expect(&mut self, side: Side, seen: &Seen) -> Expect {
        let (tuple, flags, now) = (&seen.tuple, seen.flags, self.now_ns);
        let own = tuple.dst_be == be(NODE);
        let pong = tuple.proto == proto::ICMP && tuple.dport_be != 0;
        let opens = flags & (SYN | ACK | RST) == SYN;
        let may_reply = match side {
            Side::In if !own && tuple.dst_be != be(BALANCER) => return Expect::Same(Action::Pass),
            Side::In => own && SNAT.contains(&u16::from_be(tuple.dport_be)),
            Side::Out if !is_local(tuple.src_be) => return Expect::Same(Action::Pass),
            Side::Out => true,
        };
        if may_reply && let Some(flow) = self.flows.get_mut(tuple) {
            flow.note(false, flags, now);
            return Expect::To(flow.first.reversed());
        }
        if side == Side::Out && !leaves((tuple.src_be, tuple.dst_be)) {
            return Expect::Same(Action::Pass);
        }
        if let Some(key) = self.forward.get(tuple)
            && let Some(flow) = self.flows.get_mut(key)
            && flow.first == *tuple
            && !(flow.closed() && opens)
        {
            flow.note(true, flags, now);
            return Expect::To(key.reversed());
        }
        if side == Side::Out {
            if flags & RST != 0 || pong {
                return Expect::Same(Action::Drop);
            }
            let to = vec![(tuple.dst_be, tuple.dport_be)];
            let keep_port = SNAT.contains(&u16::from_be(tuple.sport_be));
            return Expect::New { to, src_be: be(NODE), keep_port, to_service: false };
        }
        let port = if own { NODE_PORT } else { SERVICE_PORT };
        let asks = tuple.proto != proto::ICMP && tuple.dport_be == port.to_be();
        let begins = asks && (tuple.proto != proto::TCP || opens) && !self.backends.is_empty();
        match (begins, own) {
            (false, true) => Expect::Same(Action::Pass),
            (false, false) if pong => Expect::Same(Action::Drop),
            // This node's own stack refuses or answers for it.
            (false, false) => Expect::New {
                to: vec![(be(NODE), 0)],
                src_be: tuple.src_be,
                keep_port: true,
                to_service: false,
            },
            (true, _) => {
                let to = self.backends.iter().map(|backend| (be(*backend), TARGET.to_be())).collect();
                Expect::New { to, src_be: 0, keep_port: true, to_service: true }
            }
        }
    }

    /// Checks under which address and port a flow begins, and notes it.
    fn begin(
        &mut self,
        seen: &Seen,
        got: &Tuple,
        src_be: u32,
        mut keep_port: bool,
        to_service: bool,
    ) -> Result<(), String> {
        let mut src_be = src_be;
        if to_service {
            src_be = if is_local(got.dst_be) { seen.tuple.src_be } else { be(NODE) };
            keep_port = is_local(got.dst_be) || SNAT.contains(&u16::from_be(seen.tuple.sport_be));
        }
        if got.src_be != src_be {
            return Err(format!("{got:?} is not from {src_be:08x}"));
        }
        let free = |flow: &Flow| flow.closed() || flow.over(self.now_ns) || flow.first == seen.tuple;
        let own = Tuple { sport_be: seen.tuple.sport_be, ..*got };
        if keep_port && self.flows.get(&own.reversed()).is_none_or(free) {
            if *got != own {
                return Err(format!("{got:?}: its own port was free"));
            }
        } else if !SNAT.contains(&u16::from_be(got.sport_be)) || self.flows.contains_key(&got.reversed()) {
            return Err(format!("{got:?}: that port was not free"));
        }
        let flow = Flow {
            first: seen.tuple,
            to_service,
            answered: false,
            fin_first: false,
            fin_other: false,
            reset: false,
            last_ns: self.now_ns,
        };
        self.flows.insert(got.reversed(), flow);
        self.forward.insert(seen.tuple, got.reversed());
        Ok(())
    }

    /// Something that happens, by numbers: the smaller they are, the plainer it is.
    pub fn event(&self, [kind, a, b, c]: [u8; 4]) -> Event {
        let pick = |of: usize, by: u8| usize::from(by) % of;
        let (client, host) = (CLIENTS[pick(3, a)], BACKENDS[pick(2, a)]);
        let sport = [40_000, 40_001, 2_000][pick(3, b)];
        let flags = [SYN, ACK, SYN | ACK, FIN | ACK, RST, RST | ACK][pick(6, c)];
        let protocol = [proto::TCP, proto::UDP, proto::ICMP, proto::SCTP][pick(4, c / 6)];
        let icmp = protocol == proto::ICMP;
        let (side, packet) = match kind % 16 {
            0..=4 => {
                let (to, port) = [(NODE, NODE_PORT), (BALANCER, SERVICE_PORT), (NODE, 22), (BALANCER, 81)]
                    [pick(4, c / 24)];
                let tuple = tuple(client, sport, to, if icmp { 0 } else { port }, protocol);
                (Side::In, packet(&tuple, flags, a, pick(40, b)))
            }
            5 | 6 => {
                let port = if icmp { 0 } else { 443 };
                let tuple = tuple(host, sport, client, port, protocol);
                (Side::Out, packet(&tuple, flags, b, pick(9, a)))
            }
            7..=10 => {
                // An answer, or more of the same, of a flow that there is.
                let mut keys: Vec<&Tuple> = self.flows.keys().collect();
                keys.sort();
                let Some(key) = keys.get(pick(keys.len().max(1), a)) else { return Event::Serve(1) };
                let side = if is_local(key.src_be) { Side::Out } else { Side::In };
                (side, packet(key, flags, c, pick(30, b)))
            }
            11 => return Event::Serve(a & 15),
            12 => return Event::Pass(if b > 200 { DAY_NS } else { STEP_NS }),
            13 if a > 200 => return Event::Restart,
            _ => return self.hostile([a, b, c, kind]),
        };
        Event::Packet(side, packet)
    }

    /// A sound packet with one byte changed or its end missing.
    fn hostile(&self, [a, b, c, kind]: [u8; 4]) -> Event {
        let Event::Packet(side, Buffer(mut bytes)) = self.event([a % 11, b, c, a]) else {
            return Event::Restart;
        };
        if kind % 2 == 0 {
            bytes.truncate(14 + usize::from(b) % 60);
        } else {
            // What says how long it is decides whether a checksum over all of SCTP can follow at all.
            let first = if bytes[23] == proto::SCTP { 22 } else { 14 };
            let at = first + usize::from(c) % (bytes.len() - first);
            bytes[at] ^= 1 << (b % 8);
        }
        // Which backend a packet would have had that has no hops left, nobody can see.
        if let Some(ttl @ 0..=1) = bytes.get_mut(22) {
            *ttl = 2;
        }
        // Pieces are another test's.
        if bytes.get(20..22).is_some_and(|field| field[0] & 0x3F | field[1] != 0) {
            bytes[20..22].fill(0);
        }
        Event::Packet(side, Buffer(bytes))
    }
}

fn be(address: [u8; 4]) -> u32 {
    u32::from_ne_bytes(address)
}

fn tuple(src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16, protocol: u8) -> Tuple {
    Tuple::new(be(src), sport.to_be(), be(dst), dport.to_be(), protocol)
}

/// With a payload of so many bytes, of SCTP a whole number of words.
fn packet(tuple: &Tuple, tcp_flags: u8, byte: u8, length: usize) -> Buffer {
    let length = if tuple.proto == proto::SCTP { length & !3 } else { length };
    wire::packet(tuple, tcp_flags, &vec![byte; length])
}

fn is_pod_here(addr_be: u32) -> bool {
    addr_be.to_ne_bytes()[..3] == [10, 244, 1]
}

fn is_local(addr_be: u32) -> bool {
    is_pod_here(addr_be) || addr_be == be(NODE)
}

/// Whether a packet from one address to another leaves the cluster.
fn leaves((src_be, dst_be): (u32, u32)) -> bool {
    let to = dst_be.to_ne_bytes();
    is_pod_here(src_be) && to[..2] != [10, 244] && dst_be != be(NODE) && to[0] < 224
}

/// Those of a packet that has an IPv4 header.
fn addresses(packet: &Buffer) -> Option<(u32, u32)> {
    let l3 = packet.0.get(14..).filter(|l3| l3.len() >= 20 && l3[0] >> 4 == 4 && l3[0] & 15 >= 5)?;
    Some((be(l3[12..16].try_into().ok()?), be(l3[16..20].try_into().ok()?)))
}

fn same_action(wanted: Action, got: Action) -> Result<(), String> {
    if wanted == got { Ok(()) } else { Err(format!("{got:?} and not {wanted:?}")) }
}

fn same(wanted: Action, got: Action, before: &Buffer, after: &Buffer) -> Result<(), String> {
    same_action(wanted, got)?;
    if before == after { Ok(()) } else { Err(format!("{after:02x?} and not as it came")) }
}

/// `None` for what belongs to no flow: nothing is to be done with it.
fn read(packet: &Buffer) -> Option<Seen> {
    let l3 = packet.0.get(14..).filter(|l3| l3.len() >= 20 && l3[0] >> 4 == 4)?;
    let length = usize::from(l3[0] & 15) * 4;
    let l4 = l3.get(length..).filter(|_| length >= 20)?;
    let (src, dst) = (l3[12..16].try_into().ok()?, l3[16..20].try_into().ok()?);
    let number = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
    let (least, flags) = match l3[9] {
        proto::TCP => (20, l4.get(13).copied()?),
        proto::UDP | proto::ICMP => (8, 0),
        proto::SCTP => (12, 0),
        _ => return None,
    };
    if l4.len() < least {
        return None;
    }
    let (sport, dport) = match (l3[9], l4[0]) {
        (proto::ICMP, 8) => (number(4), 0),
        // An answer without an identifier is of no flow.
        (proto::ICMP, 0) if number(4) != 0 => (0, number(4)),
        (proto::ICMP, _) => return None,
        _ => (number(0), number(2)),
    };
    Some(Seen { tuple: tuple(src, sport, dst, dport, l3[9]), flags, ttl: l3[8], l4: 14 + length })
}

/// The packet with another tuple, all its checksums computed from scratch; and whether they can be: those of a
/// packet that came broken stay broken by as much.
fn rewritten(before: &Buffer, seen: &Seen, to: &Tuple, hop: bool) -> (Buffer, bool) {
    let mut after = before.clone();
    let bytes = &mut after.0;
    bytes[26..30].copy_from_slice(&to.src_be.to_ne_bytes());
    bytes[30..34].copy_from_slice(&to.dst_be.to_ne_bytes());
    bytes[22] -= u8::from(hop);
    if to.proto == proto::ICMP {
        bytes[seen.l4 + 4..seen.l4 + 6].copy_from_slice(&(to.sport_be | to.dport_be).to_ne_bytes());
    } else {
        bytes[seen.l4..seen.l4 + 2].copy_from_slice(&to.sport_be.to_ne_bytes());
        bytes[seen.l4 + 2..seen.l4 + 4].copy_from_slice(&to.dport_be.to_ne_bytes());
    }
    let whole = usize::from(u16::from_be_bytes([before.0[16], before.0[17]])) + 14 == before.0.len();
    let exact = whole && wire::checksums_hold(before);
    if exact {
        wire::complete(&mut after);
    }
    (after, exact)
}

fn without_checksums(packet: &Buffer, seen: &Seen) -> Buffer {
    let mut blank = packet.clone();
    let l4 = match seen.tuple.proto {
        proto::TCP => 16..18,
        proto::UDP => 6..8,
        proto::SCTP => 8..12,
        _ => 2..4,
    };
    blank.0[24..26].fill(0);
    blank.0[seen.l4..][l4].fill(0);
    blank
}
