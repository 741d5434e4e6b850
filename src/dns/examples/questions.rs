//! Questions for a name server, as many as it answers: `questions ADDRESS:PORT NAME [SECONDS]` prints how many
//! it answers in a second, and how many of a hundred it lost. `tests/bench-network.sh` runs it in a pod.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Clients, each with a socket of its own, and the questions that each has on their way.
const CLIENTS: usize = 4;
const WINDOW: usize = 32;
/// After so long a question is taken for lost.
const PATIENCE: Duration = Duration::from_millis(200);

fn question(name: &str) -> Vec<u8> {
    // A number, which is set later; recursion desired; one question.
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    // The root; type A, class IN.
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}

/// Answered and lost questions.
fn ask(server: SocketAddr, name: &str, end: Instant) -> std::io::Result<(u64, u64)> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut question = question(name);
    let mut number = 0u16;
    let mut send = || {
        number = number.wrapping_add(1);
        question[..2].copy_from_slice(&number.to_be_bytes());
        socket.send(&question)
    };
    for _ in 0..WINDOW {
        send()?;
    }
    let (mut answered, mut lost) = (0, 0);
    let mut answer = [0; 1500];
    while Instant::now() < end {
        match socket.recv(&mut answer) {
            // Without an error, with an answer.
            Ok(length) if length > 12 && answer[3] % 16 == 0 && answer[7] > 0 => {
                answered += 1;
                send()?;
            }
            Ok(_) => return Err(std::io::Error::other("the name is not there")),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                lost += WINDOW as u64;
                for _ in 0..WINDOW {
                    send()?;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok((answered, lost))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, name, rest @ ..] = arguments.as_slice() else {
        return Err("load ADDRESS:PORT NAME [SECONDS]".into());
    };
    let server: SocketAddr = server.parse()?;
    let span = Duration::from_secs(rest.first().map_or(Ok(3), |text| text.parse())?);
    let (begin, end) = (Instant::now(), Instant::now() + span);
    let totals = std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| scope.spawn(move || ask(server, name, end))).collect();
        clients
            .into_iter()
            .map(|client| client.join().map_err(|_| std::io::Error::other("a client failed"))?)
            .collect::<Result<Vec<_>, _>>()
    })?;
    let (answered, lost) = totals.iter().fold((0, 0), |(a, l), (b, m)| (a + b, l + m));
    let rate = answered as f64 / begin.elapsed().as_secs_f64();
    let share = 100.0 * lost as f64 / (answered + lost).max(1) as f64;
    println!("{rate:8.0} answers/s, {share:.2} % lost");
    Ok(())
}
