"""The security set: everything that admission and authorization judge by, read and verified as one.

A reload reads all files, verifies them together and swaps the whole set at once; a fault in any of them leaves the
set in force untouched. A CRL that is configured and cannot be used is special at the start only: it is part of the
set and refuses everybody whom it would cover, because going on without it would be going on blindly. At a reload the
older, verified CRL is still there and stays in force.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Final

from cryptography import x509

from gateway.config import GatewayConfig
from gateway.enrolment.authority import CRL, load_issuer
from gateway.policy import Grants, Policy
from gateway.policy.shadow import Shadow, ShadowedPolicy
from gateway.registry import Registry
from gateway.timekeeping import wall_clock
from gateway.uplink.check import check_uplink
from mtls.clock import Moment
from mtls.errors import ConfigFault, Reason, Refusal
from mtls.judgement import KnownPeers, Peer
from mtls.keystore import load_certificate, read_limited
from mtls.profiles import Issuer, common_name, spki_sha256
from mtls.revocation import MAX_CRL_BYTES, CrlSet, DenyList, StaleRule
from mtls.terminal import sanitise
from mtls.tls import leave_dates, server_context
from mtls.trust import TrustStore

RENEW_AFTER: Final = 2 / 3  # of a certificate's life: what is left is time to find out why a renewal fails


@dataclass(frozen=True, slots=True)
class SecurityState:
    """One consistent set. `crls` is None when the site has configured no CRL."""

    config: GatewayConfig
    trust: TrustStore
    crls: CrlSet | None
    stale: StaleRule
    deny: DenyList
    policy: Policy
    registry: Registry
    ssl_context: ssl.SSLContext
    loaded_at: datetime
    issuer: Issuer | None  # of [enrolment]
    enrolment_context: ssl.SSLContext | None
    server_not_before: datetime
    server_not_after: datetime
    floors: Mapping[str, datetime] = field(default_factory=dict)
    file_warnings: tuple[str, ...] = ()
    peers: KnownPeers = field(init=False, repr=False, compare=False)  # of this trust and this rule, gone with them

    def __post_init__(self) -> None:
        object.__setattr__(self, "peers", KnownPeers(self.trust, self.policy.identity))

    def context_at(self, now: Moment) -> ssl.SSLContext:
        """The TLS context for a handshake; while the clock is not synchronised, dates are for our own code alone."""
        leave_dates(self.ssl_context, own_dates=bool(self.stale.grace) or not now.synced)
        return self.ssl_context

    @property
    def shadow(self) -> Shadow | None:
        """The policy that is judged beside the active one."""
        return self.policy.shadow if isinstance(self.policy, ShadowedPolicy) else None

    def grants(self, peer: Peer, client_id: str) -> Grants | Refusal:
        """The rights of an admitted peer under this client identifier, by all that is known of it."""
        return self.policy.admit(peer, client_id, self.registry.attributes(peer.id))

    def ends_between(self, before: datetime, now: datetime) -> bool:
        """Whether a CA or a CRL in force ran out after `before` and until `now`."""
        entries = self.crls.entries.values() if self.crls is not None else ()
        ends = [ca.not_valid_after_utc for ca in (*self.trust.roots, *self.trust.issuing)]
        ends += [entry.next_update + self.stale.grace for entry in entries if entry.next_update is not None]
        return any(before <= end < now for end in ends)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an operator should know and may want to change, when the set was loaded."""
        return self.warnings_at(self.loaded_at)

    def warnings_at(self, now: datetime) -> tuple[str, ...]:
        """The same as of now: the server certificate grows old while the gateway runs."""
        found = list(self.file_warnings)
        cert_file, life = self.config.listener.cert_file, self.server_not_after - self.server_not_before
        if self.server_not_after <= now:
            found.append(f"{cert_file} expired on {self.server_not_after:%Y-%m-%d}: no client will trust it")
        elif now > self.server_not_before + life * RENEW_AFTER:
            found.append(f"{cert_file} should be renewed: it expires on {self.server_not_after:%Y-%m-%d}")
        if self.crls is None:
            found.append("no [listener] crl_file: a revoked certificate is refused only by the deny list")
        else:
            found += [f"the CRL file cannot be used and its CA is refused: {fault}" for fault in self.crls.faults]
        return tuple(found)


