//! The unix socket at which the processes of a takeover meet, in a directory that only this user can enter.
//!
//! The file's name contains the network namespace, since daemons of several namespaces may see the same directory, and
//! `--takeover-name`.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock, mkdir, open},
    io::Errno,
    net::{SocketAddrUnix, bind, connect, listen},
    process::geteuid,
};
use thiserror::Error;

use super::{
    channel::{self, Channel},
    peer::{Identity, Role},
};

/// The default directory. systemd makes it for a unit with `RuntimeDirectory=snisplice`.
pub const DIRECTORY: &str = "/run/snisplice";

/// The greatest number of processes in the socket's queue.
const BACKLOG: i32 = 4;

/// Limit of another process's work on its socket.
const PATIENCE: Duration = Duration::from_secs(5);

/// The reason for which there is no usable socket.
#[derive(Debug, Error)]
pub enum SocketFileError {
    /// The directory does not exist, and cannot be made.
    #[error(
        "cannot make {0} for the takeover socket: {1}; make it (mode 0700, owned by this user), or give another directory \
         with --takeover-path"
    )]
    Make(PathBuf, io::Error),
    /// The directory cannot be inspected.
    #[error("cannot use {0} for the takeover socket: {1}; give another directory with --takeover-path")]
    Use(PathBuf, io::Error),
    /// The directory belongs to another user.
    #[error(
        "{path} belongs to user {owner}, and this process is of user {own}: who owns the directory of the takeover socket \
         could take all connections; remove it, or give another one with --takeover-path"
    )]
    Owner {
        /// The directory.
        path: PathBuf,
        /// The owner.
        owner: u32,
        /// This process's user.
        own: u32,
    },
    /// Other users can enter the directory.
    #[error(
        "others get into {path} (mode {mode:04o}), where the takeover socket is: chmod 0700 it, or give another directory \
         with --takeover-path"
    )]
    Mode {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Others can replace the directory.
    #[error(
        "others can replace what is in {0}, where the directory of the takeover socket is: give another directory with \
         --takeover-path, such as {DIRECTORY}"
    )]
    Parent(PathBuf),
    /// The name cannot be part of a file name.
    #[error(
        "{0:?} cannot be a --takeover-name: it becomes part of a file's name, so that it has no '/' and is not empty"
    )]
    Name(String),
    /// The path does not fit into an address.
    #[error("{0} is too long for a socket (107 bytes): give a shorter directory with --takeover-path")]
    Long(PathBuf),
}

/// The path of the socket, and its protection.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Locked while a process makes its socket.
    directory: OwnedFd,
    own: Identity,
    across: bool,
}

impl SocketFile {
    /// The socket file in `directory`, which is made if it does not exist, for daemons named `name`. `across` permits
    /// another mount namespace of the other process.
    ///
    /// # Errors
    ///
    /// Other users could reach the socket.
    pub fn new(directory: &Path, name: Option<&str>, across: bool) -> Result<Self, SocketFileError> {
        let unusable = |error: io::Error| SocketFileError::Use(directory.to_owned(), error);
        if let Some(name) = name.filter(|name| name.is_empty() || name.contains(['/', '\0'])) {
            return Err(SocketFileError::Name(name.to_owned()));
        }
        match mkdir(directory, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(SocketFileError::Make(directory.to_owned(), error.into())),
        }
        // A symbolic link is followed, as systemd makes one for units with a user of their own. The checks apply to its
        // target.
        let path = fs::canonicalize(directory).map_err(unusable)?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = open(&path, flags, Mode::empty()).map_err(|error| unusable(error.into()))?;
        check(&path).map_err(unusable)??;
        let network = fs::metadata("/proc/thread-self/ns/net").map_err(unusable)?.ino();
        let file = match name {
            None => format!("takeover-{network}"),
            Some(name) => format!("takeover-{network}-{name}"),
        };
        let path = path.join(file);
        SocketAddrUnix::new(&path).map_err(|_| SocketFileError::Long(path.clone()))?;
        Ok(Self { path, directory: opened, own: Identity::own().map_err(unusable)?, across })
    }

    /// Connects to the listening process. `None` if there is none.
    pub(super) fn connect(&self) -> io::Result<Option<Channel>> {
        match self.reach()? {
            Some(socket) => Channel::new(socket, &self.own, Role::Server, self.across),
            None => Ok(None),
        }
    }

    fn reach(&self) -> io::Result<Option<OwnedFd>> {
        let socket = channel::socket()?;
        match connect(&socket, &SocketAddrUnix::new(&self.path)?) {
            Ok(()) => Ok(Some(socket)),
            // No process has made the socket, or its process has ended and left it.
            Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for a process that connects to `listening`. `None` if that process has ended.
    pub(super) fn accept(&self, listening: &OwnedFd) -> io::Result<Option<Channel>> {
        Channel::new(channel::accept(listening)?, &self.own, Role::Client, self.across)
    }

    /// Listens on the socket, or on the one that another process has handed over.
    pub(super) fn listen(&self, inherited: Option<OwnedFd>) -> io::Result<OwnedFd> {
        let _lock = self.lock()?;
        if let Some(socket) = inherited.filter(|_| self.path.exists()) {
            // A second listen(2): a connecting process then sees this process as the listener.
            listen(&socket, BACKLOG)?;
            return Ok(socket);
        }
        if self.reach()?.is_some() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon runs here under this name"));
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = channel::socket()?;
        bind(&socket, &SocketAddrUnix::new(&self.path)?)?;
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o600))?;
        listen(&socket, BACKLOG)?;
        Ok(socket)
    }

