//! The node network as the kernel has it: bridge, pods, rules. Lives on the node thread; every
//! call here blocks for as long as the kernel takes and no longer.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::ipam::Ipam;
use crate::link::{Link, Mac, mac_of, mac_text, read_link};
use crate::netlink::{Requests, Socket};
use crate::nft::Batch;
use crate::ruleset::{self, HAIRPIN, PODS, Parameters, TABLE};
use crate::services::{self, ServiceTable, Withdrawn};
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
    /// Address of the pod; its only prefix is /32.
    pub address: IpAddr,
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
}

/// Fixed properties of the network.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub pod_cidr: Cidr,
    pub service_cidr: Cidr,
    pub gateway: Ipv4Addr,
    pub mtu: u32,
}

/// Noted on the host's end of the veth, so that a new node process finds what an old one made.
#[derive(Serialize, Deserialize)]
struct Label {
    id: String,
    ifname: String,
    address: Ipv4Addr,
    namespace: u64,
}

struct Pod {
    attachment: Attachment,
    address: Ipv4Addr,
    namespace: u64,
}

/// The state of the node thread.
pub(crate) struct Network {
    shape: Shape,
    route: Socket,
    netfilter: Socket,
    ipam: Ipam,
    pods: BTreeMap<String, Pod>,
    services: ServiceTable,
    lock_ports: bool,
}

impl Network {
    /// Sets the namespace of the calling thread up, or takes over what an earlier life left there.
    pub fn create(shape: Shape) -> Result<Self, Error> {
        let mut network = Self {
            ipam: Ipam::new(shape.pod_cidr, IpAddr::V4(shape.gateway))?,
            route: Socket::route()?,
            netfilter: Socket::netfilter()?,
            pods: BTreeMap::new(),
            services: ServiceTable::default(),
            lock_ports: true,
            shape,
        };
        let links = links()?;
        set_node_sysctls()?;
        if links.iter().any(|link| link.index == BRIDGE_INDEX) {
            network.recover(&links);
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
        requests.add_address(BRIDGE_INDEX, gateway, self.shape.pod_cidr.prefix());
        requests.add_local_default(LOOPBACK_INDEX, gateway);
        self.route.execute(&requests)
    }

    fn recover(&mut self, links: &[Link]) {
        for link in links {
            let label = link.alias.as_deref().map(serde_json::from_str::<Label>);
            if let Some(Ok(label)) = label
                && self.ipam.claim(label.address, &label.id)
            {
                let pod = self.pod(label.id, label.ifname, label.address, label.namespace);
                self.pods.insert(pod.attachment.id.clone(), pod);
            }
        }
    }

    fn pod(&self, id: String, ifname: String, address: Ipv4Addr, namespace: u64) -> Pod {
        Pod {
            attachment: Attachment {
                id,
                ifname,
                address: IpAddr::V4(address),
                gateway: IpAddr::V4(self.shape.gateway),
                mac: mac_text(mac_of(address)),
                mtu: self.shape.mtu,
            },
            address,
            namespace,
        }
    }

    /// Installs the fixed rules, replacing any, with the elements of the pods that are known.
    pub fn install_rules(&mut self, gateway_port: u16) -> Result<(), Error> {
        let mut batch = ruleset::base(&Parameters {
            bridge_index: BRIDGE_INDEX,
            pod_cidr: self.shape.pod_cidr,
            service_cidr: self.shape.service_cidr,
            gateway: self.shape.gateway,
            gateway_port,
        });
        for pod in self.pods.values() {
            add_pod_elements(&mut batch, pod.address);
        }
        self.services = ServiceTable::default();
        batch.commit(&self.netfilter)
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
                return Ok(pod.attachment.clone());
            }
            // The pod was started anew under the same name.
            self.detach(&request.id)?;
        }
        let address = self.ipam.allocate(&request.id)?;
        let pod = self.pod(request.id, request.ifname, address, inode);
        match self.connect_pod(&pod, &namespace) {
            Ok(()) => {
                let attachment = pod.attachment.clone();
                self.pods.insert(attachment.id.clone(), pod);
                Ok(attachment)
            }
            Err(error) => {
                let _ = self.disconnect_pod(address);
                self.ipam.release(address);
                Err(error)
            }
        }
    }

    fn connect_pod(&mut self, pod: &Pod, namespace: &OwnedFd) -> Result<(), Error> {
        let Shape { gateway, mtu, .. } = self.shape;
        let (address, mac) = (pod.address, mac_of(pod.address));
        let index = self.veth_index(address);
        let label = Label {
            id: pod.attachment.id.clone(),
            ifname: pod.attachment.ifname.clone(),
            address,
            namespace: pod.namespace,
        };
        let label = serde_json::to_string(&label).expect("a label is plain data");
        let name = format!("veth{:x}", u32::from(address));
        let mut requests = Requests::new();
        requests.create_veth(
            (&name, index, BRIDGE_INDEX),
            (&pod.attachment.ifname, mac, namespace.as_fd()),
            mtu,
        );
        requests.set_alias(index, &label);
        requests.add_neighbour(BRIDGE_INDEX, address, mac);
        requests.add_forwarding(index, mac);
        requests.set_up(index);
        self.route.execute(&requests)?;
        self.isolate(index)?;
        let mut batch = Batch::new(TABLE);
        add_pod_elements(&mut batch, address);
        batch.commit(&self.netfilter)?;
        let ifname = &pod.attachment.ifname;
        inside(namespace, || configure_pod(ifname, address, gateway, mac_of(gateway)))?;
        self.await_forwarding(index)
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

    /// Takes the interface away. Not an error if there is none. Returns the address it had.
    pub fn detach(&mut self, id: &str) -> Result<Option<Ipv4Addr>, Error> {
        let Some(pod) = self.pods.remove(id) else {
            return Ok(None);
        };
        let result = self.disconnect_pod(pod.address);
        self.ipam.release(pod.address);
        result.map(|()| Some(pod.address))
    }

    /// Undoes all of [`Self::connect_pod`], or as much as was done; the first error is returned.
    fn disconnect_pod(&self, address: Ipv4Addr) -> Result<(), Error> {
        // The link may be gone already, with the pod's namespace.
        let tolerated = [libc::ENODEV, libc::ENOENT, libc::ENXIO];
        let ignore_absent = |result: Result<(), Error>| match result {
            Err(e) if e.raw_os_error().is_some_and(|n| tolerated.contains(&n)) => Ok(()),
            other => other,
        };
        let link = {
            let mut requests = Requests::new();
            requests.delete_link(self.veth_index(address));
            ignore_absent(self.route.execute(&requests))
        };
        let neighbour = {
            let mut requests = Requests::new();
            requests.delete_neighbour(BRIDGE_INDEX, address);
            ignore_absent(self.route.execute(&requests))
        };
        let mut batch = Batch::new(TABLE);
        batch.delete_elements(PODS, &[ruleset::pod_element(mac_of(address), address)]);
        batch.delete_elements(HAIRPIN, &[ruleset::hairpin_element(address)]);
        let elements = ignore_absent(batch.commit(&self.netfilter));
        link.and(neighbour).and(elements)
    }

    pub fn attachments(&self) -> Vec<Attachment> {
        let pods = self.pods.values();
        pods.map(|pod| pod.attachment.clone()).collect()
    }

    pub fn namespace(&self) -> Result<OwnedFd, Error> {
        current_namespace()
    }

    pub fn cidr(&self) -> Cidr {
        self.ipam.cidr()
    }

    /// Changes the services by difference. Returns what flows must be forgotten.
    pub fn apply_services(&mut self, table: ServiceTable) -> Result<Vec<Withdrawn>, Error> {
        let difference = services::difference(&self.services, &table);
        for batch in difference.batches {
            batch.commit(&self.netfilter)?;
        }
        self.services = table;
        Ok(difference.withdrawn)
    }
}