def load_security(config: GatewayConfig, now: Moment | None = None, *, serving: bool = False) -> SecurityState:
    """Read and verify everything that `config` names; ConfigFault with file and key for the first thing that fails.

    `now` None: the machine's clock, taken at its word. `serving`: for a gateway that runs, whose uplink stays as it is
    until the next start. What is wrong with that is a warning then, for no CRL may wait for it.
    """
    now = now or wall_clock()
    listener = config.listener
    trust = TrustStore.from_pem(read_limited(listener.ca_file), str(listener.ca_file))
    crls = load_crls(config, trust)
    deny = load_deny_list(listener.deny_file)
    policy, warnings = _load_policy(config, trust)
    try:
        check_uplink(config)
    except ConfigFault as fault:
        if not serving:
            raise
        warnings = (*warnings, f"the next start will fail: {fault}")
    issuer = load_issuer(config.enrolment.issuing_ca_dir, trust) if config.enrolment is not None else None
    context_for = partial(
        server_context,
        cert_file=listener.cert_file,
        key_file=listener.key_file,
        trust=trust,
        crls_pem=crls.pem if crls is not None and crls.entries else None,
        own_dates=bool(listener.crl_stale.grace),
        min_tls=listener.min_tls,
    )
    leaf = load_certificate(listener.cert_file, "[listener] cert_file must be PEM, the leaf first")
    return SecurityState(
        config=config,
        trust=trust,
        crls=crls,
        stale=listener.crl_stale,
        deny=deny,
        policy=policy,
        registry=Registry.load(config.policy.registry, required=config.policy.registry_required),
        ssl_context=context_for(),
        issuer=issuer,
        enrolment_context=context_for(optional_client=True) if issuer is not None else None,
        loaded_at=now.at,
        server_not_before=leaf.not_valid_before_utc,
        server_not_after=leaf.not_valid_after_utc,
        floors=dict(sorted(_floors(leaf, trust, crls), key=itemgetter(1))),  # of one name the newer one counts
        file_warnings=warnings,
    )


def _load_policy(config: GatewayConfig, trust: TrustStore) -> tuple[Policy, tuple[str, ...]]:
    """The policy, with its shadow if one is configured, and what of both deserves a warning."""
    if config.policy.shadow_file is None:
        policy = Policy.load(config.policy.file)
        return policy, _checked(policy, trust)
    shadowed, shadow = ShadowedPolicy.load(config.policy.file), Policy.load(config.policy.shadow_file)
    shadowed.cast(shadow)
    warnings = (f"shadow policy: {warning}" for warning in _checked(shadow, trust))
    return shadowed, (*_checked(shadowed, trust), *warnings)


def _checked(policy: Policy, trust: TrustStore) -> tuple[str, ...]:
    """The policy's warnings; ConfigFault when it trusts CAs by name where names are not enough."""
    names = [(common_name(ca.subject), spki_sha256(ca)) for ca in (*trust.issuing, *trust.roots)]
    checked = policy.check_trust(len(trust.roots), names)
    if checked.faults:
        raise checked.faults[0]
    return (*policy.warnings, *checked.warnings)


def _floors(leaf: x509.Certificate, trust: TrustStore, crls: CrlSet | None) -> Iterator[tuple[str, datetime]]:
    """Times that have certainly passed: a CA or the maker of our certificate has signed them."""
    yield "notBefore of the server certificate", leaf.not_valid_before_utc
    for authority in (*trust.roots, *trust.issuing):
        yield f"notBefore of {sanitise(common_name(authority.subject), 64)!a}", authority.not_valid_before_utc
    for entry in crls.entries.values() if crls is not None else ():
        yield f"thisUpdate of the CRL of {entry.issuer_cn!a}", entry.this_update


def check_replacement(old: SecurityState, new: SecurityState) -> None:
    """ConfigFault when `new` would lose a CRL that `old` has: a damaged file must not lock a whole fleet out.

    To go on without CRLs, take crl_file out of the configuration.
    """
    if old.crls is None or new.crls is None:
        return
    for authority in (*new.trust.issuing, *new.trust.roots):
        key = spki_sha256(authority)
        if key in old.crls.entries and key not in new.crls.entries:
            file, name = new.config.listener.crl_file, common_name(authority.subject)
            why = f" ({new.crls.faults[0].detail})" if new.crls.faults else ""
            raise ConfigFault(
                f"{file} holds no usable CRL of {name!a} any more{why}",
                hint="the CRLs in force stay in force; publish a new one with mqtt-provision crl",
            )


def watched_files(config: GatewayConfig) -> tuple[Path, ...]:
    """The files whose change means a reload."""
    listener, enrolment = config.listener, config.enrolment
    named = (
        listener.cert_file,
        listener.key_file,
        listener.ca_file,
        listener.crl_file,
        enrolment.issuing_ca_dir / CRL if enrolment is not None else None,
        listener.deny_file,
        config.policy.file,
        config.policy.shadow_file,
        config.policy.registry,
    )
    return tuple(path for path in named if path is not None)


def load_crls(config: GatewayConfig, trust: TrustStore) -> CrlSet | None:
    """The CRLs of a configuration: None when it has no crl_file, a set that refuses when the file cannot be used.

    The CRL of the gateway's own issuing CA lies beside its key: nobody else publishes it.
    """
    listener, enrolment = config.listener, config.enrolment
    if listener.crl_file is None:
        return None
    try:
        pem = read_limited(listener.crl_file, MAX_CRL_BYTES)
        if enrolment is not None and (enrolment.issuing_ca_dir / CRL).exists():
            pem += b"\n" + read_limited(enrolment.issuing_ca_dir / CRL, MAX_CRL_BYTES)
    except ConfigFault as fault:
        return CrlSet.unusable(Refusal(Reason.CRL_MISSING, str(fault)))
    return CrlSet.from_pem(pem, trust, str(listener.crl_file))


def load_deny_list(path: Path | None) -> DenyList:
    """The deny list, empty when none is configured; ConfigFault when the file is missing or broken."""
    if path is None:
        return DenyList()
    if not path.exists():
        raise ConfigFault(
            f"[listener] deny_file {path} does not exist", hint=f"an empty file denies nobody: touch {path}"
        )
    return DenyList.from_file(path)
