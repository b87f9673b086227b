"""Where attacks take place: a broker under test, its operator, and clients that say what they like.

An `Attack` is a conversation with a verdict: `held` says whether the broker did what it must, and the evidence is one
sentence of what was seen. Attacks use device names of their own, so that one leaves nothing for the next.
"""

import ssl
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, Self

from device_sim.attacks.raw_client import Answer, Closed, RawClient
from device_sim.connection_faults import Endpoint
from device_sim.fleet.identities import Identity
from device_sim.targets.programs import resident_bytes
from device_sim.targets.site import OBSERVER, Site
from gateway.broker.packets import Will
from mtls.tls import client_context


class Target(Protocol):
    """What an attack needs of a broker and its operator."""

    site: Site
    endpoint: Endpoint

    def reload(self) -> bool: ...
    def process_id(self) -> int | None: ...
    def revoke(self, *identities: Identity) -> None: ...
    def renew_server(self) -> None: ...
    def spoil_server(self, is_spoilt: bool) -> bool: ...
    def narrow_rules(self, narrow: bool) -> None: ...
    def empty_rules(self) -> None: ...


class Finding(NamedTuple):
    """Whether the broker held, and what was seen."""

    held: bool
    evidence: str


@dataclass(frozen=True, slots=True)
class Attack:
    """One line of the list: the trap, the attack's name, what must come of it, and the conversation."""

    trap: str
    name: str
    must: str
    run: "Callable[[Ground], Finding]"


@dataclass(slots=True)
class Ground:
    """Clients of one attack; all are closed at its end."""

    target: Target
    patience_s: float = 4.0  # how long a limit of time may take to act
    _stack: ExitStack = field(default_factory=ExitStack)

    def client(self, identity: Identity | None, *, tls: str = "1.3") -> RawClient:
        """A TLS connection with this certificate, or with none; Closed when it is refused."""
        files = (identity.cert_file, identity.key_file) if identity is not None else (None, None)
        context = client_context(
            ca_file=self.target.site.ca.ca_file, cert_file=files[0], key_file=files[1], max_tls=tls
        )
        return self.again(context, None)

    def again(self, context: ssl.SSLContext, session: ssl.SSLSession | None) -> RawClient:
        """A TLS connection with a context used before, so that a session of it may be resumed."""
        return self._stack.enter_context(RawClient(self.target.endpoint.port, context, session=session))

    def device(self, name: str) -> Identity:
        """A device's certificate."""
        return self.target.site.ca.of(name)

    def knock(
        self, identity: Identity | None, client_id: str, *, clean: bool = True, will: Will | None = None
    ) -> Answer:
        """A CONNECT on a connection of its own; what came of it."""
        try:
            with self.client(identity) as client:
                return client.connect(client_id, clean=clean, will=will)
        except (Closed, OSError):
            return Answer(None)

    def connected(
        self, name: str, *, clean: bool = True, keep_alive_s: int = 60, will: Will | None = None
    ) -> RawClient:
        """A device that was let in; Closed when it was not."""
        client = self.client(self.device(name))
        answer = client.connect(name, clean=clean, keep_alive_s=keep_alive_s, will=will)
        if not answer.is_admitted:
            raise Closed(f"{name}: {answer}")
        return client

    def knock_in(self, name: str) -> RawClient | None:
        """A device that was let in, or None."""
        try:
            return self.connected(name)
        except (Closed, OSError):
            return None

    def observer(self) -> RawClient:
        """The service, subscribed to every device and to broadcast."""
        client = self.client(self.target.site.observer())
        if not client.connect(OBSERVER).is_admitted or client.subscribe(("devices/#", 1), ("broadcast/#", 1)) == []:
            raise Closed("the observer was not let in")
        return client

    def rss_bytes(self) -> int:
        """Of the broker's process; 0 when that is not known."""
        return resident_bytes(self.target.process_id()) or 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def carry_out(attack: Attack, target: Target, *, patience_s: float = 4.0) -> Finding:
    """Run one attack; a broker that turns away an honest device on the way has not held either."""
    with Ground(target, patience_s) as ground:
        try:
            return attack.run(ground)
        except (Closed, OSError) as error:
            return Finding(False, f"an honest client was turned away or cut off ({error or type(error).__name__})")


def polled(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true in that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
