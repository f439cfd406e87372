#!/usr/bin/env bash
# Records the hellos of this directory again, from the clients that this machine has; the others are left as they
# are. Everything stays on loopback. README.md lists what each file must show, and the unit tests assert it.
#
#   userspace/tls/testdata/hellos/record.sh [NAME...]      all of them without a name
#
# Reads: RECORD_HELLO  the recorder, if it is already built (default: cargo run -p snisplice-tls --example record_hello)
#        ENVOY         the envoy binary, if it is not in PATH
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
work=$(mktemp -d)
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap cleanup EXIT

name=nginx.example.com
listen=127.0.0.1:4433
server=127.0.0.1:4434
if [[ -z ${RECORD_HELLO:-} ]]; then
    cargo build --quiet -p snisplice-tls --example record_hello
    RECORD_HELLO=$(cargo metadata --format-version 1 --no-deps |
        python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')/debug/examples/record_hello
fi

wanted=("$@")
chosen() { [[ ${#wanted[@]} -eq 0 || " ${wanted[*]} " == *" $1 "* ]]; }

# listening PID HOST:PORT      waits until the process listens, without a connection that the recorder would count
listening() {
    until ss -Hltn "sport = :${2#*:}" | grep -q .; do
        kill -0 "$1" || { echo "nothing listens on $2" >&2; exit 1; }
        sleep 0.05
    done
}

# record FILE COMMAND...      one connection, which is never answered
record() {
    local file=$1; shift
    chosen "$file" || return 0
    command -v "$1" >/dev/null || { echo "$file: $1 is not installed" >&2; return 0; }
    timeout 30 "$RECORD_HELLO" "$listen" "$here/$file.bin" 2>"$work/log" & local recorder=$!
    listening "$recorder" "$listen"
    timeout 20 "$@" </dev/null >"$work/client" 2>&1 || true
    wait "$recorder"
    echo "$file: $(<"$work/log")"
}

# resume FILE S_CLIENT-OPTIONS...      the second of two connections to a real server
resume() {
    local file=$1; shift
    chosen "$file" || return 0
    timeout 30 "$RECORD_HELLO" "$listen" "$here/$file.bin" "$server" 2 2>"$work/log" & local recorder=$!
    listening "$recorder" "$listen"
    local session
    for session in -sess_out -sess_in; do
        printf 'GET / HTTP/1.0\r\n\r\n' | timeout 20 openssl s_client -connect "$listen" -servername "$name" "$@" \
            -ign_eof "$session" "$work/session" >"$work/client" 2>&1 || true
    done
    wait "$recorder"
    echo "$file: $(tail -n1 "$work/log")"
}

# --- OpenSSL's own client -------------------------------------------------------------------------------------------
s_client=(openssl s_client -connect "$listen")
record openssl-tls13 "${s_client[@]}" -servername "$name" -tls1_3
record openssl-tls12 "${s_client[@]}" -servername "$name" -tls1_2
record openssl-tls10 "${s_client[@]}" -servername "$name" -tls1 -cipher DEFAULT@SECLEVEL=0
record openssl-alpn "${s_client[@]}" -servername "$name" -alpn h2,http/1.1,acme-tls/1
record openssl-noservername "${s_client[@]}" -noservername
record openssl-uppercase "${s_client[@]}" -servername NGINX.Example.COM
# OpenSSL writes what -servername says; RFC 6066 forbids an address there.
record openssl-address "${s_client[@]}" -servername 192.0.2.1
groups=X25519:P-256:P-384:P-521:X448:ffdhe2048:ffdhe3072:ffdhe4096:ffdhe6144:ffdhe8192
sigalgs=ed25519:ed448
for hash in SHA256 SHA384 SHA512 SHA224; do sigalgs+=":ECDSA+$hash:RSA+$hash:RSA-PSS+$hash"; done
record openssl-big "${s_client[@]}" -servername "$name" -curves "$groups" -sigalgs "${sigalgs//:RSA-PSS+SHA224/}" \
    -cipher ALL:COMPLEMENTOFALL@SECLEVEL=0 -alpn "$(seq -f 'example-protocol-%03g' -s , 200)"
# Longer than one record can be: OpenSSL itself splits it.
record openssl-two-records "${s_client[@]}" -servername "$name" -alpn "$(seq -f 'example-protocol-%04g' -s , 800)"
record openssl-fragments "${s_client[@]}" -servername "$name" -max_send_frag 512 -split_send_frag 512 \
    -alpn "$(seq -f 'example-protocol-%03g' -s , 60)"

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj "/CN=$name" \
    -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null
openssl s_server -accept "$server" -cert "$work/cert.pem" -key "$work/key.pem" -www \
    >/dev/null 2>&1 & pids+=($!)
listening $! "$server"
resume openssl-tls13-resumed -tls1_3
resume openssl-tls12-ticket -tls1_2

# --- Programs that use OpenSSL --------------------------------------------------------------------------------------
record curl curl -sk --connect-to "::$listen" "https://$name/"
record python-ssl python3 -c "
import socket, ssl
context = ssl.create_default_context()
with socket.create_connection(('127.0.0.1', 4433)) as plain:
    context.wrap_socket(plain, server_hostname='$name')"
record nodejs node -e "require('tls').connect({host: '127.0.0.1', port: 4433, servername: '$name',
    ALPNProtocols: ['h2', 'http/1.1']}).on('error', () => process.exit())"

cat >"$work/nginx.conf" <<CONF
daemon off; pid $work/nginx.pid; error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path $work; proxy_temp_path $work; fastcgi_temp_path $work; uwsgi_temp_path $work; scgi_temp_path $work;
    server { listen 127.0.0.1:4435; location / {
        proxy_pass https://$listen; proxy_ssl_server_name on; proxy_ssl_name $name; proxy_next_upstream off; } }
}
CONF
if command -v nginx >/dev/null && chosen nginx-upstream; then
    nginx -c "$work/nginx.conf" >/dev/null 2>&1 & pids+=($!)
    listening $! 127.0.0.1:4435
    record nginx-upstream curl -s http://127.0.0.1:4435/
fi

cat >"$work/haproxy.cfg" <<CONF
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
    retries 0
frontend plain
    bind 127.0.0.1:4436
    default_backend tls
backend tls
    server one $listen ssl verify none sni str($name) alpn h2,http/1.1
CONF
if command -v haproxy >/dev/null && chosen haproxy-upstream; then
    haproxy -db -f "$work/haproxy.cfg" >/dev/null 2>&1 & pids+=($!)
    listening $! 127.0.0.1:4436
    record haproxy-upstream curl -s http://127.0.0.1:4436/
fi

# --- Other implementations ------------------------------------------------------------------------------------------
record gnutls gnutls-cli --insecure --sni-hostname="$name" --alpn=h2 -p "${listen#*:}" 127.0.0.1

cat >"$work/main.go" <<CODE
package main

import "crypto/tls"

func main() { tls.Dial("tcp", "$listen", &tls.Config{ServerName: "$name", NextProtos: []string{"h2", "http/1.1"}}) }
CODE
record go go run "$work/main.go"

cat >"$work/Client.java" <<CODE
import java.util.List;
import javax.net.ssl.*;

class Client {
    public static void main(String[] args) throws Exception {
        var socket = (SSLSocket) SSLSocketFactory.getDefault().createSocket("127.0.0.1", 4433);
        var parameters = socket.getSSLParameters();
        parameters.setServerNames(List.of(new SNIHostName("$name")));
        parameters.setApplicationProtocols(new String[] {"h2", "http/1.1"});
        socket.setSSLParameters(parameters);
        socket.startHandshake();
    }
}
CODE
record java java "$work/Client.java"

# rustls: the post-quantum default (aws-lc-rs) and ring.
for provider in aws_lc_rs ring; do
    chosen "rustls-${provider//_/-}" || continue
    features='"std", "tls12", "'$provider'"'
    [[ $provider == ring ]] || features+=', "prefer-post-quantum"'
    mkdir -p "$work/$provider/src"
    cat >"$work/$provider/Cargo.toml" <<CONF
[package]
name = "client"
edition = "2024"
[dependencies]
rustls = { version = "0.23", default-features = false, features = [$features] }
[workspace]
CONF
    cat >"$work/$provider/src/main.rs" <<CODE
use std::{io::Read, net::TcpStream, sync::Arc};

fn main() {
    let mut config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tls = rustls::ClientConnection::new(Arc::new(config), "$name".try_into().unwrap()).unwrap();
    let tcp = TcpStream::connect("$listen").unwrap();
    let _ = rustls::StreamOwned::new(tls, tcp).read(&mut [0]);
}
CODE
    cargo build --quiet --manifest-path "$work/$provider/Cargo.toml" --target-dir "$work/$provider/target"
    record "rustls-${provider//_/-}" "$work/$provider/target/debug/client"
done

cat >"$work/envoy.yaml" <<CONF
static_resources:
  listeners:
  - address: { socket_address: { address: 127.0.0.1, port_value: 4437 } }
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tcp
          cluster: tls
  clusters:
  - name: tls
    type: STATIC
    load_assignment:
      cluster_name: tls
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 4433 } } }
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: $name
        common_tls_context: { alpn_protocols: [h2, http/1.1] }
CONF
envoy=${ENVOY:-$(command -v envoy || true)}
if [[ -n $envoy ]] && chosen envoy-upstream; then
    "$envoy" -c "$work/envoy.yaml" --use-dynamic-base-id >/dev/null 2>&1 & pids+=($!)
    listening $! 127.0.0.1:4437
    record envoy-upstream curl -s http://127.0.0.1:4437/
fi

record chromium chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
    --disable-background-networking --disable-component-update --disable-sync --user-data-dir="$work/profile" \
    --host-resolver-rules="MAP $name $listen" --dump-dom "https://$name/"
