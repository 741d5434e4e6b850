//! A transaction: applied whole or not at all.

use crate::Error;
use crate::netlink::{Attributes, Requests, Socket};
use crate::nft::{Element, Rule, SetSpec, elements, set};

const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const FAMILY_INET: u8 = 1;
const CREATE: i32 = libc::NLM_F_CREATE;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DELETE_SET: u16 = 11;
const NEW_ELEMENTS: u16 = 12;
const GET_ELEMENTS: u16 = 13;
const DELETE_ELEMENTS: u16 = 14;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;

/// Elements of one message: a nest's length has 16 bits.
const ELEMENTS_BYTES: usize = 48 << 10;

/// Where a base chain is hooked in (`enum nf_inet_hooks`).
#[derive(Clone, Copy)]
pub(crate) enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// The type of a base chain.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Filter,
    Nat,
}

/// A base chain, policy accept.
pub(crate) struct Chain {
    pub name: &'static str,
    pub kind: Kind,
    pub hook: Hook,
    pub priority: i32,
}

/// Requests on one table of family inet.
pub(crate) struct Batch {
    table: &'static str,
    requests: Requests,
    empty: bool,
    set_ids: u32,
}

fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

impl Batch {
    pub fn new(table: &'static str) -> Self {
        let mut requests = Requests::new();
        let resource = libc::NFNL_SUBSYS_NFTABLES as u16;
        requests.push("commit the rules", BATCH_BEGIN, 0, &header(0, resource), |_| {});
        Self { table, requests, empty: true, set_ids: 0 }
    }

    fn push(&mut self, name: String, kind: u16, flags: i32, write: impl FnOnce(&mut Attributes)) {
        self.empty = false;
        let header = header(FAMILY_INET, 0);
        self.requests.push(name, SUBSYSTEM | kind, flags, &header, write);
    }

    /// A number for a set, unique in this batch.
    pub fn next_id(&mut self) -> u32 {
        self.set_ids += 1;
        self.set_ids
    }

    pub fn is_empty(&self) -> bool {
        self.empty
    }

    /// Bytes so far; a batch has to fit into the socket's send buffer.
    pub fn len(&self) -> usize {
        self.requests.bytes().len()
    }

    /// Makes the table empty, whether it existed or not.
    pub fn replace_table(&mut self) {
        let table = self.table;
        for (kind, flags) in [(NEW_TABLE, CREATE), (DELETE_TABLE, 0), (NEW_TABLE, CREATE)] {
            self.push(format!("create table {table}"), kind, flags, |a| {
                a.string(TABLE_NAME, table);
            });
        }
    }

    pub fn base_chain(&mut self, chain: &Chain) {
        let table = self.table;
        let name = chain.name;
        self.push(format!("create chain {name}"), NEW_CHAIN, CREATE, |a| {
            a.string(CHAIN_TABLE, table).string(CHAIN_NAME, name);
            a.nest(CHAIN_HOOK, |a| {
                a.be32(HOOK_NUMBER, chain.hook as u32).be32(HOOK_PRIORITY, chain.priority as u32);
            });
            a.be32(CHAIN_POLICY, libc::NF_ACCEPT as u32).string(
                CHAIN_TYPE,
                match chain.kind {
                    Kind::Filter => "filter",
                    Kind::Nat => "nat",
                },
            );
        });
    }

    /// A chain that is reached by jumps.
    pub fn chain(&mut self, name: &str) {
        let table = self.table;
        self.push(format!("create chain {name}"), NEW_CHAIN, CREATE, |a| {
            a.string(CHAIN_TABLE, table).string(CHAIN_NAME, name);
        });
    }

    /// Appends a rule.
    pub fn rule(&mut self, chain: &str, rule: &Rule) {
        let table = self.table;
        let flags = CREATE | libc::NLM_F_APPEND;
        self.push(format!("add a rule to {chain}"), NEW_RULE, flags, |a| {
            a.string(RULE_TABLE, table).string(RULE_CHAIN, chain);
            a.nest(RULE_EXPRESSIONS, |a| rule.write(a));
        });
    }

    /// Removes every rule of a chain.
    pub fn flush_chain(&mut self, chain: &str) {
        let table = self.table;
        self.push(format!("empty chain {chain}"), DELETE_RULE, 0, |a| {
            a.string(RULE_TABLE, table).string(RULE_CHAIN, chain);
        });
    }

    /// Removes a chain and its rules; nothing may lead to it any more.
    pub fn delete_chain(&mut self, chain: &str) {
        self.flush_chain(chain);
        let table = self.table;
        self.push(format!("remove chain {chain}"), DELETE_CHAIN, 0, |a| {
            a.string(CHAIN_TABLE, table).string(CHAIN_NAME, chain);
        });
    }

    /// Removes a set; no rule may use it any more.
    pub fn delete_set(&mut self, name: &str) {
        let table = self.table;
        self.push(format!("remove set {name}"), DELETE_SET, 0, |a| {
            set::write_set_name(a, table, name);
        });
    }

    pub fn set(&mut self, spec: &SetSpec) {
        let table = self.table;
        self.push(format!("create set {}", spec.name), NEW_SET, CREATE, |a| {
            spec.write(table, a);
        });
    }

    pub fn add_elements<'e>(&mut self, set: &str, elements: impl IntoIterator<Item = &'e Element>) {
        self.elements(NEW_ELEMENTS, CREATE, "fill", set, elements);
    }

    /// Removes elements; it is an error if one is absent.
    pub fn delete_elements<'e>(
        &mut self,
        set: &str,
        elements: impl IntoIterator<Item = &'e Element>,
    ) {
        self.elements(DELETE_ELEMENTS, 0, "take from", set, elements);
    }

    fn elements<'e>(
        &mut self,
        kind: u16,
        flags: i32,
        verb: &str,
        set: &str,
        elements: impl IntoIterator<Item = &'e Element>,
    ) {
        let table = self.table;
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            self.push(format!("{verb} set {set}"), kind, flags, |a| {
                set::write_list_header(a, table, set);
                let start = a.written();
                a.nest(elements::LIST_ELEMENTS, |a| {
                    while a.written() - start < ELEMENTS_BYTES
                        && let Some(element) = elements.next()
                    {
                        element.write(a);
                    }
                });
            });
        }
    }

    /// Commits in the namespace of `socket`.
    pub fn commit(mut self, socket: &Socket) -> Result<(), Error> {
        if self.empty {
            return Ok(());
        }
        self.requests.acknowledge_last();
        let resource = libc::NFNL_SUBSYS_NFTABLES as u16;
        self.requests.push("commit the rules", BATCH_END, 0, &header(0, resource), |_| {});
        socket.execute(&self.requests)
    }
}

/// The elements of a map with their values, as the kernel has them now.
pub(crate) fn dump_elements(
    socket: &Socket,
    table: &str,
    map: &str,
) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Error> {
    let mut requests = Requests::new();
    let header = header(FAMILY_INET, 0);
    let kind = SUBSYSTEM | GET_ELEMENTS;
    requests.push(format!("list map {map}"), kind, libc::NLM_F_DUMP, &header, |a| {
        set::write_list_header(a, table, map);
    });
    let mut elements = Vec::new();
    socket.dump(&requests, |_, payload| elements.extend(elements::read_elements(payload)))?;
    Ok(elements)
}
