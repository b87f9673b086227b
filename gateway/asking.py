"""Who is asked about: the peer that `mqtt-gateway explain` puts before the policy.

A certificate is judged exactly as at admission (issuer, dates, CRL, deny list) when a gateway configuration is given;
with a policy alone there are no CAs to verify it by, and only its names are read. An id without a certificate is a
hypothetical device of the named issuing CA. The server's key is not read, so no root is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.config import GatewayConfig
from gateway.policy import Policy
from gateway.registry import Registry
from gateway.security import load_crls, load_deny_list
from mtls.clock import Moment
from mtls.errors import ConfigFault, Fault, Reason, Refusal
from mtls.identity import UNREADABLE, DeviceId, identity_of, quiet_parser
from mtls.judgement import Peer, facts_of, peer_of, standing
from mtls.keystore import read_limited
from mtls.profiles import common_name, spki_sha256
from mtls.trust import TrustStore

_ANY_DAY: Final = datetime(2000, 1, 1, tzinfo=UTC)  # a hypothetical device has no dates


@dataclass(frozen=True, slots=True)
class Rules:
    """The policy to be asked, and the configuration around it when there is one."""

    policy: Policy
    config: GatewayConfig | None
    trust: TrustStore | None
    registry: Registry

    @classmethod
    def load(cls, config_file: Path | None, policy_file: Path | None) -> Rules:
        """Read what was named; the policy of the configuration unless another is named."""
        config = GatewayConfig.load(config_file) if config_file is not None else None
        if policy_file is None:
            if config is None:
                raise Fault("neither a configuration nor a policy is named", hint="give --config or --policy")
            policy_file = config.policy.file
        trust = None
        if config is not None:
            ca_file = config.listener.ca_file
            trust = TrustStore.from_pem(read_limited(ca_file), str(ca_file))
        registry = Registry()
        if config is not None:
            registry = Registry.load(config.policy.registry, required=config.policy.registry_required)
        return cls(Policy.load(policy_file), config, trust, registry)


def peer_of_file(path: Path, rules: Rules, now: Moment) -> Peer | Refusal:
    """The peer of a certificate file, or why its certificate would be refused."""
    certificate = _certificate(path)
    if rules.config is None or rules.trust is None:
        try:
            return _unverified(certificate, rules.policy)
        except UNREADABLE:
            return Refusal(Reason.CERTIFICATE_UNREADABLE, "the certificate cannot be parsed")
    peer = peer_of(certificate.public_bytes(Encoding.DER), rules.trust, rules.policy.identity)
    if isinstance(peer, Refusal):
        return peer
    listener = rules.config.listener
    refusal = rules.registry.refusal(peer.id) or rules.policy.issuer_refusal(peer)
    refusal = refusal or standing(
        peer,
        trust=rules.trust,
        crls=load_crls(rules.config, rules.trust),
        stale=listener.crl_stale,
        deny=load_deny_list(listener.deny_file),
        now=now,
    )
    return refusal or peer


def peer_named(device_id: str, issuer: str | None, ou: tuple[str, ...], rules: Rules) -> Peer:
    """A hypothetical device; Fault when it is not clear which CA it would be of."""
    try:
        identity = DeviceId(device_id)
    except ValueError as error:
        raise Fault(f"{device_id!a} is no device id: {error}", hint="give the id as it stands in the policy") from error
    names = _known_issuers(rules)
    if issuer is None and len(names) > 1:
        raise Fault(
            f"there are {len(names)} issuing CAs", hint="name one with --issuer: " + ", ".join(sorted(set(names)))
        )
    name = issuer if issuer is not None else next(iter(names), "")
    return Peer(identity, name, names.get(name, ""), ou, (), "", "", _ANY_DAY, _ANY_DAY, b"")


def _known_issuers(rules: Rules) -> dict[str, str]:
    """Common name and key of the CAs that may sign devices: the trusted ones, else those of the policy."""
    if rules.trust is not None:
        authorities = rules.trust.issuing or rules.trust.roots
        return {common_name(ca.subject): spki_sha256(ca) for ca in authorities}
    return {issuer.subject_cn: issuer.spki_sha256 for issuer in rules.policy.issuers}


def _certificate(path: Path) -> x509.Certificate:
    data = read_limited(path)
    try:
        if b"-----BEGIN" in data:
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)
    except UNREADABLE as error:
        raise ConfigFault(f"{path} holds no readable certificate", hint="name a certificate in PEM or DER") from error


def _unverified(certificate: x509.Certificate, policy: Policy) -> Peer | Refusal:
    """The names of a certificate as they stand; who signed it is not known."""
    with quiet_parser():
        identity = identity_of(certificate, policy.identity)
    if isinstance(identity, Refusal):
        return identity
    issuer = common_name(certificate.issuer)
    keys = {rule.spki_sha256 for rule in policy.issuers if rule.subject_cn == issuer}
    der = certificate.public_bytes(Encoding.DER)
    return facts_of(certificate, der, identity, issuer, keys.pop() if len(keys) == 1 else "")
