//! The node network as the kernel has it: bridge, pods, rules. Lives on the node thread; every
//! call here blocks for as long as the kernel takes and no longer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clients::{self, Clients, Lent};
use crate::conntrack;
use crate::family::{Family, octets};
use crate::ipam::Ipam;
use crate::link::{Link, Mac, mac_of, mac_text, read_link};
use crate::netlink::{Requests, Socket};
use crate::nft::{self, Batch, Element};
use crate::policy::{Policies, PolicyTable};
use crate::ruleset::{
    self, ADOPTED, AFFINITY, CLIENTS, CLUSTER, CROWDED, HAIRPIN, LOOPBACK_SERVICES,
    LOOPBACK_SERVICES_PREFIX, PENDING, PODS, Parameters, QueueBy, Ranges, TABLE,
};
use crate::services::{self, Balance, ServiceChange, ServiceTable, Withdrawn};
use crate::thread::{current_namespace, inside};
use crate::{Cidr, Error};

const LOOPBACK_INDEX: u32 = 1;
const BRIDGE: &str = "br0";
/// Fixed indices spare look-ups. Low ones may be taken: some modules put a device into every
/// namespace.
const BRIDGE_INDEX: u32 = 1000;
const VETH_INDEX: u32 = 0x1_0000;
const FORWARDING_TIMEOUT: Duration = Duration::from_secs(2);
const FORWARDING_PAUSE: Duration = Duration::from_micros(100);
const MAX_ID_BYTES: usize = 120;

/// A pod's connection to the node network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// What the caller calls it.
    pub id: String,
    /// Name of the interface in the pod.
    pub ifname: String,
    /// Address of the pod; its only prefix is /32, or /128 where only IPv6 is told of.
    pub address: IpAddr,
    /// Its IPv6 address, in a node network that has both families.
    #[serde(default)]
    pub address6: Option<IpAddr>,
    /// Default gateway, the only neighbour.
    pub gateway: IpAddr,
    /// Link address in the pod, as `0a:58:…`.
    pub mac: String,
    /// Largest packet, in bytes.
    pub mtu: u32,
}

/// What to attach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Chosen by the caller, unique; the same id again returns the same attachment.
    pub id: String,
    /// Name of the interface in the pod.
    pub ifname: String,
    /// What policies call the pod. Once policies were applied, a pod with such a name is attached
    /// only when they know it: so they hold before its first packet.
    #[serde(default)]
    pub member: Option<String>,
    /// How fast it may receive and send; for a pod that is attached already it stays as it is.
    #[serde(default)]
    pub bandwidth: Bandwidth,
    /// The address that it is to have; None is the next that is free.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// Whether it is an error that the interface is there already.
    #[serde(default)]
    pub anew: bool,
}

/// Limits in bits a second; None is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Towards the pod.
    pub ingress_bps: Option<u64>,
    /// From the pod.
    pub egress_bps: Option<u64>,
}

/// Fixed properties of the network.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub pod_cidr: Cidr,
    pub gateway: Ipv4Addr,
    pub ranges: Vec<Ranges>,
    pub tell_ipv6_only: bool,
    pub mtu: u32,
}

impl Shape {
    /// The IPv6 address that belongs to a pod's IPv4 address: the same place in the other range.
    fn address6(&self, address: Ipv4Addr) -> Option<IpAddr> {
        let ranges = self.ranges.iter().find(|ranges| ranges.gateway.is_ipv6())?;
        let (first, _) = self.pod_cidr.v4_bounds()?;
        let IpAddr::V6(base) = ranges.pods.address() else { return None };
        let offset = u128::from(u32::from(address).wrapping_sub(first));
        Some(Ipv6Addr::from(u128::from(base) + offset).into())
    }

    fn gateway6(&self) -> Option<IpAddr> {
        self.ranges.iter().map(|ranges| ranges.gateway).find(IpAddr::is_ipv6)
    }
}

/// Noted on the host's end of the veth, so that a new node process finds what an old one made.
#[derive(Clone, Serialize, Deserialize)]
struct Label {
    id: String,
    #[serde(rename = "if", alias = "ifname")]
    ifname: String,
    #[serde(rename = "ip", alias = "address")]
    address: Ipv4Addr,
    #[serde(rename = "ns", alias = "namespace")]
    namespace: u64,
    #[serde(default, rename = "of", alias = "member", skip_serializing_if = "Option::is_none")]
    member: Option<String>,
}

/// The kernel's longest alias of a link, bytes (`IFALIASZ`, without the end of the string).
const ALIAS_BYTES_MAX: usize = 255;

impl Label {
    /// The alias. A name that does not fit in is left out: whoever attaches the pod again brings it.
    fn text(&self) -> String {
        let text = |label: &Self| serde_json::to_string(label).expect("a label is plain data");
        let whole = text(self);
        if whole.len() <= ALIAS_BYTES_MAX {
            return whole;
        }
        text(&Self { member: None, ..self.clone() })
    }
}

