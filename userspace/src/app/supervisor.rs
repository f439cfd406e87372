//! Reports the state of the process to the service manager: the protocol of `sd_notify(3)`.
//!
//! No call blocks: a message that the manager does not accept at once is lost. (The crates for this protocol block.)

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

use rustix::time::{ClockId, clock_gettime};

/// The service manager, if it accepts notifications.
#[derive(Debug)]
pub(super) struct Supervisor(Option<UnixDatagram>);

impl Supervisor {
    /// The manager that `NOTIFY_SOCKET` names.
    pub(super) fn of_environment() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Self(None) };
        match connect(&name) {
            Ok(socket) => Self(Some(socket)),
            Err(error) => {
                tracing::warn!(?name, %error, "cannot notify the service manager");
                Self(None)
            }
        }
    }

    /// The process serves, also again after a reload. `status` is text for people.
    pub(super) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// The configuration is being read again. The timestamp distinguishes this reload from an earlier one: systemd
    /// 253.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}\nSTATUS=Reading the configuration"));
    }

    /// The process drains and ends.
    pub(super) fn stopping(&self, status: &str) {
        self.tell(&format!("STOPPING=1\nSTATUS={status}"));
    }

    /// Another process has taken over, and this one drains. Within one service, the new process becomes the main
    /// process. From a service of its own, it leaves this process to end.
    pub(super) fn succeeded_by(&self, process: i32) {
        let service = |process: &str| fs::read(format!("/proc/{process}/cgroup")).ok();
        let own = service("self");
        if own.is_some() && own == service(&process.to_string()) {
            self.tell(&format!("MAINPID={process}\nSTATUS=Serving"));
        } else {
            self.stopping("Another process has taken over; waiting for the open connections");
        }
    }

    fn tell(&self, state: &str) {
        if let Some(socket) = &self.0 {
            // The service manager detects a lost message by other means.
            let _ = socket.send(state.as_bytes());
        }
    }
}

/// A name with a leading `@` is in the abstract namespace.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_kind_of_name_is_reached_and_nobody_waits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let named = format!("snisplice-test-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&named).unwrap();
        for (manager, name) in [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (UnixDatagram::bind_addr(&abstract_name).unwrap(), format!("@{named}").into()),
        ] {
            let supervisor = Supervisor(Some(connect(&name).unwrap()));
            supervisor.ready("Serving");
            supervisor.reloading();
            let mut message = [0; 200];
            let count = manager.recv(&mut message).unwrap();
            assert_eq!(&message[..count], b"READY=1\nSTATUS=Serving");
            let count = manager.recv(&mut message).unwrap();
            let text = std::str::from_utf8(&message[..count]).unwrap();
            let moment =
                text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|rest| rest.split('\n').next());
            assert!(
                moment.is_some_and(|moment| moment.parse::<u64>().is_ok_and(|moment| moment > 0)),
                "{text}"
            );
            // The receiver no longer reads.
            for _ in 0..10_000 {
                supervisor.stopping("Draining");
            }
        }
    }
}
