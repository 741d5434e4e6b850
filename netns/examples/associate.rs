//! Speaks SCTP, which hardly any tool does: `associate serve PORT WORD` answers every association with WORD,
//! `associate ask ADDRESS:PORT` prints the answer. `tests/vm.sh` runs it in pods.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// `IPPROTO_SCTP`; with streams it is used like TCP (`sctp(7)`, one-to-one style).
const SCTP: i32 = 132;
const PATIENCE: Duration = Duration::from_secs(10);

fn socket(address: SocketAddr) -> std::io::Result<Socket> {
    Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::from(SCTP)))
}

fn main() -> std::io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let wrong = || Error::new(ErrorKind::InvalidInput, "serve PORT WORD, or ask ADDRESS:PORT");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", port, word] => {
            let port: u16 = port.parse().map_err(|_| wrong())?;
            let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            let listener = socket(address)?;
            listener.bind(&address.into())?;
            listener.listen(16)?;
            loop {
                let (mut stream, _) = listener.accept()?;
                stream.write_all(word.as_bytes())?;
            }
        }
        ["ask", address] => {
            let address: SocketAddr = address.parse().map_err(|_| wrong())?;
            let mut stream = socket(address)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.connect_timeout(&address.into(), PATIENCE)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            println!("{answer}");
            Ok(())
        }
        _ => Err(wrong()),
    }
}