/// A pod that somebody else attached to the node's network, as CNI plugins do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// Its name among the members of policies.
    pub member: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The node's own addresses on its link: what is sent to them stays in the node's network.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
}

struct Pod {
    attachment: Attachment,
    address: Ipv4Addr,
    namespace: u64,
    member: Option<String>,
}

impl Pod {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        [IpAddr::V4(self.address)].into_iter().chain(self.attachment.address6)
    }
}

/// The state of the node thread.
pub(crate) struct Network {
    shape: Shape,
    route: Socket,
    netfilter: Socket,
    ipam: Ipam,
    pods: BTreeMap<String, Pod>,
    adopted: BTreeMap<String, Adopted>,
    services: ServiceTable,
    /// The chains that draw endpoints.
    balances: BTreeSet<Balance>,
    /// None until policies were told for the first time.
    policy_table: Option<PolicyTable>,
    policies: Policies,
    /// What an earlier life knew and this one has yet to be told.
    awaited: Awaited,
    /// From outside, with flows.
    clients: Clients,
    lock_ports: bool,
}

#[derive(Clone, Copy, Default)]
struct Awaited {
    services: bool,
    policies: bool,
}

impl Network {
    /// Sets the namespace of the calling thread up, or takes over what an earlier life left there.
    pub fn create(shape: Shape) -> Result<Self, Error> {
        let mut network = Self {
            ipam: Ipam::new(shape.pod_cidr, IpAddr::V4(shape.gateway))?,
            route: Socket::route()?,
            netfilter: Socket::netfilter()?,
            pods: BTreeMap::new(),
            adopted: BTreeMap::new(),
            services: ServiceTable::default(),
            balances: BTreeSet::new(),
            policy_table: None,
            policies: Policies::default(),
            awaited: Awaited::default(),
            clients: Clients::default(),
            lock_ports: true,
            shape,
        };
        let links = links()?;
        set_node_sysctls()?;
        if network.shape.gateway6().is_some()
            && let Err(error) = set_node_sysctls6()
        {
            tracing::info!(error = error.chain(), "pods get no IPv6 addresses");
            network.shape.ranges.retain(|ranges| ranges.gateway.is_ipv4());
        }
        if links.iter().any(|link| link.index == BRIDGE_INDEX) {
            network.recover(&links);
            network.awaited = Awaited { services: true, policies: true };
        } else {
            network.create_bridge()?;
        }
        Ok(network)
    }

    fn create_bridge(&self) -> Result<(), Error> {
        let Shape { gateway, mtu, .. } = self.shape;
        let mut requests = Requests::new();
        requests.set_up(LOOPBACK_INDEX);
        requests.create_bridge(BRIDGE, BRIDGE_INDEX, mac_of(gateway), mtu);
        for ranges in &self.shape.ranges {
            requests.add_address(BRIDGE_INDEX, ranges.gateway, ranges.pods.prefix());
            requests.add_local_default(LOOPBACK_INDEX, ranges.gateway);
        }
        self.route.execute(&requests)
    }

    fn recover(&mut self, links: &[Link]) {
        for link in links {
            let label = link.alias.as_deref().map(serde_json::from_str::<Label>);
            if let Some(Ok(label)) = label
                && self.ipam.claim(label.address, &label.id)
            {
                let request = AttachRequest {
                    id: label.id,
                    ifname: label.ifname,
                    member: label.member,
                    bandwidth: Bandwidth::default(),
                    address: None,
                    anew: false,
                };
                let pod = self.pod(request, label.address, label.namespace);
                self.pods.insert(pod.attachment.id.clone(), pod);
            }
        }
    }

    fn pod(&self, request: AttachRequest, address: Ipv4Addr, namespace: u64) -> Pod {
        Pod {
            attachment: Attachment {
                id: request.id,
                ifname: request.ifname,
                address: IpAddr::V4(address),
                address6: self.shape.address6(address),
                gateway: IpAddr::V4(self.shape.gateway),
                mac: mac_text(mac_of(address)),
                mtu: self.shape.mtu,
            },
            address,
            namespace,
            member: request.member,
        }
    }

    /// Installs the fixed rules, replacing any, with the elements of the pods that are known.
    pub fn install_rules(
        &mut self,
        gateway_port: u16,
        hold: Option<QueueBy>,
        fair: bool,
    ) -> Result<(), Error> {
        let mut batch = ruleset::base(&Parameters {
            bridge_index: BRIDGE_INDEX,
            ranges: self.shape.ranges.clone(),
            gateway_port,
            hold,
            fair,
            takeover: self.awaited.services || self.awaited.policies,
        });
        for pod in self.pods.values() {
            add_pod_elements(&mut batch, pod);
        }
        self.adopted.clear();
        self.services = ServiceTable::default();
        self.balances.clear();
        self.policies = Policies::default();
        self.clients = Clients::default();
        batch.commit(&self.netfilter)
    }

