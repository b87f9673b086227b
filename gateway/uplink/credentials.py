"""Who this gateway is upstream, and with what it proves that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtls.errors import ConfigFault, Refusal
from mtls.identity import IdentityRule, identity_of
from mtls.keystore import load_certificate
from mtls.tls import client_context

if TYPE_CHECKING:
    import ssl

    from gateway.uplink.settings import UplinkConfig


def gateway_name(config: UplinkConfig) -> str:
    """What this gateway is called upstream: the one identity of its certificate. ConfigFault when it has none."""
    certificate = load_certificate(config.cert_file, "[uplink] cert_file must be PEM, the leaf first")
    name = identity_of(certificate, IdentityRule())
    if isinstance(name, Refusal):
        raise ConfigFault(
            f"[uplink] cert_file {config.cert_file} names no gateway: {name}", hint="it needs exactly one common name"
        )
    return str(name)


def upstream_context(config: UplinkConfig) -> ssl.SSLContext:
    """TLS towards the upstream; ConfigFault names the file that cannot be used."""
    return client_context(ca_file=config.ca_file, cert_file=config.cert_file, key_file=config.key_file)
