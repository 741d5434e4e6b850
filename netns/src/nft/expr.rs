//! Rules: sequences of expressions over sixteen 32-bit registers.

use crate::family::Family;
use crate::netlink::Attributes;
use crate::nft::set::{DATA_VERDICT, VERDICT_CHAIN, VERDICT_CODE};

const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const REGISTER_VERDICT: u32 = 0;
const DATA_VALUE: u16 = 1;
const QUEUE_BYPASS: u16 = 1;

pub(super) const JUMP: i32 = -3;
pub(super) const GOTO: i32 = -4;
const RETURN: i32 = -5;

/// One of the 32-bit registers (`NFT_REG32_00` + n); wider values take the following ones too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register(pub u8);

impl Register {
    fn number(self) -> u32 {
        u32::from(self.0) + 8
    }

    /// The register so many after this one.
    pub fn after(self, registers: u8) -> Self {
        Self(self.0 + registers)
    }
}

/// First register, for rules that need one only.
pub(crate) const R0: Register = Register(0);

/// `enum nft_meta_keys`.
#[derive(Clone, Copy)]
pub(crate) enum Meta {
    Mark = 3,
    InputIndex = 4,
    NetworkProtocol = 15,
    TransportProtocol = 16,
}

/// `enum nft_payload_bases`.
#[derive(Clone, Copy)]
pub(crate) enum Base {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// `enum nft_cmp_ops`, the two in use.
#[derive(Clone, Copy)]
pub(crate) enum Compare {
    Equal = 0,
    NotEqual = 1,
}

/// `enum nft_reject_types` with their codes.
#[derive(Clone, Copy)]
pub(crate) enum Reject {
    TcpReset,
    PortUnreachable,
    HostUnreachable,
}

/// A rule under construction. Expressions run in the order of the calls; the first that does not
/// match ends the rule.
#[derive(Default)]
pub(crate) struct Rule {
    bytes: Vec<u8>,
}

impl Rule {
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn write(&self, a: &mut Attributes) {
        a.raw(&self.bytes);
    }

    fn expression(mut self, name: &str, write: impl FnOnce(&mut Attributes)) -> Self {
        Attributes::of(&mut self.bytes).nest(LIST_ELEMENT, |a| {
            a.string(EXPRESSION_NAME, name);
            a.nest(EXPRESSION_DATA, write);
        });
        self
    }

    pub fn meta(self, key: Meta, to: Register) -> Self {
        self.expression("meta", |a| {
            a.be32(1, to.number()).be32(2, key as u32);
        })
    }

    pub fn payload(self, base: Base, offset: u32, length: u32, to: Register) -> Self {
        self.expression("payload", |a| {
            a.be32(1, to.number()).be32(2, base as u32).be32(3, offset).be32(4, length);
        })
    }

    pub fn source(self, family: Family, to: Register) -> Self {
        self.payload(Base::Network, family.source_offset(), family.bytes(), to)
    }

    pub fn destination(self, family: Family, to: Register) -> Self {
        self.payload(Base::Network, family.destination_offset(), family.bytes(), to)
    }

    pub fn link_source(self, to: Register) -> Self {
        self.payload(Base::Link, 6, 6, to)
    }

    pub fn destination_port(self, to: Register) -> Self {
        self.payload(Base::Transport, 2, 2, to)
    }

    pub fn compare(self, register: Register, how: Compare, value: &[u8]) -> Self {
        self.expression("cmp", |a| {
            a.be32(1, register.number()).be32(2, how as u32);
            a.nest(3, |a| {
                a.bytes(DATA_VALUE, value);
            });
        })
    }

    /// `register & mask`, in place.
    pub fn mask(self, register: Register, mask: &[u8]) -> Self {
        self.expression("bitwise", |a| {
            a.be32(1, register.number()).be32(2, register.number()).be32(3, mask.len() as u32);
            a.nest(4, |a| {
                a.bytes(DATA_VALUE, mask);
            });
            a.nest(5, |a| {
                a.bytes(DATA_VALUE, &vec![0; mask.len()]);
            });
        })
    }

    /// Loads a constant.
    pub fn immediate(self, to: Register, value: &[u8]) -> Self {
        self.expression("immediate", |a| {
            a.be32(1, to.number());
            a.nest(2, |a| {
                a.bytes(DATA_VALUE, value);
            });
        })
    }

    /// Goes on if the key is in the set, or with `inverted` if it is not.
    pub fn lookup(self, set: &str, key: Register, inverted: bool) -> Self {
        self.expression("lookup", |a| {
            a.string(1, set).be32(2, key.number());
            if inverted {
                a.be32(5, 1);
            }
        })
    }

