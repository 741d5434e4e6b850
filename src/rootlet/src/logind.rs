//! The machine's shutdown: logind is asked to wait until the pods have ended (systemd-logind.service(8),
//! org.freedesktop.login1(5)). Any user may ask for that; for how long it waits is the machine's to say.
//!
//! Source of behaviour: `pkg/kubelet/nodeshutdown`.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::bus::{Bus, Callee, Writer};

const SOCKET: &str = "/run/dbus/system_bus_socket";
const TIMEOUT: Duration = Duration::from_secs(5);
const MANAGER: Callee = Callee {
    destination: "org.freedesktop.login1",
    path: "/org/freedesktop/login1",
    interface: "org.freedesktop.login1.Manager",
};
const PROPERTIES: Callee = Callee { interface: "org.freedesktop.DBus.Properties", ..MANAGER };
const SIGNAL: &str = "PrepareForShutdown";

/// Holds the machine's shutdown up, until it is dropped.
#[derive(Debug)]
pub struct Delay(#[expect(dead_code, reason = "closing it is what counts")] OwnedFd);

/// Asks logind to wait for `period` at a shutdown. What is returned is told when one begins, with what holds it up.
///
/// # Errors
/// Nobody can be asked, or is asked in vain.
pub fn watch(period: Duration) -> Result<oneshot::Receiver<Delay>, String> {
    watch_at(Path::new(SOCKET), period)
}

fn watch_at(socket: &Path, period: Duration) -> Result<oneshot::Receiver<Delay>, String> {
    let mut bus = Bus::join(socket, TIMEOUT).map_err(|e| format!("{}: {e}", socket.display()))?;
    bus.subscribe(&format!("type='signal',interface='{}',member='{SIGNAL}'", MANAGER.interface))?;
    let mut body = Writer::default();
    body.text(MANAGER.interface);
    body.text("InhibitDelayMaxUSec");
    // A variant: the letter of its type, then, aligned, the number.
    let most = bus.call(&PROPERTIES, "Get", "ss", &body)?.u64(8).map(Duration::from_micros);
    if let Some(most) = most.filter(|most| *most < period) {
        tracing::warn!(
            ?most,
            ?period,
            "this machine's shutdown waits for less than pods have: set InhibitDelayMaxSec in /etc/systemd/logind.conf"
        );
    }
    let mut body = Writer::default();
    for text in ["shutdown", "rootlet", "Pods have their time to end", "delay"] {
        body.text(text);
    }
    let answer = bus.call(&MANAGER, "Inhibit", "ssss", &body)?;
    let held = answer.descriptors.into_iter().next().ok_or("logind gave no lock")?;
    let (tell, told) = oneshot::channel();
    // It ends with the process, or with the connection.
    std::thread::Builder::new()
        .name("logind".into())
        .spawn(move || {
            while let Ok(signal) = bus.signal() {
                if signal.member == SIGNAL && signal.u32(0) == Some(1) {
                    // Whoever does not listen any more has ended already.
                    let _ = tell.send(Delay(held));
                    return;
                }
            }
            tracing::warn!(
                "the connection with logind is lost: a shutdown of the machine is not noticed"
            );
        })
        .map_err(|error| error.to_string())?;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, IoSlice, Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

    use super::*;

    /// A message of the bus: an answer to `serial`, or a signal.
    fn message(serial: Option<u32>, body: &[u8]) -> Vec<u8> {
        let mut out = Writer::raw(vec![b'l', if serial.is_some() { 2 } else { 4 }, 1, 1]);
        out.u32(body.len() as u32);
        out.u32(77);
        out.array(8, |fields| match serial {
            Some(serial) => fields.field(5, "u", |w| w.u32(serial)),
            None => fields.field(3, "s", |w| w.text(SIGNAL)),
        });
        out.u64(0);
        let mut out = out.into_bytes();
        out.truncate(out.len() - 8);
        out.extend_from_slice(body);
        out
    }

    /// Reads a call, tells whether it has `word` in it.
    fn expect(stream: &mut impl Read, word: &str) {
        let mut head = [0; 16];
        stream.read_exact(&mut head).unwrap();
        let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()) as usize;
        let mut rest = vec![0; number(12).next_multiple_of(8) + number(4)];
        stream.read_exact(&mut rest).unwrap();
        assert!(String::from_utf8_lossy(&rest).contains(word), "{word}");
    }

    fn send_with(stream: &UnixStream, bytes: &[u8], descriptor: &OwnedFd) {
        let descriptors = [descriptor.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let sent =
            rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::empty());
        assert_eq!(sent.unwrap(), bytes.len());
    }

    #[tokio::test]
    async fn a_shutdown_waits_until_the_lock_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("bus");
        let listener = UnixListener::bind(&socket).unwrap();
        let bus = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            for (wanted, answer) in [
                ("\0AUTH EXTERNAL\r\n", "DATA\r\n"),
                ("DATA\r\n", "OK 123\r\n"),
                ("NEGOTIATE_UNIX_FD\r\n", "AGREE_UNIX_FD\r\n"),
                ("BEGIN\r\n", ""),
            ] {
                let mut line = String::new();
                lines.read_line(&mut line).unwrap();
                assert_eq!(line, wanted);
                stream.write_all(answer.as_bytes()).unwrap();
            }
            expect(&mut lines, "Hello");
            stream.write_all(&message(Some(1), &[])).unwrap();
            expect(&mut lines, "AddMatch");
            stream.write_all(&message(Some(2), &[])).unwrap();
            expect(&mut lines, "InhibitDelayMaxUSec");
            let most = [&[1, b't', 0, 0, 0, 0, 0, 0][..], &5_000_000_u64.to_le_bytes()].concat();
            stream.write_all(&message(Some(3), &most)).unwrap();
            expect(&mut lines, "Inhibit");
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            send_with(&stream, &message(Some(4), &[0; 4]), &writer);
            drop(writer);
            stream.write_all(&message(None, &[0, 0, 0, 0])).unwrap();
            stream.write_all(&message(None, &[1, 0, 0, 0])).unwrap();
            // As logind sees it: the pipe's other end is closed.
            let got = rustix::io::read(&reader, &mut [0_u8; 1]).unwrap();
            assert_eq!(got, 0);
        });
        let told = tokio::task::spawn_blocking(move || watch_at(&socket, Duration::from_mins(1)));
        let delay = told.await.unwrap().unwrap().await.unwrap();
        assert!(!bus.is_finished(), "the lock is held");
        drop(delay);
        bus.join().unwrap();
    }
}
