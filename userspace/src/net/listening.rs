//! The listening TCP sockets of this network namespace, of all processes (`proc_pid_net(5)`).

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader},
    net::{IpAddr, SocketAddr},
};

/// `TCP_LISTEN`.
const LISTEN: &str = "0A";

/// A listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    /// Its address.
    pub address: SocketAddr,
    /// Its inode, as its owner's fstat(2) returns it.
    pub inode: u64,
}

/// All listening sockets on addresses of the family of `like`. Listening sockets come first in the table
/// (`tcp_seq_start`), so connections cost nothing.
pub fn sockets(like: SocketAddr) -> io::Result<Vec<Listening>> {
    let table = if like.is_ipv4() { "tcp" } else { "tcp6" };
    let lines = BufReader::new(File::open(format!("/proc/thread-self/net/{table}"))?).lines();
    let mut found = Vec::new();
    for line in lines.skip(1) {
        let Some(socket) = parse(&line?) else { break };
        found.push(socket);
    }
    Ok(found)
}

/// Parses one line of the table. `None` if that socket does not listen.
fn parse(line: &str) -> Option<Listening> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let [_, local, _, LISTEN, _, _, _, _, _, inode, ..] = fields[..] else { return None };
    let (ip, port) = local.split_once(':')?;
    if !matches!(ip.len(), 8 | 32) {
        return None;
    }
    // The address is in words in host byte order, whose bytes are in network order.
    let words = ip.as_bytes().chunks(8).map(|word| {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        Some(word.to_ne_bytes())
    });
    let bytes = words.collect::<Option<Vec<_>>>()?.concat();
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    let address = SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?);
    Some(Listening { address, inode: inode.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsFd as _};

    use super::*;

    #[test]
    fn sockets_that_listen_are_found_and_no_others() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let socket = TcpListener::bind(address).unwrap();
            let own = socket.local_addr().unwrap();
            let inode = rustix::fs::fstat(socket.as_fd()).unwrap().st_ino;
            let here = || sockets(own).unwrap().into_iter().filter(|one| one.address.port() == own.port());
            assert!(here().any(|one| one == Listening { address: own, inode }), "{address}");
            drop(socket);
            assert!(!here().any(|one| one.inode == inode), "{address}");
        }
    }

    #[test]
    fn a_line_that_is_no_listening_socket_is_none() {
        let line = "   0: 00000000:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100";
        assert_eq!(parse(line), Some(Listening { address: "0.0.0.0:443".parse().unwrap(), inode: 4_711 }));
        for (word, other) in
            [(" 0A ", " 01 "), ("00000000:01BB", "0000000:01BB"), ("4711", "x"), (":01BB", "")]
        {
            assert_eq!(parse(&line.replacen(word, other, 1)), None, "{word} is {other}");
        }
        assert_eq!(parse(""), None);
    }
}