    /// Lets a pod's connections begin without being held, for a while.
    pub fn crowd(&mut self, pod: IpAddr) -> Result<(), Error> {
        let family = Family::of(pod);
        let mut batch = Batch::new(TABLE);
        batch.add_elements(&family.name(CROWDED), &[Element::Key(octets(pod))]);
        batch.commit(&self.netfilter)
    }

    /// Has answers to a client from outside come back to this namespace's sockets; None for an address of the
    /// cluster's own, where they do anyway.
    pub fn admit_client(&mut self, client: IpAddr) -> Result<Option<Lent>, Error> {
        let family = Family::of(client);
        let Some(ranges) = self.shape.ranges.iter().find(|ranges| ranges.family() == family) else {
            return Ok(None);
        };
        let adopted = || self.adopted.values().flat_map(|pod| &pod.addresses);
        if [ranges.pods, ranges.services].iter().any(|range| range.contains(client))
            || adopted().any(|address| *address == client)
        {
            return Ok(None);
        }
        if let Some(lent) = self.clients.lend(client) {
            return Ok(Some(lent));
        }
        self.forget_clients();
        if self.clients.is_full() {
            let full = io::Error::from_raw_os_error(libc::ENOBUFS);
            return Err(Error::system(format!("know {client} with all the others"), full));
        }
        let mut batch = Batch::new(TABLE);
        batch.add_elements(&family.name(CLIENTS), &[clients::element(client)]);
        batch.commit(&self.netfilter)?;
        Ok(Some(self.clients.add(client)))
    }

    /// Those that have had no flow for long. Should it fail, they are known until it is tried again.
    fn forget_clients(&mut self) {
        let gone = self.clients.idle(Instant::now());
        let mut batch = Batch::new(TABLE);
        for family in [Family::V4, Family::V6] {
            let own = gone.iter().filter(|client| Family::of(**client) == family);
            let elements: Vec<_> = own.map(|client| clients::element(*client)).collect();
            batch.delete_elements(&family.name(CLIENTS), &elements);
        }
        match batch.commit(&self.netfilter) {
            Ok(()) => self.clients.forget(&gone),
            Err(error) => {
                tracing::warn!(error = error.chain(), "cannot forget clients from outside");
            }
        }
    }

    /// Whether policies have yet to learn of a pod of this name.
    pub fn awaits_policies(&self, id: &str, member: Option<&str>) -> bool {
        match (&self.policy_table, member) {
            (Some(table), Some(member)) => {
                // What is attached already came in under the policies of its time.
                !table.others_are_free
                    && !table.members.contains_key(member)
                    && !self.pods.contains_key(id)
                    && !self.adopted.contains_key(id)
            }
            _ => false,
        }
    }

    /// Makes services and policies hold for a pod that somebody else attached. Idempotent by id.
    pub fn adopt(&mut self, id: &str, pod: Adopted) -> Result<(), Error> {
        if self.adopted.get(id) == Some(&pod) {
            return Ok(());
        }
        self.release(id)?;
        let mut batch = Batch::new(TABLE);
        for (set, elements) in self.elements_of(&pod) {
            batch.add_elements(&set, &elements);
        }
        self.adopted.insert(id.to_owned(), pod);
        let done = self.commit_with_policies(batch);
        if done.is_err() {
            self.adopted.remove(id);
        }
        done
    }

    /// Undoes an adoption. Returns the addresses that the pod had.
    fn release(&mut self, id: &str) -> Result<Vec<IpAddr>, Error> {
        let Some(pod) = self.adopted.remove(id) else { return Ok(Vec::new()) };
        let mut batch = Batch::new(TABLE);
        for (set, elements) in self.elements_of(&pod) {
            batch.delete_elements(&set, &elements);
        }
        self.commit_with_policies(batch)?;
        Ok(pod.addresses)
    }

    /// What the sets have of a pod that somebody else attached.
    fn elements_of(&self, pod: &Adopted) -> Vec<(String, Vec<Element>)> {
        let ranges = &self.shape.ranges;
        let inside = |address| ranges.iter().any(|r| r.pods.contains(address));
        let mut elements = Vec::new();
        // Pods of one bridge have one gateway, which is there for as long as one of them is.
        let shared = |gateway| self.adopted.values().any(|other| other.gateways.contains(gateway));
        for gateway in pod.gateways.iter().filter(|gateway| !shared(gateway)) {
            let own = Element::interval(*gateway, *gateway);
            elements.push((Family::of(*gateway).name(CLUSTER), own));
        }
        for address in &pod.addresses {
            let family = Family::of(*address);
            let own = Element::Key(octets(*address));
            elements.push((family.name(ADOPTED), vec![own]));
            elements.push((family.name(HAIRPIN), vec![ruleset::hairpin_element(*address)]));
            if !inside(*address) {
                elements.push((family.name(CLUSTER), Element::interval(*address, *address)));
            }
        }
        elements
    }

