//! Packets of pods that the gateway of pings reads, and what it makes of them. The first byte says how the
//! packet came.

#![no_main]
#![allow(dead_code)]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;

#[path = "../../../netns/src/family.rs"]
mod family;
#[path = "../../../netns/src/gateway/icmp/wire.rs"]
mod wire;

fuzz_target!(|data: &[u8]| {
    let Some((how, bytes)) = data.split_first() else { return };
    let (pod, far): (IpAddr, IpAddr) = ("fd00::2".parse().unwrap(), "2001:db8::1".parse().unwrap());
    let echo = match how & 1 {
        0 => wire::read_packet4(bytes),
        _ => wire::read_message(bytes, pod, far, None),
    };
    let v4 = how & 1 == 0;
    let _ = wire::is_reply(bytes, v4);
    let Some(echo) = echo else { return };
    let answer = wire::reply(echo.destination, echo.pod, echo.message, echo.identifier);
    assert!(answer.len() >= echo.message.len());
    for why in [wire::Why::Host, wire::Why::Expired] {
        let told = wire::unreachable(echo.destination, echo.pod, why, bytes);
        assert!(v4 || told.len() <= 1280, "{} bytes", told.len());
    }
});
