//! Which ports of this machine are free.
//!
//! *Invariant*: a port found busy is named together with the option that chooses another.

use std::net::{Ipv4Addr, TcpListener};

use super::Failure;

/// Where the nodes of a cluster on one machine listen.
pub const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Checks that `count` ports from `first` upward exist and are free.
pub fn check(first: u16, count: u16) -> Result<(), Failure> {
    let Some(last) = first.checked_add(count.saturating_sub(1)) else {
        return Err(Failure::Usage(format!(
            "--port {first}: {count} nodes need as many ports in a row, and the last port is \
             65535: choose a lower --port"
        )));
    };
    for port in first..=last {
        if let Err(error) = TcpListener::bind((HOST, port)) {
            let why = match error.kind() {
                std::io::ErrorKind::AddrInUse => "is in use".to_owned(),
                _ => format!("cannot be used ({error})"),
            };
            return Err(Failure::Usage(format!(
                "port {port} of {HOST} {why}: choose others with --port ({count} in a row are \
                 needed), or stop what uses it"
            )));
        }
    }
    Ok(())
}

/// Finds `count` free ports, anywhere.
pub fn find(count: u16) -> std::io::Result<Vec<u16>> {
    // All are held until all are found, so that they differ.
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind((HOST, 0))).collect::<Result<_, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::{Failure, HOST, check, find};

    #[test]
    fn a_busy_port_is_named_with_the_mend() {
        let taken = TcpListener::bind((HOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let Failure::Usage(line) = check(port, 1).unwrap_err() else { panic!("not usage") };
        assert_eq!(
            line,
            format!(
                "port {port} of 127.0.0.1 is in use: choose others with --port (1 in a row are \
                 needed), or stop what uses it"
            )
        );
        drop(taken);
        check(port, 1).unwrap();
    }

    #[test]
    fn ports_end_at_65535() {
        let Failure::Usage(line) = check(65534, 3).unwrap_err() else { panic!("not usage") };
        assert_eq!(
            line,
            "--port 65534: 3 nodes need as many ports in a row, and the last port is 65535: \
             choose a lower --port"
        );
    }

    #[test]
    fn found_ports_differ() {
        let mut ports = find(5).unwrap();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 5);
    }
}