    /// Loads the value of the key, or ends the rule.
    pub fn map(self, map: &str, key: Register, to: Register) -> Self {
        self.expression("lookup", |a| {
            a.string(1, map).be32(2, key.number()).be32(3, to.number());
        })
    }

    /// Takes the verdict of the key, or goes on.
    pub fn verdict_map(self, map: &str, key: Register) -> Self {
        self.expression("lookup", |a| {
            a.string(1, map).be32(2, key.number()).be32(3, REGISTER_VERDICT);
        })
    }

    /// Puts the key, with a value for maps, into a set, or renews its time-out.
    pub fn update(self, set: &str, key: Register, value: Register, timeout_ms: u64) -> Self {
        self.expression("dynset", |a| {
            a.string(1, set)
                .be32(3, 1)
                .be32(4, key.number())
                .be32(5, value.number())
                .be64(6, timeout_ms);
        })
    }

    /// Ends the rule for packets of a key until there are more of them than `per_s` in a second, and
    /// than `burst` at once.
    pub fn over(self, set: &str, key: Register, per_s: u64, burst: u32) -> Self {
        self.expression("dynset", |a| {
            a.string(1, set).be32(3, 1).be32(4, key.number());
            a.nest(7, |a| {
                a.string(EXPRESSION_NAME, "limit");
                a.nest(EXPRESSION_DATA, |a| {
                    // Of packets, a second, and turned round: what is within the limit does not match.
                    a.be64(1, per_s).be64(2, 1).be32(3, burst).be32(4, 0).be32(5, 1);
                });
            });
        })
    }

    /// Whether a transparent socket has the packet's own flow, as a byte. Ends the rule where no socket
    /// has it.
    pub fn transparent_socket(self, to: Register) -> Self {
        self.expression("socket", |a| {
            a.be32(1, 0).be32(2, to.number());
        })
    }

    /// One of `count` numbers from `first` on, evenly distributed, in the machine's byte order.
    pub fn random(self, first: u32, count: u32, to: Register) -> Self {
        self.expression("numgen", |a| {
            a.be32(1, to.number()).be32(2, count).be32(3, 1).be32(4, first);
        })
    }

    /// Loads the connection's status bits.
    pub fn connection_status(self, to: Register) -> Self {
        self.expression("ct", |a| {
            a.be32(1, to.number()).be32(2, 2);
        })
    }

    /// Keeps the packet out of connection tracking.
    pub fn notrack(self) -> Self {
        self.expression("notrack", |_| {})
    }

    /// Hands the packet to the socket at the address in one register and the port in another.
    pub fn tproxy(self, family: Family, address: Register, port: Register) -> Self {
        self.expression("tproxy", |a| {
            a.be32(1, family.number().into()).be32(2, address.number()).be32(3, port.number());
        })
    }

    /// Rewrites the destination to the address and the port in two registers.
    pub fn dnat(self, family: Family, address: Register, port: Register) -> Self {
        self.expression("nat", |a| {
            a.be32(1, 1).be32(2, family.number().into());
            a.be32(3, address.number()).be32(5, port.number());
        })
    }

    /// Rewrites the source to the address in a register.
    pub fn snat(self, family: Family, address: Register) -> Self {
        self.expression("nat", |a| {
            a.be32(1, 0).be32(2, family.number().into()).be32(3, address.number());
        })
    }

    pub fn reject(self, reject: Reject) -> Self {
        let (kind, code) = match reject {
            Reject::TcpReset => (1, 0),
            // The codes of type `icmpx`, which are of neither family.
            Reject::PortUnreachable => (2, 1),
            Reject::HostUnreachable => (2, 2),
        };
        self.expression("reject", |a| {
            a.be32(1, kind).bytes(2, &[code]);
        })
    }

    fn verdict(self, code: i32, chain: Option<&str>) -> Self {
        self.expression("immediate", |a| {
            a.be32(1, REGISTER_VERDICT);
            a.nest(2, |a| {
                a.nest(DATA_VERDICT, |a| {
                    a.be32(VERDICT_CODE, code as u32);
                    if let Some(chain) = chain {
                        a.string(VERDICT_CHAIN, chain);
                    }
                });
            });
        })
    }

    pub fn accept(self) -> Self {
        self.verdict(libc::NF_ACCEPT, None)
    }

    pub fn drop(self) -> Self {
        self.verdict(libc::NF_DROP, None)
    }

