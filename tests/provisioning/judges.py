"""Judges that share no code with what they judge: OpenSSL's command and the standard library's TLS."""

import ssl
import subprocess
from pathlib import Path


def openssl_verify(leaf: Path, *, ca: Path, crl: Path | None = None, purpose: str = "") -> tuple[bool, str]:
    """`openssl verify -x509_strict` with only the self-signed root as an anchor; (accepted, what it printed)."""
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(ca)]
    if crl is not None:
        command += ["-crl_check_all", "-CRLfile", str(crl)]
    if purpose:
        command += ["-purpose", purpose]
    done = subprocess.run([*command, str(leaf)], capture_output=True, text=True, check=False, timeout=30)
    return done.returncode == 0, done.stdout + done.stderr


def openssl_text(kind: str, path: Path) -> str:
    """`openssl x509|crl|req -text` of a PEM file."""
    command = ["openssl", kind, "-in", str(path), "-noout", "-text"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def handshake(
    *, server: tuple[Path, Path], client: tuple[Path, Path] | None, ca: Path, server_ca: Path | None = None
) -> str:
    """A mutual TLS handshake in memory; returns the client's common name as the server saw it.

    `ca` is whom the server trusts, `server_ca` whom the client trusts (by default the same). Raises ssl.SSLError.
    """
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.verify_mode = ssl.CERT_REQUIRED
    accepting.verify_flags |= ssl.VERIFY_X509_STRICT
    accepting.load_verify_locations(ca)
    accepting.load_cert_chain(*server)
    connecting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    connecting.verify_flags |= ssl.VERIFY_X509_STRICT
    connecting.load_verify_locations(server_ca or ca)
    if client is not None:
        connecting.load_cert_chain(*client)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side = connecting.wrap_bio(to_client, to_server, server_hostname="gateway.test")
    server_side = accepting.wrap_bio(to_server, to_client, server_side=True)
    pending = {client_side, server_side}
    for _ in range(10):
        for side in tuple(pending):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            pending.discard(side)
        if not pending:
            break
    leaf = server_side.getpeercert(binary_form=True)
    assert leaf is not None
    done = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-noout", "-subject", "-nameopt", "RFC2253"],
        input=leaf,
        capture_output=True,
        check=True,
        timeout=30,
    )
    return done.stdout.decode().strip().removeprefix("subject=CN=")
