//! Tells the service manager how the agent is: the datagrams of `sd_notify(3)`, without its library.
//!
//! What it decides: where the manager listens, and that its absence or deafness never matters. What it does not decide:
//! when the agent is ready.

use std::env;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Longest status text, in bytes.
const STATUS_BYTES: usize = 512;

/// The service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// The one that `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` name.
    pub fn from_env() -> Self {
        let text = |name| env::var(name).ok();
        // The variables are inherited; they may mean another process.
        let ours = text("WATCHDOG_PID").is_none_or(|id| id.parse() == Ok(std::process::id()));
        let watchdog = text("WATCHDOG_USEC").filter(|_| ours);
        Self::new(env::var_os("NOTIFY_SOCKET").as_deref(), watchdog.as_deref())
    }

    /// The one that listens at `address`: a path, or `@` and an abstract name. It expects a sign of life within
    /// `watchdog` microseconds.
    pub fn new(address: Option<&OsStr>, watchdog: Option<&str>) -> Self {
        Self {
            socket: address.and_then(open),
            watchdog: watchdog
                .and_then(|text| text.parse().ok())
                .filter(|microseconds| *microseconds > 0)
                .map(Duration::from_micros),
        }
    }

    /// How often [`watchdog`](Self::watchdog) is to be called: twice as often as expected. `None` when nobody expects it.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// The agent has started.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// What the agent does, in one line for people.
    pub fn status(&self, text: &str) {
        let mut line = String::from("STATUS=");
        for c in text.chars() {
            if line.len() + c.len_utf8() > STATUS_BYTES {
                break;
            }
            // A line feed would begin another message.
            line.push(if c.is_control() { ' ' } else { c });
        }
        self.send(&line);
    }

    /// The agent is about to end.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// A sign of life, if anybody expects one.
    pub fn watchdog(&self) {
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1");
        }
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.socket {
            // A manager that does not listen is its own problem, not the agent's.
            let _ = socket.send_to_addr(message.as_bytes(), address);
        }
    }
}

fn open(address: &OsStr) -> Option<(UnixDatagram, SocketAddr)> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(address),
        _ => return None,
    };
    let socket = UnixDatagram::unbound().ok()?;
    // Full buffers must not hold up the agent.
    socket.set_nonblocking(true).ok()?;
    Some((socket, address.ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 2048];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    fn exchange(socket: &UnixDatagram, address: &OsStr) {
        let notifier = Notifier::new(Some(address), Some("3000000"));
        assert_eq!(notifier.watchdog_interval(), Some(Duration::from_millis(1500)));
        notifier.ready();
        notifier.status("installing 1.2.0\nREADY=0");
        notifier.status(&"é".repeat(1000));
        notifier.watchdog();
        notifier.stopping();
        assert_eq!(received(socket), "READY=1");
        assert_eq!(received(socket), "STATUS=installing 1.2.0 READY=0");
        assert!(received(socket).len() <= STATUS_BYTES);
        assert_eq!(received(socket), "WATCHDOG=1");
        assert_eq!(received(socket), "STOPPING=1");
    }

    #[test]
    fn messages_arrive_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        exchange(&UnixDatagram::bind(&path).unwrap(), path.as_os_str());
        let name = format!("fwagent-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        exchange(&socket, OsStr::new(&format!("@{name}")));
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        let addresses = ["", "relative", "@", "/nonexistent/notify"].map(OsStr::new);
        for address in addresses.into_iter().map(Some).chain([None]) {
            let notifier = Notifier::new(address, None);
            notifier.ready();
            notifier.watchdog();
            assert_eq!(notifier.watchdog_interval(), None);
        }
        for bad in ["", "0", "-1", "x", "99999999999999999999"] {
            assert_eq!(Notifier::new(None, Some(bad)).watchdog_interval(), None, "{bad}");
        }
    }

    #[test]
    fn a_manager_that_does_not_read_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _socket = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(Some(path.as_os_str()), Some("1"));
        for _ in 0..10_000 {
            notifier.watchdog();
        }
    }
}