    /// Makes the policies exactly these; connections that exist go on.
    pub fn apply_policies(&mut self, table: PolicyTable) -> Result<(), Error> {
        let mut batch = Batch::new(TABLE);
        let after = self.policies.change(&mut batch, &table, &self.attached());
        batch.commit(&self.netfilter)?;
        self.policies = after;
        self.policy_table = Some(table);
        self.told(Awaited { policies: false, ..self.awaited })
    }

    /// After a takeover: lets new connections begin once everything is told that judges them.
    fn told(&mut self, awaited: Awaited) -> Result<(), Error> {
        let before = std::mem::replace(&mut self.awaited, awaited);
        let waits = |awaited: Awaited| awaited.services || awaited.policies;
        if !waits(before) || waits(awaited) {
            return Ok(());
        }
        let mut batch = Batch::new(TABLE);
        batch.flush_chain(PENDING);
        batch.commit(&self.netfilter)
    }

    /// Waits no longer for what nobody tells.
    pub fn stop_waiting(&mut self) -> Result<(), Error> {
        self.told(Awaited::default())
    }

    /// Addresses of the pods that policies may speak of.
    fn attached(&self) -> BTreeMap<String, Vec<IpAddr>> {
        let mut attached: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for pod in self.pods.values() {
            if let Some(member) = &pod.member {
                attached.entry(member.clone()).or_default().extend(pod.addresses());
            }
        }
        for pod in self.adopted.values() {
            attached.entry(pod.member.clone()).or_default().extend(&pod.addresses);
        }
        attached
    }

    /// Commits a batch of changes to the pods together with what follows for policies.
    fn commit_with_policies(&mut self, mut batch: Batch) -> Result<(), Error> {
        let after = self.policy_table.as_ref().map(|table| {
            let attached = self.attached();
            self.policies.change(&mut batch, table, &attached)
        });
        batch.commit(&self.netfilter)?;
        if let Some(after) = after {
            self.policies = after;
        }
        Ok(())
    }

    /// Gives the namespace an interface, an address and routes.
    pub fn attach(
        &mut self,
        request: AttachRequest,
        namespace: OwnedFd,
    ) -> Result<Attachment, Error> {
        check(&request)?;
        let inode = inode_of(&namespace)?;
        if let Some(pod) = self.pods.get(&request.id) {
            if pod.namespace == inode && pod.attachment.ifname == request.ifname {
                if request.anew {
                    let there = format!("the interface {} is there already", request.ifname);
                    return Err(Error::Invalid(there));
                }
                let attachment = self.told_of(&pod.attachment);
                self.name(&request.id, request.member)?;
                return Ok(attachment);
            }
            // The pod was started anew under the same name.
            self.detach(&request.id)?;
        }
        let address = match request.address {
            Some(address) if self.ipam.claim(address, &request.id) => address,
            Some(address) => {
                return Err(Error::Invalid(format!("the address {address} is not to be had")));
            }
            None => self.ipam.allocate(&request.id)?,
        };
        let bandwidth = request.bandwidth;
        let pod = self.pod(request, address, inode);
        let attachment = pod.attachment.clone();
        let link = self.connect_link(&pod, &namespace, bandwidth.ingress_bps);
        self.pods.insert(attachment.id.clone(), pod);
        let egress_bps = bandwidth.egress_bps;
        let connected =
            link.and_then(|()| self.connect_pod(&attachment, address, (&namespace, egress_bps)));
        match connected {
            Ok(()) => Ok(self.told_of(&attachment)),
            Err(error) => {
                let _ = self.detach(&attachment.id);
                Err(error)
            }
        }
    }

    /// Names a pod that was found without its name, for the policies.
    fn name(&mut self, id: &str, member: Option<String>) -> Result<(), Error> {
        let Some(pod) = self.pods.get_mut(id).filter(|pod| pod.member.is_none()) else {
            return Ok(());
        };
        if member.is_none() {
            return Ok(());
        }
        pod.member = member;
        self.commit_with_policies(Batch::new(TABLE))
    }

    fn connect_link(
        &mut self,
        pod: &Pod,
        namespace: &OwnedFd,
        ingress_bps: Option<u64>,
    ) -> Result<(), Error> {
        let (address, mac) = (pod.address, mac_of(pod.address));
        let index = self.veth_index(address);
        let label = Label {
            id: pod.attachment.id.clone(),
            ifname: pod.attachment.ifname.clone(),
            address,
            namespace: pod.namespace,
            member: pod.member.clone(),
        };
        let label = label.text();
        let name = format!("veth{:x}", u32::from(address));
        let mut requests = Requests::new();
        requests.create_veth(
            (&name, index, BRIDGE_INDEX),
            (&pod.attachment.ifname, mac, namespace.as_fd()),
            self.shape.mtu,
        );
        requests.set_alias(index, &label);
        for address in pod.addresses() {
            requests.add_neighbour(BRIDGE_INDEX, address, mac);
        }
        requests.add_forwarding(index, mac);
        if let Some(bps) = ingress_bps {
            requests.limit_rate(index, bps);
        }
        requests.set_up(index);
        self.route.execute(&requests)?;
        self.isolate(index)
    }

