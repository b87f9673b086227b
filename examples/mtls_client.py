#!/usr/bin/env python3
"""A TLS and a mutual-TLS client in plain Python, with nothing but the standard library.

    python mtls_client.py localhost 8443 --ca ca.crt                                        the server proves itself
    python mtls_client.py localhost 8443 --ca ca.crt --cert press-07.crt --key press-07.key   and so do we

The first form is what a browser does: the client checks that the server's chain ends at a root in `ca.crt`, that
it is valid today and that it names the host. In the second form the server also asks for our certificate: we send
it, with the issuing CA that stands behind it in the same file, and sign the handshake with our key.

A server that requires a certificate ends differently for those who have none: nginx finishes the handshake and
answers 400, an MQTT gateway ends the handshake with an alert. With TLS 1.3 the alert comes only with our first read,
because our side of the handshake is over before the server has seen that the certificate is missing.
"""

import argparse
import http.client
import ssl
import sys


def tls_context(ca_file: str) -> ssl.SSLContext:
    """For a client that checks the server and shows nothing of itself."""
    # PROTOCOL_TLS_CLIENT turns the check of chain and host name on. Without cafile the system's public
    # roots would be trusted as well, and any of them could vouch for our server.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def mutual_tls_context(ca_file: str, cert_file: str, key_file: str) -> ssl.SSLContext:
    """The same, with a certificate and key of our own to show when the server asks."""
    context = tls_context(ca_file)
    context.load_cert_chain(cert_file, key_file)  # fails at once when the key is not the certificate's
    return context


def get(host: str, port: int, context: ssl.SSLContext, path: str = "/") -> tuple[int, str]:
    """One HTTPS request: status and body. ssl.SSLError when the handshake fails."""
    connection = http.client.HTTPSConnection(host, port, context=context, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(65536).decode("utf-8", "replace")
    finally:
        connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="one HTTPS request, with or without a client certificate")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--ca", required=True, help="root certificates to trust, PEM")
    parser.add_argument("--cert", help="our certificate and the issuing CA, PEM")
    parser.add_argument("--key", help="our private key, PEM")
    options = parser.parse_args()
    if options.cert and options.key:
        context = mutual_tls_context(options.ca, options.cert, options.key)
    else:
        context = tls_context(options.ca)
    try:
        status, body = get(options.host, options.port, context)
    except ssl.SSLCertVerificationError as error:
        print(f"error: the server's certificate was refused: {error.verify_message}", file=sys.stderr)
        return 1
    except ssl.SSLError as error:
        print(f"error: the server refused us: {error.reason}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: no connection to {options.host}:{options.port}: {error}", file=sys.stderr)
        return 1
    print(status, body.strip())
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
