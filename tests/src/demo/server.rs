//! The services: TLS servers that speak just enough HTTP for a browser.

use std::sync::Arc;

use anyhow::Result;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

/// The size of the response to `GET /page`, in bytes.
pub(crate) const PAGE: usize = 64 * 1024;

/// Responds to every connection with `says`, until dropped.
pub(crate) async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, says: &'static str) {
    let acceptor = TlsAcceptor::from(tls);
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // A client that disconnects early is no fault.
            let _ = answer(stream, acceptor, says).await;
        });
    }
}

async fn answer(stream: TcpStream, acceptor: TlsAcceptor, says: &str) -> Result<()> {
    let mut stream = BufStream::new(acceptor.accept(stream).await?);
    let mut request = String::new();
    while stream.read_line(&mut request).await? > 0 {
        let mut header = String::new();
        while stream.read_line(&mut header).await? > 2 {
            header.clear();
        }
        let page = request.starts_with("GET /page ");
        let body = if page { vec![b'.'; PAGE] } else { format!("{says}\n").into_bytes() };
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await?;
        stream.flush().await?;
        request.clear();
    }
    Ok(stream.shutdown().await?)
}
