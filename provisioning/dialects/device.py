"""The one protocol between a burn and a device, whatever it speaks.

A dialect implements what its declaration (`declared`) promises; the rest is answered with a fault here, and a burn does
not ask for it. Whatever a device says is judged by the burn (`steps`), not in a dialect: a dialect carries it, checks
its form and its length, and raises a Fault with one sentence for anything else. It never touches the ledger.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from mtls.errors import Fault
from provisioning.dialects.declared import Ability, Declared
from provisioning.spp1.host import Identity
from provisioning.spp1.protocol import Obj, SealPolicy, Stage
from provisioning.trace import Trace
from provisioning.unit_order import Gateway, UnitOrder

PortT = TypeVar("PortT")


class DeviceGone(Fault):
    """The device does not answer any more: an interruption, after which the unit can be continued."""


@dataclass(frozen=True, slots=True)
class Conversation(Generic[PortT]):
    """Where a device is, what it is to become, who asks, and where all that is said is written down."""

    port: PortT
    order: UnitOrder
    station: str
    trace: Trace
    clock: Callable[[], float] = time.monotonic


class Device:
    """One device in a conversation. `abilities` may shrink while it shows what it cannot do."""

    def __init__(self, declared: Declared, *, slot: str) -> None:
        self.declared = declared
        self.abilities = declared.abilities
        self.slot = slot

    def _cannot(self, ability: Ability) -> Fault:
        return Fault(f"a device of dialect {self.declared.name} cannot: {ability}")

    # --- always

    def begin_step(self, step: str) -> None:
        """A step of the burn begins: its time limit starts anew."""

    def hello(self) -> bool:
        """Begin the conversation; whether the device is sealed."""
        raise self._cannot(Ability.BURN)

    def look(self, timeout_s: float) -> Identity | None:
        """Who is there, if somebody answers within about `timeout_s`; PortFault when the port is gone."""
        raise self._cannot(Ability.WATCH)

    def identify(self) -> Identity:
        """Who the device says it is, read now."""
        raise self._cannot(Ability.BURN)

    def held_key(self) -> str:
        """What names the key that the device holds, "" for none: the digest of its public key if it can be read."""
        raise self._cannot(Ability.BURN)

    def make_key(self, device_id: str, held: str) -> ec.EllipticCurvePublicKey:
        """Have a new key made in the place of the one that `held` names."""
        raise self._cannot(Ability.BURN)

    def csr(self, device_id: str) -> bytes:
        """The CSR of the key that the device holds; its signature is the caller's to check."""
        raise self._cannot(Ability.CSR)

    def write(self, obj: Obj, content: bytes, *, txn: str, before: Callable[[], None]) -> None:
        """Store an object; `before` runs in front of whatever destroys something."""
        raise self._cannot(Ability.BURN)

    # --- where it is declared

    def read_key(self) -> ec.EllipticCurvePublicKey:
        """The public key that the device holds."""
        raise self._cannot(Ability.KEY_READABLE)

    def holds(self, obj: Obj, content: bytes) -> bool:
        """Whether the device has exactly this object, as it says now."""
        raise self._cannot(Ability.READ_BACK)

    def reset(self) -> None:
        """Reset the device and begin anew with it; without the ability left, it was only asked again."""
        raise self._cannot(Ability.RESET)

    def prove(self, stage: Stage, identity: Identity, key: ec.EllipticCurvePublicKey) -> bool:
        """Whether the device signs a fresh nonce with this key; False as well when it turns out that it cannot sign."""
        raise self._cannot(Ability.PROOF)

    def connect(self, gateway: Gateway) -> None:
        """Have the device connect to a gateway and publish."""
        raise self._cannot(Ability.CONNECT)

    def seal(self, identity: Identity, policy: SealPolicy) -> bool:
        """Seal it; whether it says that it is."""
        raise self._cannot(Ability.SEAL)

    def erase(self, identity: Identity) -> None:
        """Empty a sealed device."""
        raise self._cannot(Ability.ERASE)

    # --- the end

    def translated(self, error: Exception) -> Exception:
        """An error of the dialect's own as a Fault; DeviceGone for one that is an interruption."""
        return error

    def close(self) -> None:
        """The last lines into the trace; the port belongs to the caller."""