    fn connect_pod(
        &mut self,
        attachment: &Attachment,
        address: Ipv4Addr,
        (namespace, egress_bps): (&OwnedFd, Option<u64>),
    ) -> Result<(), Error> {
        let mut batch = Batch::new(TABLE);
        if let Some(pod) = self.pods.get(&attachment.id) {
            add_pod_elements(&mut batch, pod);
        }
        self.commit_with_policies(batch)?;
        let gateways = [Some(attachment.gateway), self.shape.gateway6()];
        let addresses = [Some(attachment.address), attachment.address6];
        let pairs: Vec<_> = addresses.into_iter().zip(gateways).collect();
        let pairs: Vec<_> = pairs.into_iter().filter_map(|(a, g)| Some((a?, g?))).collect();
        let mac = mac_of(self.shape.gateway);
        inside(namespace, || configure_pod(&attachment.ifname, &pairs, mac, egress_bps))?;
        self.await_forwarding(self.veth_index(address))
    }

    /// The kernel opens the bridge port, and with the first port the bridge itself, some time after
    /// the pod's end is up, on a work queue. Until then packets are dropped: a first connection
    /// would lose a second.
    fn await_forwarding(&self, index: u32) -> Result<(), Error> {
        let deadline = Instant::now() + FORWARDING_TIMEOUT;
        while !(self.link(index)?.forwarding && self.link(BRIDGE_INDEX)?.operational) {
            if Instant::now() > deadline {
                let late = io::Error::from(io::ErrorKind::TimedOut);
                return Err(Error::system("see the pod's link come up", late));
            }
            std::thread::sleep(FORWARDING_PAUSE);
        }
        // The states are visible before the work behind them is done. A change, even an empty one,
        // waits for the lock that the work is done under.
        let mut requests = Requests::new();
        requests.set_up(BRIDGE_INDEX);
        self.route.execute(&requests)
    }

    fn link(&self, index: u32) -> Result<Link, Error> {
        let mut requests = Requests::new();
        requests.get_link(index);
        let mut link = None;
        self.route.dump(&requests, |_, payload| link = read_link(payload))?;
        let absent = || io::Error::from_raw_os_error(libc::ENODEV);
        link.ok_or_else(|| Error::system("look at a link", absent()))
    }

