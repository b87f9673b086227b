"""CertificateAclPlugin: certificate identity and topic policy as an amqtt plugin, for brokers that are stock amqtt.

    plugins:
      gateway.broker.plugin.CertificateAclPlugin:
        policy_file: /etc/mqtt-gateway/policy.toml
        ca_file: /etc/mqtt-gateway/ca.crt
        crl_file: /etc/mqtt-gateway/crl.pem
        deny_file: /etc/mqtt-gateway/deny.toml

It judges the certificate of the TLS connection itself, never a name that the peer chose, and fails closed: no
certificate, an unknown session, any exception is a no. A plugin cannot mend the broker around it: `NOT_ENFORCED` is
what stays open on stock amqtt, and it is logged at every load. `mqtt-gateway run` enforces it all and needs no plugin.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from amqtt.contexts import Action as AmqttAction
from amqtt.contexts import BaseContext
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from gateway.policy import Action, Grants, Policy
from mtls.clock import Moment
from mtls.errors import Fault, Reason, Refusal
from mtls.judgement import Peer, peer_of, standing
from mtls.keystore import read_limited
from mtls.revocation import MAX_CRL_BYTES, CrlSet, DenyList, StaleRule
from mtls.terminal import sanitise
from mtls.trust import TrustStore

RELOAD_INTERVAL_S: Final = 1.0  # how often the files are looked at, when something is asked

NOT_ENFORCED: Final = (
    "the TLS handshake completes without a client certificate; the refusal comes after CONNECT",
    "a refused CONNECT that names another device's client id still destroys or seizes that device's session",
    "a resumed session is judged by the TLS object of an older connection; this plugin refuses every resumed session,"
    " so devices must connect with clean session",
    "the retain right: whoever may publish on a topic may also retain on it",
    "retained messages are sent to a connecting client for filters that others subscribed to",
    "a device that reconnects over its own half-open connection may receive nothing",
    "no time limit for handshake and CONNECT, no size limit for packets, keep alive is not enforced",
    "a revoked or expired device is silenced at its next action, but its connection stays open and its will fires",
    "in-flight QoS 1 and 2 messages are dropped after some seconds, and slow subscribers cost unbounded memory",
    "most malformed packets are ignored instead of closing the connection",
)

_ACTIONS: Final = {
    AmqttAction.SUBSCRIBE: Action.SUBSCRIBE,
    AmqttAction.PUBLISH: Action.PUBLISH,
    AmqttAction.RECEIVE: Action.RECEIVE,
}


@dataclass(frozen=True, slots=True)
class Judges:
    """Everything that a judgement needs, read as one."""

    policy: Policy
    trust: TrustStore
    crls: CrlSet | None
    deny: DenyList
    stale: StaleRule


class CertificateAclPlugin(BaseAuthPlugin, BaseTopicPlugin):
    """Admits devices by their certificate and filters their topics by the policy."""

    @dataclass
    class Config:
        """Settings: the same files that `mqtt-gateway` takes."""

        policy_file: str
        ca_file: str
        crl_file: str | None = None
        deny_file: str | None = None
        crl_stale: str = "deny"

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self._log = context.logger
        self._judges = _load(self.config)
        self._files = _marks(self.config)
        self._looked_at = time.monotonic()
        # By TLS object, so that what was admitted is a connection and not a name.
        self._admitted: WeakKeyDictionary[ssl.SSLObject, tuple[Peer, str]] = WeakKeyDictionary()
        self._log.warning("CertificateAclPlugin on stock amqtt cannot enforce:")
        for gap in NOT_ENFORCED:
            self._log.warning("  - %s", gap)
        self._log.warning("run `mqtt-gateway run` to have all of it enforced")

    async def authenticate(self, *, session: Session) -> bool:
        """Admit the connection by its certificate, client identifier and will."""
        try:
            refusal = self._refusal(session)
        except Exception as error:
            self._log.error("refused: %s in a check", type(error).__name__)
            return False
        if refusal is not None:
            self._log.warning("refused: %s", sanitise(str(refusal)))
        return refusal is None

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: AmqttAction | None = None
    ) -> bool:
        """Judge one topic; the certificate is judged again, so that a revoked device can do nothing more."""
        try:
            grants = self._grants(session)
            if grants is None or not topic or action is None:
                return False
            return grants.decide(_ACTIONS[AmqttAction(action)], topic).allowed
        except Exception as error:
            self._log.error("denied: %s in a check", type(error).__name__)
            return False

    def _refusal(self, session: Session) -> Refusal | None:
        tls = session.ssl_object
        leaf_der = tls.getpeercert(binary_form=True) if tls is not None else None
        if tls is None or leaf_der is None:
            return Refusal(Reason.NO_CERTIFICATE)
        if session.parent or tls in self._admitted:
            return Refusal(Reason.CLIENT_ID_REFUSED, "a resumed session shows the certificate of an older connection")
        judges = self._current()
        peer = peer_of(leaf_der, judges.trust, judges.policy.identity)
        if isinstance(peer, Refusal):
            return peer
        client_id = session.client_id or ""
        grants = _admit(judges, peer, client_id)
        if isinstance(grants, Refusal):
            return grants
        refused = _will_refusal(session, grants)
        if refused is None:
            self._admitted[tls] = (peer, client_id)
            session.attributes["mqtt_gateway.identity"] = str(peer.id)
        return refused

    def _grants(self, session: Session | None) -> Grants | None:
        """The rights of a session under the files as they are now; None for one that was not admitted."""
        tls = session.ssl_object if session is not None else None
        held = self._admitted.get(tls) if tls is not None else None
        if held is None:
            return None
        grants = _admit(self._current(), *held)
        return grants if isinstance(grants, Grants) else None

    def _current(self) -> Judges:
        """The files as they are now; when they cannot be used, as they were."""
        now = time.monotonic()
        if now - self._looked_at >= RELOAD_INTERVAL_S:
            self._looked_at = now
            marks = _marks(self.config)
            if marks != self._files:
                self._files = marks
                try:
                    self._judges = _load(self.config)
                except Fault as fault:
                    self._log.error("the old policy stays in force: %s", fault)
        return self._judges


def _load(config: CertificateAclPlugin.Config) -> Judges:
    ca_file = Path(config.ca_file)
    trust = TrustStore.from_pem(read_limited(ca_file), config.ca_file)
    policy = Policy.load(Path(config.policy_file))
    faults = policy.check_trust(len(trust.roots)).faults
    if faults:
        raise faults[0]
    crls = None
    if config.crl_file:
        crls = CrlSet.from_pem(read_limited(Path(config.crl_file), MAX_CRL_BYTES), trust, config.crl_file)
        if crls.faults:
            raise Fault(str(crls.faults[0]), hint="publish a new CRL with mqtt-provision crl")
    deny = DenyList.from_file(Path(config.deny_file)) if config.deny_file else DenyList()
    return Judges(policy, trust, crls, deny, StaleRule.parse(config.crl_stale))


def _marks(config: CertificateAclPlugin.Config) -> tuple[object, ...]:
    """What the files look like from outside, to see that one has changed."""
    marks: list[object] = []
    for name in (config.policy_file, config.ca_file, config.crl_file, config.deny_file):
        try:
            found = Path(name).stat() if name else None
            marks.append(found and (found.st_mtime_ns, found.st_size, found.st_ino))
        except OSError:
            marks.append(None)
    return tuple(marks)


def _admit(judges: Judges, peer: Peer, client_id: str) -> Grants | Refusal:
    refusal = standing(
        peer, trust=judges.trust, crls=judges.crls, stale=judges.stale, deny=judges.deny, now=Moment(datetime.now(UTC))
    )
    return refusal or judges.policy.admit(peer, client_id)


def _will_refusal(session: Session, grants: Grants) -> Refusal | None:
    if not session.will_flag:
        return None
    decision = grants.decide_will(session.will_topic or "", retain=bool(session.will_retain))
    return None if decision.allowed else Refusal(Reason.WILL_REFUSED, f"{decision.reason} {decision.rule}".strip())
