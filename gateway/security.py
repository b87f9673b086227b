"""The security set: everything that admission and authorization judge by, read and verified as one.

A reload reads all files, verifies them together and swaps the whole set at once; a fault in any of them leaves the
set in force untouched. Only a CRL is different: one that is configured and cannot be used is part of the set and
refuses everybody whom it would cover, because going on without it would be going on blindly.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.config import GatewayConfig, ListenerConfig
from gateway.policy import Policy
from mtls.errors import ConfigFault, Reason, Refusal
from mtls.keystore import read_limited
from mtls.revocation import MAX_CRL_BYTES, CrlSet, DenyList, StaleRule
from mtls.tls import server_context
from mtls.trust import TrustStore


@dataclass(frozen=True, slots=True)
class SecurityState:
    """One consistent set. `crls` is None when the site has configured no CRL."""

    config: GatewayConfig
    trust: TrustStore
    crls: CrlSet | None
    stale: StaleRule
    deny: DenyList
    policy: Policy
    ssl_context: ssl.SSLContext
    loaded_at: datetime

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an operator should know and may want to change."""
        found = list(self.policy.warnings)
        if self.crls is None:
            found.append("no [listener] crl_file: a revoked certificate is refused only by the deny list")
        elif self.crls.faults:
            found += [f"the CRL file: {fault}" for fault in self.crls.faults]
        return tuple(found)


def load_security(config: GatewayConfig) -> SecurityState:
    """Read and verify everything that `config` names; ConfigFault with file and key for the first thing that fails."""
    listener = config.listener
    trust = TrustStore.from_pem(read_limited(listener.ca_file), str(listener.ca_file))
    crls = _crls(listener, trust)
    deny = DenyList.from_file(listener.deny_file) if listener.deny_file is not None else DenyList()
    policy = Policy.load(config.policy.file)
    policy.require_trust(len(trust.roots))
    context = server_context(
        cert_file=listener.cert_file,
        key_file=listener.key_file,
        trust=trust,
        crls_pem=crls.pem if crls is not None and crls.entries else None,
        stale_grace=bool(listener.crl_stale.grace),
        min_tls=listener.min_tls,
    )
    return SecurityState(
        config=config,
        trust=trust,
        crls=crls,
        stale=listener.crl_stale,
        deny=deny,
        policy=policy,
        ssl_context=context,
        loaded_at=datetime.now(UTC),
    )


def _crls(listener: ListenerConfig, trust: TrustStore) -> CrlSet | None:
    if listener.crl_file is None:
        return None
    try:
        pem = read_limited(listener.crl_file, MAX_CRL_BYTES)
    except ConfigFault as fault:
        return CrlSet.unusable(Refusal(Reason.CRL_MISSING, str(fault)))
    return CrlSet.from_pem(pem, trust, str(listener.crl_file))