    /// Locked ports came with Linux 5.18; without them a pod may lie about its link address, and
    /// gains nothing by it but to be dropped by the rules.
    fn isolate(&mut self, index: u32) -> Result<(), Error> {
        let isolate = |locked| {
            let mut requests = Requests::new();
            requests.isolate_port(index, locked);
            self.route.execute(&requests)
        };
        if self.lock_ports {
            match isolate(true) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::debug!(error = error.chain(), "bridge ports cannot be locked");
                    self.lock_ports = false;
                }
            }
        }
        let mut requests = Requests::new();
        requests.isolate_port(index, false);
        self.route.execute(&requests)
    }

    fn veth_index(&self, address: Ipv4Addr) -> u32 {
        VETH_INDEX + self.ipam.offset(address)
    }

    /// Takes the interface away. Not an error if there is none. Returns the addresses it had.
    pub fn detach(&mut self, id: &str) -> Result<Vec<IpAddr>, Error> {
        let Some(pod) = self.pods.remove(id) else {
            return self.release(id);
        };
        let result = self.disconnect_pod(&pod);
        self.ipam.release(pod.address);
        result.map(|()| pod.addresses().collect())
    }

    /// Undoes all of what connects a pod, or as much as was done; the first error is returned.
    fn disconnect_pod(&mut self, pod: &Pod) -> Result<(), Error> {
        // The link may be gone already, with the pod's namespace.
        let tolerated = [libc::ENODEV, libc::ENOENT, libc::ENXIO];
        let ignore_absent = |result: Result<(), Error>| match result {
            Err(e) if e.raw_os_error().is_some_and(|n| tolerated.contains(&n)) => Ok(()),
            other => other,
        };
        let link = {
            let mut requests = Requests::new();
            requests.delete_link(self.veth_index(pod.address));
            ignore_absent(self.route.execute(&requests))
        };
        let mut neighbour = Ok(());
        for address in pod.addresses() {
            let mut requests = Requests::new();
            requests.delete_neighbour(BRIDGE_INDEX, address);
            neighbour = neighbour.and(ignore_absent(self.route.execute(&requests)));
        }
        let mut batch = Batch::new(TABLE);
        for address in pod.addresses() {
            let family = Family::of(address);
            let own = [ruleset::pod_element(mac_of(pod.address), address)];
            batch.delete_elements(&family.name(PODS), &own);
            batch.delete_elements(&family.name(HAIRPIN), &[ruleset::hairpin_element(address)]);
        }
        let elements = ignore_absent(batch.commit(&self.netfilter));
        let policies = self.commit_with_policies(Batch::new(TABLE));
        link.and(neighbour).and(elements).and(policies)
    }

    pub fn attachments(&self) -> Vec<Attachment> {
        self.pods.values().map(|pod| self.told_of(&pod.attachment)).collect()
    }

    /// An attachment as others are told of it.
    fn told_of(&self, attachment: &Attachment) -> Attachment {
        match (self.shape.gateway6(), attachment.address6) {
            (Some(gateway), Some(address)) if self.shape.tell_ipv6_only => {
                Attachment { address, address6: None, gateway, ..attachment.clone() }
            }
            _ => attachment.clone(),
        }
    }

    /// The node's own addresses, as far as they are told of.
    pub fn gateways(&self) -> Vec<IpAddr> {
        match self.shape.gateway6() {
            Some(gateway) if self.shape.tell_ipv6_only => vec![gateway],
            _ => self.shape.ranges.iter().map(|ranges| ranges.gateway).collect(),
        }
    }

    pub fn namespace(&self) -> Result<OwnedFd, Error> {
        current_namespace()
    }

    /// The range of the addresses that are told of.
    pub fn cidr(&self) -> Cidr {
        let six = self.shape.ranges.iter().find(|ranges| ranges.gateway.is_ipv6());
        match six {
            Some(ranges) if self.shape.tell_ipv6_only => ranges.pods,
            _ => self.ipam.cidr(),
        }
    }

    /// Changes some of the services; what still leads to endpoints that are gone is forgotten.
    pub fn change_services(&mut self, change: ServiceChange) -> Result<(), Error> {
        let ranges = &self.shape.ranges;
        let inside = |address| {
            ranges.iter().any(|r| r.services.contains(address) || r.pods.contains(address))
        };
        let difference = services::difference(&self.services, &change, &self.balances, &inside);
        for batch in difference.batches {
            batch.commit(&self.netfilter)?;
        }
        self.balances.extend(difference.balances);
        for frontend in &change.gone {
            self.services.services.remove(frontend);
        }
        self.services.services.extend(change.changed);
        self.told(Awaited { services: false, ..self.awaited })?;
        self.forget_affinities(&difference.withdrawn)?;
        conntrack::forget(&self.netfilter, &difference.withdrawn, &difference.gained)
    }

    /// Makes the services exactly these.
    pub fn apply_services(&mut self, table: &ServiceTable) -> Result<(), Error> {
        self.change_services(self.services.change_to(table))
    }

    /// Clients that were given an endpoint which is gone get another one.
    fn forget_affinities(&self, withdrawn: &[Withdrawn]) -> Result<(), Error> {
        for family in Family::BOTH {
            let gone: BTreeSet<(Vec<u8>, Vec<u8>)> = withdrawn
                .iter()
                .filter(|w| w.sticky && Family::of(w.frontend.address) == family)
                .map(|w| (services::key(&w.frontend), services::target(&w.endpoint)))
                .collect();
            if gone.is_empty() {
                continue;
            }
            let map = family.name(AFFINITY);
            for (key, value) in nft::dump_elements(&self.netfilter, TABLE, &map)? {
                let frontend = key.get(family.bytes() as usize..).unwrap_or_default();
                if !gone.contains(&(frontend.to_vec(), value)) {
                    continue;
                }
                let mut batch = Batch::new(TABLE);
                batch.delete_elements(&map, &[Element::Key(key)]);
                match batch.commit(&self.netfilter) {
                    // Its time was up meanwhile.
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// The address ranges in use: the IPv6 ones may be missing.
    pub fn ranges(&self) -> Vec<Ranges> {
        self.shape.ranges.clone()
    }
}

fn add_pod_elements(batch: &mut Batch, pod: &Pod) {
    for address in pod.addresses() {
        let family = Family::of(address);
        let own = [ruleset::pod_element(mac_of(pod.address), address)];
        batch.add_elements(&family.name(PODS), &own);
        batch.add_elements(&family.name(HAIRPIN), &[ruleset::hairpin_element(address)]);
    }
}

/// Brings the loopback interface of a network namespace up.
pub fn raise_loopback(namespace: &OwnedFd) -> Result<(), Error> {
    inside(namespace, || {
        let mut requests = Requests::new();
        requests.set_up(LOOPBACK_INDEX);
        Socket::route()?.execute(&requests)
    })
}

/// The links in the namespace of the calling thread.
fn links() -> Result<Vec<Link>, Error> {
    let mut requests = Requests::new();
    requests.dump_links();
    let mut links = Vec::new();
    Socket::route()?.dump(&requests, |_, payload| links.extend(read_link(payload)))?;
    Ok(links)
}

fn check(request: &AttachRequest) -> Result<(), Error> {
    let AttachRequest { id, ifname, .. } = request;
    if id.is_empty() || id.len() > MAX_ID_BYTES {
        return Err(Error::Invalid(format!(
            "attachment id {id:?} must have 1 to {MAX_ID_BYTES} bytes"
        )));
    }
    // `dev_valid_name` in the kernel.
    let good = !ifname.is_empty()
        && ifname.len() < libc::IFNAMSIZ
        && ifname != "."
        && ifname != ".."
        && !ifname.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0');
    if good {
        Ok(())
    } else {
        Err(Error::Invalid(format!("{ifname:?} is not a name for an interface")))
    }
}

fn inode_of(namespace: &OwnedFd) -> Result<u64, Error> {
    let duplicate = namespace.try_clone().map(File::from);
    duplicate
        .and_then(|file| file.metadata())
        .map(|metadata| metadata.ino())
        .map_err(|e| Error::system("look at the pod's network namespace", e))
}

/// The pod's side, run inside its namespace: each address with its gateway.
fn configure_pod(
    ifname: &str,
    pairs: &[(IpAddr, IpAddr)],
    mac: Mac,
    egress_bps: Option<u64>,
) -> Result<(), Error> {
    let index = index_of(ifname)?;
    if pairs.iter().any(|(address, _)| address.is_ipv6()) {
        // New namespaces may inherit a host's refusal of IPv6. Without it the address below fails.
        let _ = write_sysctl("net/ipv6/conf/all/disable_ipv6", "0");
    }
    let mut requests = Requests::new();
    requests.set_up(LOOPBACK_INDEX);
    for (address, _) in pairs {
        requests.add_address(index, *address, if address.is_ipv4() { 32 } else { 128 });
    }
    if let Some(bps) = egress_bps {
        requests.limit_rate(index, bps);
    }
    requests.set_up(index);
    for (address, gateway) in pairs {
        requests.add_neighbour(index, *gateway, mac);
        requests.add_link_route(index, *gateway, *address);
        requests.add_default_route(index, *gateway);
        add_services_route(&mut requests, (ifname, index), *gateway, *address);
    }
    Socket::route()?.execute(&requests)?;
    await_addresses6(pairs.iter().map(|(address, _)| *address));
    // Both are conveniences, and what container engines give: low ports and ping for everyone.
    let _ = write_sysctl("net/ipv4/ip_unprivileged_port_start", "0");
    let _ = write_sysctl("net/ipv4/ping_group_range", "0 65535")
        .or_else(|_| write_sysctl("net/ipv4/ping_group_range", "0 0"));
    Ok(())
}

/// How long the kernel may take for the routes of new addresses. It has taken the addresses, so this is no failure.
const ROUTES_PATIENCE: Duration = Duration::from_secs(1);
const ROUTES_PAUSE: Duration = Duration::from_millis(1);
/// `RTF_LOCAL` (linux/ipv6_route.h).
const ROUTE_LOCAL: u32 = 0x8000_0000;

/// Waits until IPv6 addresses receive: the kernel adds their routes after it has answered, from a queue of work
/// that a busy machine comes to late. Until then what is sent to them is unreachable.
fn await_addresses6(addresses: impl Iterator<Item = IpAddr>) {
    let mut missing: Vec<IpAddr> = addresses.filter(IpAddr::is_ipv6).collect();
    let deadline = Instant::now() + ROUTES_PATIENCE;
    while !missing.is_empty() && Instant::now() < deadline {
        let Ok(routes) = fs::read_to_string("/proc/thread-self/net/ipv6_route") else { return };
        missing.retain(|address| !has_local_route(&routes, *address));
        if !missing.is_empty() {
            std::thread::sleep(ROUTES_PAUSE);
        }
    }
}

/// Whether a table of routes (`/proc/net/ipv6_route`: destination and flags are the first and the ninth column) has
/// the one by which an address receives.
fn has_local_route(routes: &str, address: IpAddr) -> bool {
    let hex: String = octets(address).iter().map(|byte| format!("{byte:02x}")).collect();
    routes.lines().any(|line| {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        let flags = columns.get(8).and_then(|flags| u32::from_str_radix(flags, 16).ok());
        columns.first() == Some(&hex.as_str()) && flags.is_some_and(|f| f & ROUTE_LOCAL != 0)
    })
}

fn index_of(ifname: &str) -> Result<u32, Error> {
    let links = links()?;
    let interface = links.iter().find(|link| link.name == ifname);
    interface.map(|link| link.index).ok_or_else(|| {
        let missing = io::Error::from_raw_os_error(libc::ENODEV);
        Error::system(format!("find interface {ifname} in the pod"), missing)
    })
}

/// The way to services at loopback addresses, which a pod would take for its own.
fn add_services_route(
    requests: &mut Requests,
    (ifname, index): (&str, u32),
    gateway: IpAddr,
    address: IpAddr,
) {
    // Answers from there come in here; the node's rules let nothing else with loopback addresses through.
    let localnet = format!("net/ipv4/conf/{ifname}/route_localnet");
    if address.is_ipv4() && gateway.is_ipv4() && write_sysctl(&localnet, "1").is_ok() {
        let services = (LOOPBACK_SERVICES, LOOPBACK_SERVICES_PREFIX);
        requests.add_loopback_route(index, services, gateway, address);
    }
}

/// Leads a pod that somebody else attached to services at loopback addresses ([`LOOPBACK_SERVICES`]), by a gateway
/// that is in the node's network.
pub fn lead_to_loopback_services(
    namespace: &OwnedFd,
    ifname: &str,
    gateway: IpAddr,
    address: IpAddr,
) -> Result<(), Error> {
    inside(namespace, || {
        let mut requests = Requests::new();
        add_services_route(&mut requests, (ifname, index_of(ifname)?), gateway, address);
        Socket::route()?.execute(&requests)
    })
}

fn write_sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/{name}");
    fs::write(&path, value).map_err(|e| Error::system(format!("write {value:?} to {path}"), e))
}

fn set_node_sysctls() -> Result<(), Error> {
    // ip_forward first: changing it resets others.
    write_sysctl("net/ipv4/ip_forward", "1")?;
    for scope in ["all", "default"] {
        write_sysctl(&format!("net/ipv4/conf/{scope}/send_redirects"), "0")?;
        write_sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
    }
    // Otherwise the kernel answers pings to every address in the world; the gateway does better.
    write_sysctl("net/ipv4/icmp_echo_ignore_all", "1")?;
    // Host ports on loopback lead from there to pods; the rules keep pods out of it.
    write_sysctl("net/ipv4/conf/all/route_localnet", "1")?;
    let _ = write_sysctl("net/ipv4/ip_unprivileged_port_start", "0");
    // As kube-proxy sets them (`--conntrack-tcp-timeout-established`, `--conntrack-tcp-timeout-close-wait`): idle
    // connections are remembered for a day, half-closed ones for an hour.
    let _ = write_sysctl("net/netfilter/nf_conntrack_tcp_timeout_established", "86400");
    let _ = write_sysctl("net/netfilter/nf_conntrack_tcp_timeout_close_wait", "3600");
    match write_sysctl("net/bridge/bridge-nf-call-iptables", "0") {
        Err(Error::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn set_node_sysctls6() -> Result<(), Error> {
    write_sysctl("net/ipv6/conf/all/disable_ipv6", "0")?;
    write_sysctl("net/ipv6/conf/all/forwarding", "1")?;
    let _ = write_sysctl("net/ipv6/icmp/echo_ignore_all", "1");
    match write_sysctl("net/bridge/bridge-nf-call-ip6tables", "0") {
        Err(Error::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_tell_whether_an_address_receives() {
        let zeros = "00000000000000000000000000000000";
        let line = |address: &str, prefix: &str, flags: &str| {
            format!(
                "{address} {prefix} {zeros} 00 {zeros} 00000000 00000002 00000000 {flags} eth0\n"
            )
        };
        let own = "fd000010004200000000000000000002";
        let cases = [
            (line(own, "80", "80200001"), true),
            (line(own, "80", "00000001"), false),
            (line(zeros, "00", "00000003") + &line(own, "80", "80200001"), true),
            (line("fd000010004200000000000000000003", "80", "80200001"), false),
            (String::new(), false),
        ];
        for (routes, want) in cases {
            assert_eq!(
                has_local_route(&routes, "fd00:10:42::2".parse().unwrap()),
                want,
                "{routes}"
            );
        }
    }

    #[test]
    fn labels_fit_into_an_alias() {
        let label = |member: usize| Label {
            id: "f".repeat(64),
            ifname: "eth0".into(),
            address: Ipv4Addr::BROADCAST,
            namespace: u64::from(u32::MAX),
            member: Some("m".repeat(member)),
        };
        for (member, kept) in [(0, true), (100, true), (63 + 1 + 253, false)] {
            let text = label(member).text();
            assert!(text.len() <= ALIAS_BYTES_MAX, "{text}");
            let found: Label = serde_json::from_str(&text).unwrap();
            assert_eq!((found.id.len(), found.member.is_some()), (64, kept), "{text}");
        }
        let old = r#"{"id":"a","ifname":"eth0","address":"10.0.0.1","namespace":7,"member":"n/p"}"#;
        let found: Label = serde_json::from_str(old).unwrap();
        assert_eq!((found.namespace, found.member.as_deref()), (7, Some("n/p")));
    }
}