    /// Goes through another chain, and on here if that does not decide.
    pub fn jump(self, chain: &str) -> Self {
        self.verdict(JUMP, Some(chain))
    }

    /// Leaves the chain for the one it was reached from.
    pub fn back(self) -> Self {
        self.verdict(RETURN, None)
    }

    /// Goes on for this family only; rules of family inet see both.
    pub fn family(self, family: Family) -> Self {
        self.meta(Meta::NetworkProtocol, R0).compare(R0, Compare::Equal, &[family.number()])
    }

    /// Goes on if a number of the packet lies between two, both included. The bytes are compared
    /// in network order.
    pub fn range(self, register: Register, first: &[u8], last: &[u8]) -> Self {
        self.expression("range", |a| {
            a.be32(1, register.number()).be32(2, 0);
            a.nest(3, |a| {
                a.bytes(DATA_VALUE, first);
            });
            a.nest(4, |a| {
                a.bytes(DATA_VALUE, last);
            });
        })
    }

    /// Goes on for connections in one of these states (`NF_CT_STATE_*` bits).
    pub fn connection_state(self, states: u32) -> Self {
        let loaded = self.expression("ct", |a| {
            a.be32(1, R0.number()).be32(2, 0);
        });
        let masked = loaded.mask(R0, &states.to_ne_bytes());
        masked.compare(R0, Compare::NotEqual, &[0; 4])
    }

    /// Goes on for the first packet of a TCP connection.
    pub fn tcp_syn(self) -> Self {
        self.tcp_flags(Compare::Equal)
    }

    /// Goes on for every other packet of a TCP connection.
    pub fn tcp_later(self) -> Self {
        self.tcp_flags(Compare::NotEqual)
    }

    /// SYN, and none of ACK, RST and FIN.
    fn tcp_flags(self, compare: Compare) -> Self {
        let flags = self.transport(libc::IPPROTO_TCP).payload(Base::Transport, 13, 1, R0);
        flags.mask(R0, &[0x17]).compare(R0, compare, &[0x02])
    }

    /// Hands the packet to the process behind a queue; without one it goes on to the next hook.
    pub fn queue(self, number: u16) -> Self {
        self.expression("queue", |a| {
            a.bytes(1, &number.to_be_bytes()).bytes(2, &1u16.to_be_bytes());
            a.bytes(3, &QUEUE_BYPASS.to_be_bytes());
        })
    }

    /// The same by the xtables target, for kernels without nf_tables' own (`xt_NFQUEUE.h`,
    /// `struct xt_NFQ_info_v3`).
    pub fn queue_by_target(self, number: u16) -> Self {
        let mut info = [0; 8];
        info[0..2].copy_from_slice(&number.to_ne_bytes());
        info[2..4].copy_from_slice(&1u16.to_ne_bytes());
        info[4..6].copy_from_slice(&QUEUE_BYPASS.to_ne_bytes());
        self.expression("target", |a| {
            a.string(1, "NFQUEUE").be32(2, 3).bytes(3, &info);
        })
    }

    pub fn transport(self, protocol: i32) -> Self {
        self.meta(Meta::TransportProtocol, R0).compare(R0, Compare::Equal, &[protocol as u8])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_is_encoded_as_nft_does() {
        let rule = Rule::new().destination(Family::V4, R0);
        let expected: Vec<u8> = [
            &[52, 0, 1, 0x80][..],
            &[12, 0, 1, 0],
            b"payload\0",
            &[36, 0, 2, 0x80],
            &[8, 0, 1, 0, 0, 0, 0, 8],
            &[8, 0, 2, 0, 0, 0, 0, 1],
            &[8, 0, 3, 0, 0, 0, 0, 16],
            &[8, 0, 4, 0, 0, 0, 0, 4],
        ]
        .concat();
        assert_eq!(rule.bytes, expected);
    }

    #[test]
    fn verdicts_name_their_chain() {
        let rule = Rule::new().verdict(GOTO, Some("b"));
        let expected: Vec<u8> = [
            &[56, 0, 1, 0x80][..],
            &[14, 0, 1, 0],
            b"immediate\0\0\0",
            &[36, 0, 2, 0x80],
            &[8, 0, 1, 0, 0, 0, 0, 0],
            &[24, 0, 2, 0x80],
            &[20, 0, 2, 0x80],
            &[8, 0, 1, 0, 0xff, 0xff, 0xff, 0xfc],
            &[6, 0, 2, 0, b'b', 0, 0, 0],
        ]
        .concat();
        assert_eq!(rule.bytes, expected);
    }
}