fn add_pod_elements(batch: &mut Batch, address: Ipv4Addr) {
    batch.add_elements(PODS, &[ruleset::pod_element(mac_of(address), address)]);
    batch.add_elements(HAIRPIN, &[ruleset::hairpin_element(address)]);
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
    let AttachRequest { id, ifname } = request;
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

/// The pod's side, run inside its namespace.
fn configure_pod(
    ifname: &str,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
    mac: Mac,
) -> Result<(), Error> {
    let links = links()?;
    let interface = links.iter().find(|link| link.name == ifname);
    let index = interface.map(|link| link.index).ok_or_else(|| {
        let missing = io::Error::from_raw_os_error(libc::ENODEV);
        Error::system(format!("find interface {ifname} in the pod"), missing)
    })?;
    let mut requests = Requests::new();
    requests.set_up(LOOPBACK_INDEX);
    requests.add_address(index, address, 32);
    requests.set_up(index);
    requests.add_neighbour(index, gateway, mac);
    requests.add_link_route(index, gateway, address);
    requests.add_default_route(index, gateway);
    Socket::route()?.execute(&requests)?;
    // Both are conveniences, and what container engines give: low ports and ping for everyone.
    let _ = write_sysctl("net/ipv4/ip_unprivileged_port_start", "0");
    let _ = write_sysctl("net/ipv4/ping_group_range", "0 65535")
        .or_else(|_| write_sysctl("net/ipv4/ping_group_range", "0 0"));
    Ok(())
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
    let _ = write_sysctl("net/ipv4/ip_unprivileged_port_start", "0");
    match write_sysctl("net/bridge/bridge-nf-call-iptables", "0") {
        Err(Error::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
