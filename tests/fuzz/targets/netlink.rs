//! What the kernel answers over netlink: messages, links, connections, elements of sets, held packets.

#![no_main]
#![allow(dead_code)]

use libfuzzer_sys::fuzz_target;

#[path = "../../../netns/src/nft/elements.rs"]
mod elements;
#[path = "../../../netns/src/gateway/first_packet.rs"]
mod first_packet;
#[path = "../../../netns/src/netlink/answer.rs"]
mod netlink;
#[path = "../../../netns/src/link/state.rs"]
mod state;
#[path = "../../../netns/src/conntrack/tuple.rs"]
mod tuple;

fn payload(bytes: &[u8]) {
    let _ = state::read_link(bytes);
    let _ = elements::read_elements(bytes);
    let _ = first_packet::read_packet(bytes);
    for (_, value) in netlink::attributes(bytes.get(4..).unwrap_or_default()) {
        let _ = tuple::read(value);
    }
}

fuzz_target!(|data: &[u8]| {
    payload(data);
    for (header, bytes) in netlink::messages(data) {
        let _ = netlink::parse_error(header.flags, bytes);
        payload(bytes);
    }
});
