//! Links, addresses, routes and neighbours: `rtnetlink(7)`.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::Error;
use crate::family::octets;
use crate::netlink::{Requests, Socket};

mod state;

pub(crate) use state::{Link, read_link};

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

const CREATE: i32 = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
const REPLACE: i32 = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
const CHANGE: i32 = libc::NLM_F_ACK;
const APPEND: i32 = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_APPEND;
const UP: u32 = libc::IFF_UP as u32;

// if_link.h: not in the libc crate.
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_MCAST_FLOOD: u16 = 27;
const IFLA_BRPORT_BCAST_FLOOD: u16 = 30;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BRPORT_LOCKED: u16 = 39;
// pkt_sched.h and rtnetlink.h.
const TC_ROOT: u32 = u32::MAX;
const TC_LINKLAYER_ETHERNET: u8 = 1;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const IFLA_BR_FORWARD_DELAY: u16 = 1;
const IFLA_BR_STP_STATE: u16 = 5;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;

/// The locally administered address derived from an IPv4 address; one address, one link address,
/// so that neighbour entries can be permanent.
pub(crate) fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// `0a:58:…` as text.
pub(crate) fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

impl Requests {
    /// A bridge with a fixed index and link address, up.
    pub fn create_bridge(&mut self, name: &str, index: u32, mac: Mac, mtu: u32) {
        let header = link_header(index, UP, UP);
        self.push("create the bridge", libc::RTM_NEWLINK, CREATE, &header, |a| {
            a.string(libc::IFLA_IFNAME, name)
                .bytes(libc::IFLA_ADDRESS, &mac)
                .u32(libc::IFLA_MTU, mtu)
                .nest(libc::IFLA_LINKINFO, |a| {
                    a.string(libc::IFLA_INFO_KIND, "bridge");
                    a.nest(libc::IFLA_INFO_DATA, |a| {
                        a.u32(IFLA_BR_FORWARD_DELAY, 0)
                            .u32(IFLA_BR_STP_STATE, 0)
                            .flag(IFLA_BR_MCAST_SNOOPING, false);
                    });
                });
        });
    }

