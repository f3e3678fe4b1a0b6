//! What an address is that others can be told: `host:port`, the path of a Unix socket, `@name`.
//!
//! *Invariant*: no name service is asked and nothing is normalised.

use std::net::IpAddr;

/// The longest path of a Unix socket (`sun_path` less the NUL).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The longest address: a host name of the greatest length (255), a colon, a port.
const ADDRESS_BYTES_MAX: usize = 261;

/// Checks that others can be told `address`; else what is wrong with it, and the mend.
pub fn check(address: &str) -> Result<(), String> {
    check_listen(address)?;
    if is_wildcard(address) {
        return Err(format!(
            "nobody can dial {address}: name the host or address by which others reach this node"
        ));
    }
    Ok(())
}

/// Whether it stands for all addresses of a machine, as in `0.0.0.0:9001`.
fn is_wildcard(address: &str) -> bool {
    ip_of(address).is_some_and(|ip| ip.is_unspecified())
}

/// The IP address in it, if that and not a name is its host.
fn ip_of(address: &str) -> Option<IpAddr> {
    let (host, _) = address.rsplit_once(':')?;
    host.trim_matches(['[', ']']).parse().ok()
}

/// Checks that a node can listen at `address`, which may stand for all of the machine's
/// (`0.0.0.0:9001`); else what is wrong with it, and the mend.
pub fn check_listen(address: &str) -> Result<(), String> {
    if address.len() > ADDRESS_BYTES_MAX {
        let bytes = address.len();
        return Err(format!(
            "an address has at most {ADDRESS_BYTES_MAX} bytes, this one has {bytes}"
        ));
    }
    let unclear = |why: &str| {
        Err(format!("\"{address}\" {why}: write host:port, the path of a Unix socket, or @name"))
    };
    if address.is_empty() || address.contains(char::is_whitespace) || address.contains('\0') {
        return unclear("is not an address");
    }
    if let Some(name) = address.strip_prefix('@') {
        return match name.len() {
            0 => unclear("has no name"),
            1..=SOCKET_PATH_BYTES_MAX => Ok(()),
            _ => unclear("is too long"),
        };
    }
    if address.contains('/') {
        return if address.len() <= SOCKET_PATH_BYTES_MAX {
            Ok(())
        } else {
            unclear("is too long")
        };
    }
    let Some((host, port)) = address.rsplit_once(':') else { return unclear("has no port") };
    if host.is_empty() {
        return unclear("has no host");
    }
    match port.parse::<u16>() {
        Ok(0) => return unclear("has port 0, which nobody can dial"),
        Ok(_) => {}
        Err(_) => return unclear("has no valid port"),
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if host.contains(':') && bare.is_none() {
        return Err(format!(
            "\"{address}\" is not clear: put an IPv6 address in brackets, as in [::1]:9001"
        ));
    }
    Ok(())
}

/// Whether a name service has to be asked for it.
pub fn has_host_name(address: &str) -> bool {
    if address.starts_with('@') || address.contains('/') {
        return false;
    }
    ip_of(address).is_none()
}
