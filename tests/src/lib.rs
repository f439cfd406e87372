//! Guards and peers that the end-to-end tests share: network namespaces, real servers and clients, the daemon.