    /// A veth pair: this end a port of `bridge`, the other end `peer_name` in `namespace`.
    pub fn create_veth(
        &mut self,
        (name, index, bridge): (&str, u32, u32),
        (peer_name, peer_mac, namespace): (&str, Mac, BorrowedFd<'_>),
        mtu: u32,
    ) {
        let header = link_header(index, 0, 0);
        self.push("create the veth pair", libc::RTM_NEWLINK, CREATE, &header, |a| {
            a.string(libc::IFLA_IFNAME, name)
                .u32(libc::IFLA_MTU, mtu)
                .u32(libc::IFLA_MASTER, bridge)
                .nest(libc::IFLA_LINKINFO, |a| {
                    a.string(libc::IFLA_INFO_KIND, "veth");
                    a.nest(libc::IFLA_INFO_DATA, |a| {
                        a.nest_after(VETH_INFO_PEER, &[0; 16], |a| {
                            a.string(libc::IFLA_IFNAME, peer_name)
                                .bytes(libc::IFLA_ADDRESS, &peer_mac)
                                .u32(libc::IFLA_MTU, mtu)
                                .u32(libc::IFLA_NET_NS_FD, namespace.as_raw_fd() as u32);
                        });
                    });
                });
        });
    }

    /// Makes a bridge port talk to the bridge alone, never to other ports: every packet between
    /// pods is routed. With `locked`, frames from other link addresses than the static one are
    /// dropped.
    pub fn isolate_port(&mut self, index: u32, locked: bool) {
        let mut header = link_header(index, 0, 0);
        header[0] = libc::AF_BRIDGE as u8;
        self.push("isolate the bridge port", libc::RTM_SETLINK, CHANGE, &header, |a| {
            a.nest(libc::IFLA_PROTINFO, |a| {
                a.flag(IFLA_BRPORT_LEARNING, false)
                    .flag(IFLA_BRPORT_UNICAST_FLOOD, false)
                    .flag(IFLA_BRPORT_MCAST_FLOOD, false)
                    .flag(IFLA_BRPORT_BCAST_FLOOD, false)
                    .flag(IFLA_BRPORT_ISOLATED, true);
                if locked {
                    a.flag(IFLA_BRPORT_LOCKED, true);
                }
            });
        });
    }

    /// Notes a text on a link; it lives as long as the link.
    pub fn set_alias(&mut self, index: u32, alias: &str) {
        let header = link_header(index, 0, 0);
        self.push("label the veth", libc::RTM_SETLINK, CHANGE, &header, |a| {
            a.bytes(libc::IFLA_IFALIAS, alias.as_bytes());
        });
    }

    /// Brings a link up.
    pub fn set_up(&mut self, index: u32) {
        let header = link_header(index, UP, UP);
        self.push("bring a link up", libc::RTM_NEWLINK, CHANGE, &header, |_| {});
    }

    /// Removes a link, and with a veth its peer.
    pub fn delete_link(&mut self, index: u32) {
        let header = link_header(index, 0, 0);
        self.push("remove a link", libc::RTM_DELLINK, CHANGE, &header, |_| {});
    }

    /// Lists the links; read the answers with [`read_link`].
    pub fn dump_links(&mut self) {
        let header = link_header(0, 0, 0);
        self.push("list links", libc::RTM_GETLINK, libc::NLM_F_DUMP, &header, |_| {});
    }

    /// Asks for one link; read the answer with [`read_link`].
    pub fn get_link(&mut self, index: u32) {
        let header = link_header(index, 0, 0);
        self.push("look at a link", libc::RTM_GETLINK, CHANGE, &header, |_| {});
    }

    /// Lets a link send no more than so many bits a second (`tc-tbf(8)`), with bursts of a tenth of a
    /// second.
    pub fn limit_rate(&mut self, index: u32, bits_per_s: u64) {
        let bytes_per_s = bits_per_s / 8;
        // The largest packets are those that segmentation offload makes.
        let burst = (bytes_per_s / 10).clamp(128 << 10, 64 << 20) as u32;
        let limit = burst.saturating_add((bytes_per_s / 40).min(64 << 20) as u32);
        let mut header = [0; 20];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[12..16].copy_from_slice(&TC_ROOT.to_ne_bytes());
        // `struct tc_tbf_qopt`: rate, peak rate, limit, buffer, mtu.
        let mut options = [0; 36];
        options[1] = TC_LINKLAYER_ETHERNET;
        let rate = u32::try_from(bytes_per_s).unwrap_or(u32::MAX);
        options[8..12].copy_from_slice(&rate.to_ne_bytes());
        options[24..28].copy_from_slice(&limit.to_ne_bytes());
        self.push("limit a link's rate", libc::RTM_NEWQDISC, REPLACE, &header, |a| {
            a.string(TCA_KIND, "tbf").nest(TCA_OPTIONS, |a| {
                a.bytes(TCA_TBF_PARMS, &options).u32(TCA_TBF_BURST, burst);
                if u32::try_from(bytes_per_s).is_err() {
                    a.bytes(TCA_TBF_RATE64, &bytes_per_s.to_ne_bytes());
                }
            });
        });
    }

    /// Gives a link an address, to be used at once: duplicates cannot be here.
    pub fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) {
        let mut header = [0; 8];
        header[0] = family_of(address) as u8;
        header[1] = prefix;
        header[2] = if address.is_ipv6() { libc::IFA_F_NODAD as u8 } else { 0 };
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let octets = octets(address);
        self.push("add an address", libc::RTM_NEWADDR, REPLACE, &header, |a| {
            a.bytes(libc::IFA_LOCAL, &octets).bytes(libc::IFA_ADDRESS, &octets);
        });
    }

    /// A permanent neighbour: no ARP for it, and no ARP can change it.
    pub fn add_neighbour(&mut self, index: u32, address: IpAddr, mac: Mac) {
        let header = neighbour_header(family_of(address), index, libc::NUD_PERMANENT, 0);
        self.push("add a neighbour", libc::RTM_NEWNEIGH, REPLACE, &header, |a| {
            a.bytes(libc::NDA_DST, &octets(address)).bytes(libc::NDA_LLADDR, &mac);
        });
    }

    /// Removes a neighbour.
    pub fn delete_neighbour(&mut self, index: u32, address: IpAddr) {
        let header = neighbour_header(family_of(address), index, libc::NUD_PERMANENT, 0);
        self.push("remove a neighbour", libc::RTM_DELNEIGH, CHANGE, &header, |a| {
            a.bytes(libc::NDA_DST, &octets(address));
        });
    }

