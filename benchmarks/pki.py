"""Certificates for a run, made in this process from the product's profiles: a CA, a server, clients by name.

Thousands are made in seconds: there is no ledger and no fsync, because they are thrown away with the folder.
"""

from datetime import UTC, datetime
from pathlib import Path

from mtls.keystore import key_pem, new_key
from mtls.profiles import DEVICE_OPERATIONAL, GATEWAY_SERVER, ISSUING_CA, ROOT_CA, Issuer
from mtls.trust import to_pem

BACKEND = "backend"


def device_names(count: int) -> list[str]:
    """All of one length, so that every message of a kind of work has the same size."""
    return [f"dev{number:05}" for number in range(count)]


class Pki:
    """A folder with ca.crt, server.crt, server.key, and NAME.crt and NAME.key for everyone who was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca_file = folder / "ca.crt"
        now, root_key, issuing_key = datetime.now(UTC), new_key(), new_key()
        root = ROOT_CA.build(
            subject_cn="bench Root CA", public_key=root_key.public_key(), issuer=None, key=root_key, now=now
        )
        issuing = ISSUING_CA.build(
            subject_cn="bench CA", public_key=issuing_key.public_key(), issuer=Issuer(root, root_key), now=now
        )
        self._issuer, self._now = Issuer(issuing, issuing_key), now
        self.ca_file.write_bytes(to_pem([root, issuing]))
        key = new_key()
        server = GATEWAY_SERVER.build(
            subject_cn="localhost",
            public_key=key.public_key(),
            dns=("localhost",),
            ips=("127.0.0.1",),
            issuer=self._issuer,
            now=now,
        )
        self._write("server", to_pem([server, issuing]), key_pem(key))

    def credential(self, name: str) -> tuple[Path, Path]:
        """Certificate and key file of a client, made when they are not there yet."""
        cert_file, key_file = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        if not cert_file.exists():
            key = new_key()
            leaf = DEVICE_OPERATIONAL.build(
                subject_cn=name, public_key=key.public_key(), issuer=self._issuer, now=self._now
            )
            self._write(name, to_pem([leaf, self._issuer.certificate]), key_pem(key))
        return cert_file, key_file

    def _write(self, name: str, certificates: bytes, key: bytes) -> None:
        key_file = self.folder / f"{name}.key"
        key_file.touch(mode=0o600)
        key_file.write_bytes(key)
        (self.folder / f"{name}.crt").write_bytes(certificates)
