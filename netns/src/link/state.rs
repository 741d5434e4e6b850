//! Links as the kernel lists them (`rtnetlink(7)`, `if_link.h`).

use crate::netlink::{attributes, u32_at};

const IF_OPER_UP: u8 = 6;
const BR_STATE_FORWARDING: u8 = 3;
const IFLA_BRPORT_STATE: u16 = 1;

/// A link as the kernel lists it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    pub alias: Option<String>,
    /// In RFC 2863's sense.
    pub operational: bool,
    /// A bridge port through which packets pass.
    pub forwarding: bool,
}

/// Reads the payload of an RTM_NEWLINK.
pub(crate) fn read_link(payload: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: u32_at(payload, 4)?,
        name: String::new(),
        alias: None,
        operational: false,
        forwarding: false,
    };
    let text = |value: &[u8]| String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_OPERSTATE => link.operational = value == [IF_OPER_UP],
            libc::IFLA_LINKINFO => {
                let state = nested(value, libc::IFLA_INFO_SLAVE_DATA)
                    .and_then(|port| nested(port, IFLA_BRPORT_STATE));
                link.forwarding = state == Some(&[BR_STATE_FORWARDING]);
            }
            libc::IFLA_IFALIAS => link.alias = Some(text(value)),
            _ => {}
        }
    }
    Some(link)
}

fn nested(nest: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(nest).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}