    /// Removes the socket when this process ends.
    pub fn remove(&self) {
        // The next process replaces a socket that is left.
        let _ = fs::remove_file(&self.path);
    }

    /// Prevents other processes from making their socket meanwhile.
    fn lock(&self) -> io::Result<Lock<'_>> {
        let started = Instant::now();
        loop {
            match flock(&self.directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock(&self.directory)),
                Err(Errno::WOULDBLOCK) if started.elapsed() < PATIENCE => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

struct Lock<'d>(&'d OwnedFd);

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}

/// Whether only this user can change a directory. Its path has no symbolic links.
fn check(path: &Path) -> io::Result<Result<(), SocketFileError>> {
    let own = geteuid().as_raw();
    let directory = fs::metadata(path)?;
    if directory.uid() != own {
        return Ok(Err(SocketFileError::Owner { path: path.to_owned(), owner: directory.uid(), own }));
    }
    let mode = directory.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Ok(Err(SocketFileError::Mode { path: path.to_owned(), mode }));
    }
    // In a user namespace, root's files may belong to a user that no process can be.
    let root = fs::metadata("/")?.uid();
    for parent in path.ancestors().skip(1) {
        let directory = fs::metadata(parent)?;
        let (owner, mode) = (directory.uid(), directory.mode());
        let sticky = mode & 0o1000 != 0;
        if ![0, own, root].contains(&owner) || (mode & 0o022 != 0 && !sticky) {
            return Ok(Err(SocketFileError::Parent(parent.to_owned())));
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of mode 0700 of its own.
    fn directory() -> tempfile::TempDir {
        let owner_alone = fs::Permissions::from_mode(0o700);
        tempfile::Builder::new().permissions(owner_alone).tempdir().unwrap()
    }

    fn socket_file(directory: &Path, name: Option<&str>) -> SocketFile {
        SocketFile::new(directory, name, false).unwrap()
    }

    #[test]
    fn a_directory_is_made_for_its_owner_alone() {
        let within = directory();
        let path = within.path().join("run");
        socket_file(&path, None);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        // The second time, the directory exists.
        socket_file(&path, Some("other"));
    }

    #[test]
    fn a_directory_that_others_get_into_is_refused_with_a_remedy() {
        let within = directory();
        for mode in [0o755, 0o710, 0o701, 0o1777] {
            fs::set_permissions(within.path(), fs::Permissions::from_mode(mode)).unwrap();
            let error = SocketFile::new(within.path(), None, false).unwrap_err().to_string();
            assert!(error.contains("chmod 0700") && error.contains("--takeover-path"), "{error}");
        }
    }

    #[test]
    fn a_directory_that_others_can_replace_is_refused() {
        let within = directory();
        fs::set_permissions(within.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = SocketFile::new(&within.path().join("run"), None, false).unwrap_err();
        assert!(matches!(error, SocketFileError::Parent(_)), "{error}");
        // As in /tmp, where every user can make files, and remove only its own.
        fs::set_permissions(within.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        socket_file(&within.path().join("run"), None);
    }

    #[test]
    fn a_link_leads_where_systemd_has_the_directory() {
        let within = directory();
        fs::create_dir(within.path().join("private")).unwrap();
        fs::set_permissions(within.path().join("private"), fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink("private", within.path().join("run")).unwrap();
        assert!(
            socket_file(&within.path().join("run"), None).path.starts_with(within.path().join("private"))
        );
    }

    #[test]
    fn what_cannot_be_a_file_is_refused() {
        let within = directory();
        for name in ["", "a/b", "../x"] {
            let error = SocketFile::new(within.path(), Some(name), false).unwrap_err();
            assert!(matches!(error, SocketFileError::Name(_)), "{error}");
        }
        let long = within.path().join("x".repeat(120));
        assert!(matches!(SocketFile::new(&long, None, false).unwrap_err(), SocketFileError::Long(_)));
        let nowhere = within.path().join("not/there");
        assert!(matches!(SocketFile::new(&nowhere, None, false).unwrap_err(), SocketFileError::Make(..)));
    }

    #[test]
    fn one_daemon_of_a_name_listens_and_what_a_dead_one_left_is_replaced() {
        let within = directory();
        let socket_file = socket_file(within.path(), None);
        assert!(socket_file.connect().unwrap().is_none());
        let listening = socket_file.listen(None).unwrap();
        assert_eq!(socket_file.listen(None).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let other = SocketFile::new(within.path(), Some("other"), false).unwrap();
        assert!(other.connect().unwrap().is_none());
        assert!(socket_file.connect().unwrap().is_some());
        // As after a kill: the file exists, and no process listens.
        drop(listening);
        assert!(socket_file.path.exists() && socket_file.connect().unwrap().is_none());
        let listening = socket_file.listen(None).unwrap();
        assert_eq!(fs::metadata(&socket_file.path).unwrap().mode() & 0o777, 0o600);
        // A process that inherits the socket needs no other.
        let again = socket_file.listen(Some(listening.try_clone().unwrap())).unwrap();
        drop(listening);
        assert!(socket_file.connect().unwrap().is_some());
        drop(again);
        socket_file.remove();
        assert!(!socket_file.path.exists());
    }
}
