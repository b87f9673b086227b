"""A site whose gateway renews certificates, and curl and openssl as its EST client."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mtls.keystore import key_pem, new_key, write_private, write_public
from mtls.profiles import ISSUING_CA, Issuer
from mtls.revocation import build_crl
from mtls.trust import to_pem
from tests.gateway.site import Site
from tests.integration.programs import attempt, free_port, run
from tests.support.pki import Credential, Pki, now


@dataclass(frozen=True, slots=True)
class Answer:
    """What curl got."""

    status: int
    content_type: str
    body: bytes


class EstSite(Site):
    """A site with an issuing CA of its own, below the root of `pki`."""

    def __init__(
        self, folder: Path, pki: Pki, *, enrolment: Mapping[str, Any] = {}, **tables: Mapping[str, Any]
    ) -> None:
        self.ca_folder = folder / "site-ca"
        self.ca_folder.mkdir()
        key = new_key()
        certificate = ISSUING_CA.build(
            subject_cn="test site CA", public_key=key.public_key(), issuer=pki.root, now=now()
        )
        self.issuer = Issuer(certificate, key)
        crl = build_crl(self.issuer, [], now=now(), number=1, lifetime=certificate.not_valid_after_utc - now())
        write_public(self.ca_folder / "issuing.crt", to_pem([certificate]))
        write_private(self.ca_folder / "issuing.key", key_pem(key))
        write_public(self.ca_folder / "issuing.crl", crl.public_bytes(Encoding.PEM))
        write_public(folder / "all-ca.crt", pki.ca_file.read_bytes() + to_pem([certificate]))
        self.port = free_port()
        super().__init__(
            folder,
            pki,
            listener={"ca_file": "all-ca.crt"},
            time={"source": "clock"},
            **{
                "enrolment": {
                    "bind": f"127.0.0.1:{self.port}",
                    "issuing_ca_dir": "site-ca",
                    "renew_window": 1.0,
                    **enrolment,
                },
                **tables,
            },
        )

    def url(self, operation: str) -> str:
        return f"https://localhost:{self.port}/.well-known/est/{operation}"

    def curl(self, operation: str, *words: str | Path, who: Credential | None = None) -> Answer:
        """One request; the status is 0 when there was no answer."""
        output = self.folder / "curl.out"
        output.unlink(missing_ok=True)
        shown = ["--cert", who.cert_file, "--key", who.key_file] if who is not None else []
        seen = "%{http_code} %{content_type}"
        command = [
            "curl",
            "-s",
            "--cacert",
            self.pki.root_file,
            *shown,
            "-o",
            output,
            "-w",
            seen,
            *words,
            self.url(operation),
        ]
        status, _, content_type = attempt(*command).stdout.partition(" ")
        return Answer(int(status), content_type, output.read_bytes() if output.exists() else b"")

    def renew(self, who: Credential, body: bytes, *, content_type: str = "application/pkcs10") -> Answer:
        """POST a body to /simplereenroll."""
        file = self.folder / "request"
        file.write_bytes(body)
        words = ("-H", f"Content-Type: {content_type}", "--data-binary", f"@{file}")
        return self.curl("simplereenroll", *words, who=who)

    def record(self) -> list[dict[str, str]]:
        """What the gateway has issued."""
        return [json.loads(line) for line in (self.ca_folder / "issued.jsonl").read_text().splitlines()]


def due(pki: Pki, device_id: str, *, lived: int = 61, left: int = 29) -> Credential:
    """A device certificate of our profile that has lived for two thirds of its life and a day; times in days."""
    urn = x509.UniformResourceIdentifier(f"urn:mtls-gateway:device:{device_id}")
    return pki.raw_leaf(
        cn=device_id, san=[urn], not_before=now() - timedelta(days=lived), not_after=now() + timedelta(days=left)
    )


def csr(
    folder: Path, device_id: str, *, san: str | None = None, subject: str | None = None, key: Path | None = None
) -> bytes:
    """A CSR in DER as openssl makes it, with the names that our certificates have."""
    key_file = key or folder / f"{device_id}.new.key"
    if key is None:
        run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key_file)
    names = san if san is not None else f"URI:urn:mtls-gateway:device:{device_id}"
    words = ["-addext", f"subjectAltName={names}"] if names else []
    der = folder / "request.der"
    subject = subject or f"/CN={device_id}"
    run("openssl", "req", "-new", "-key", key_file, "-subj", subject, *words, "-outform", "DER", "-out", der)
    return der.read_bytes()


def in_lines(der: bytes) -> bytes:
    """Base64 with line breaks; `base64.b64encode` gives it without."""
    return base64.encodebytes(der)


def certificates_in(body: bytes) -> list[x509.Certificate]:
    """The certificates of a reply, read by openssl."""
    der = subprocess.run(["openssl", "base64", "-d"], input=body, capture_output=True, check=True).stdout
    command = ["openssl", "pkcs7", "-inform", "DER", "-print_certs"]
    pem = subprocess.run(command, input=der, capture_output=True, check=True).stdout
    return x509.load_pem_x509_certificates(pem)