    /// Tells the bridge behind which port a link address is.
    pub fn add_forwarding(&mut self, port: u32, mac: Mac) {
        // In a bridge "permanent" would mean an address of the bridge itself.
        let state = libc::NUD_NOARP;
        let header = neighbour_header(libc::AF_BRIDGE, port, state, libc::NTF_MASTER);
        self.push("add a forwarding entry", libc::RTM_NEWNEIGH, REPLACE, &header, |a| {
            a.bytes(libc::NDA_LLADDR, &mac);
        });
    }

    /// A host route without a next hop.
    pub fn add_link_route(&mut self, index: u32, destination: IpAddr, source: IpAddr) {
        let bits = (octets(destination).len() * 8) as u8;
        let header = route_header(destination, bits, libc::RT_SCOPE_LINK, libc::RTN_UNICAST);
        self.push("add the gateway route", libc::RTM_NEWROUTE, APPEND, &header, |a| {
            a.bytes(libc::RTA_DST, &octets(destination))
                .bytes(libc::RTA_PREFSRC, &octets(source))
                .u32(libc::RTA_OIF, index);
        });
    }

    /// The default route.
    pub fn add_default_route(&mut self, index: u32, gateway: IpAddr) {
        let header = route_header(gateway, 0, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST);
        self.push("add the default route", libc::RTM_NEWROUTE, APPEND, &header, |a| {
            a.bytes(libc::RTA_GATEWAY, &octets(gateway)).u32(libc::RTA_OIF, index);
        });
    }

    /// What a host would keep for itself, its own loopback addresses, goes to the gateway instead: for
    /// this the route has to be in table local, which is looked at first.
    pub fn add_loopback_route(
        &mut self,
        index: u32,
        (network, prefix): (Ipv4Addr, u8),
        gateway: IpAddr,
        source: IpAddr,
    ) {
        let scope = libc::RT_SCOPE_UNIVERSE;
        let mut header = route_header(gateway, prefix, scope, libc::RTN_UNICAST);
        header[4] = libc::RT_TABLE_LOCAL;
        self.push(
            "add the route to loopback services",
            libc::RTM_NEWROUTE,
            REPLACE,
            &header,
            |a| {
                a.bytes(libc::RTA_DST, &network.octets())
                    .bytes(libc::RTA_GATEWAY, &octets(gateway))
                    .bytes(libc::RTA_PREFSRC, &octets(source))
                    .u32(libc::RTA_OIF, index);
            },
        );
    }

    /// Everything without a better route is delivered locally (`ip route add local default`), in
    /// table main: in table local it would come before the routes to pods.
    pub fn add_local_default(&mut self, index: u32, source: IpAddr) {
        let header = route_header(source, 0, libc::RT_SCOPE_HOST, libc::RTN_LOCAL);
        self.push("add the local default route", libc::RTM_NEWROUTE, APPEND, &header, |a| {
            a.u32(libc::RTA_OIF, index).bytes(libc::RTA_PREFSRC, &octets(source));
        });
    }
}

/// Whether a route says that an address, of the link `index` if that is not 0, is this namespace's own
/// (`ip route get`).
pub(crate) fn is_own(socket: &Socket, address: IpAddr, index: u32) -> Result<bool, Error> {
    let bytes = octets(address);
    let header = route_header(address, (bytes.len() * 8) as u8, 0, 0);
    let mut requests = Requests::new();
    requests.push("find a route", libc::RTM_GETROUTE, libc::NLM_F_ACK, &header, |a| {
        a.bytes(libc::RTA_DST, &bytes);
        if index != 0 {
            a.u32(libc::RTA_OIF, index);
        }
    });
    let mut own = false;
    // The type's place in the header is that of `route_header`.
    socket.dump(&requests, |_, route| own |= route.get(7) == Some(&libc::RTN_LOCAL))?;
    Ok(own)
}

fn family_of(address: IpAddr) -> i32 {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

fn neighbour_header(family: i32, index: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family as u8;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

fn route_header(of: IpAddr, prefix: u8, scope: u8, kind: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family_of(of) as u8;
    header[1] = prefix;
    header[4] = libc::RT_TABLE_MAIN;
    header[5] = libc::RTPROT_STATIC;
    header[6] = scope;
    header[7] = kind;
    header
}

/// The IPv4 address in `address`; callers have checked the family.
pub(crate) fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(v6) => v6.to_ipv4_mapped(),
    }
}
