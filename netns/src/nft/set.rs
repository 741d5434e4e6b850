//! Sets, maps and verdict maps, and their elements.

use std::net::IpAddr;

use super::elements::{DATA_VALUE, ELEMENT_DATA, ELEMENT_KEY, LIST_ELEMENT};
use crate::family::{next_address, octets};
use crate::netlink::Attributes;

const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LENGTH: u16 = 7;
const SET_ID: u16 = 10;
const SET_TIMEOUT: u16 = 11;

const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;

const ELEMENT_FLAGS: u16 = 3;

pub(super) const DATA_VERDICT: u16 = 2;
pub(super) const VERDICT_CODE: u16 = 1;
pub(super) const VERDICT_CHAIN: u16 = 2;
const VERDICT_TYPE: u32 = 0xffff_ff00;
const INTERVAL_END: u32 = 1;

/// Opaque to the kernel; a value that `nft list` shows as plain bytes.
const TYPE_INTEGER: u32 = 4;

/// `enum nft_set_flags`.
#[derive(Clone, Copy, Default)]
pub(crate) struct SetFlags(pub u32);

impl SetFlags {
    pub const INTERVAL: Self = Self(0x4);
    pub const MAP: Self = Self(0x8);
    pub const TIMEOUT: Self = Self(0x10);
    /// Filled by rules.
    pub const EVAL: Self = Self(0x20);

    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What the elements of a map lead to.
#[derive(Clone, Copy)]
pub(crate) enum Data {
    None,
    Value { bytes: u32 },
    Verdict,
}

/// A set or a map to create. Concatenated keys have each part padded to four bytes.
pub(crate) struct SetSpec<'a> {
    pub name: &'a str,
    /// Unique in its batch.
    pub id: u32,
    pub flags: SetFlags,
    pub key_bytes: u32,
    pub data: Data,
    pub timeout_ms: Option<u64>,
}

impl SetSpec<'_> {
    pub(super) fn write(&self, table: &str, a: &mut Attributes) {
        let flags = match self.data {
            Data::None => self.flags,
            _ => self.flags.and(SetFlags::MAP),
        };
        a.string(SET_TABLE, table)
            .string(SET_NAME, self.name)
            .be32(SET_FLAGS, flags.0)
            .be32(SET_KEY_TYPE, TYPE_INTEGER)
            .be32(SET_KEY_LENGTH, self.key_bytes)
            .be32(SET_ID, self.id);
        match self.data {
            Data::None => {}
            Data::Value { bytes } => {
                a.be32(SET_DATA_TYPE, TYPE_INTEGER).be32(SET_DATA_LENGTH, bytes);
            }
            Data::Verdict => {
                a.be32(SET_DATA_TYPE, VERDICT_TYPE);
            }
        }
        if let Some(timeout_ms) = self.timeout_ms {
            a.be64(SET_TIMEOUT, timeout_ms);
        }
    }
}

/// One element.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    /// Of a set, or of a map when it is to be deleted.
    Key(Vec<u8>),
    /// The first key beyond an interval.
    IntervalEnd(Vec<u8>),
    Value(Vec<u8>, Vec<u8>),
    Goto(Vec<u8>, String),
    Jump(Vec<u8>, String),
}

impl Element {
    /// An interval from `first` to `last`, for sets with [`SetFlags::INTERVAL`].
    pub fn interval(first: IpAddr, last: IpAddr) -> Vec<Self> {
        let mut elements = vec![Self::Key(octets(first))];
        if let Some(end) = next_address(last) {
            elements.push(Self::IntervalEnd(octets(end)));
        }
        elements
    }

    pub(super) fn write(&self, a: &mut Attributes) {
        let (Self::Key(key)
        | Self::IntervalEnd(key)
        | Self::Value(key, _)
        | Self::Goto(key, _)
        | Self::Jump(key, _)) = self;
        a.nest(LIST_ELEMENT, |a| {
            a.nest(ELEMENT_KEY, |a| {
                a.bytes(DATA_VALUE, key);
            });
            match self {
                Self::Key(_) => {}
                Self::IntervalEnd(_) => {
                    a.be32(ELEMENT_FLAGS, INTERVAL_END);
                }
                Self::Value(_, value) => {
                    a.nest(ELEMENT_DATA, |a| {
                        a.bytes(DATA_VALUE, value);
                    });
                }
                Self::Goto(_, chain) => {
                    a.nest(ELEMENT_DATA, |a| write_verdict(a, super::expr::GOTO, chain));
                }
                Self::Jump(_, chain) => {
                    a.nest(ELEMENT_DATA, |a| write_verdict(a, super::expr::JUMP, chain));
                }
            }
        });
    }
}

fn write_verdict(a: &mut Attributes, code: i32, chain: &str) {
    a.nest(DATA_VERDICT, |a| {
        a.be32(VERDICT_CODE, code as u32).string(VERDICT_CHAIN, chain);
    });
}

pub(super) fn write_set_name(a: &mut Attributes, table: &str, name: &str) {
    a.string(SET_TABLE, table).string(SET_NAME, name);
}

pub(super) fn write_list_header(a: &mut Attributes, table: &str, set: &str) {
    a.string(LIST_TABLE, table).string(LIST_SET, set);
}
