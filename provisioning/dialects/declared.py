"""What a dialect declares that its devices can do. Names only: nothing here knows a device.

Burn, station and work order ask for abilities and never for the name of a dialect; `mqtt-provision dialects` prints
them. An ability with a condition is one that a single device may turn out not to have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from mtls.errors import Fault
from provisioning.spp1.protocol import Obj


class Ability(StrEnum):
    """Public names: they stand in `mqtt-provision dialects --json`."""

    DEVICE_KEY = "device-key"
    CSR = "csr"
    KEY_READABLE = "key-readable"
    READ_BACK = "read-back"
    RESET = "reset"
    PROOF = "proof"
    CONF = "conf"
    CONNECT = "connect"
    SEAL = "seal"
    ERASE = "erase"
    BURN = "burn"
    WATCH = "watch"


MEANING: Mapping[Ability, str] = MappingProxyType(
    {
        Ability.DEVICE_KEY: "the key is made on the device",
        Ability.CSR: "the CSR's signature is checked",
        Ability.KEY_READABLE: "its public key can be read again",
        Ability.READ_BACK: "what was written is read back",
        Ability.RESET: "it is reset, and shows that it was",
        Ability.PROOF: "it proves its key by a fresh nonce",
        Ability.CONF: "it takes a configuration",
        Ability.CONNECT: "it connects to a gateway itself",
        Ability.SEAL: "it can be sealed",
        Ability.ERASE: "it can be emptied for rework",
        Ability.BURN: "`burn` and the ledger's way",
        Ability.WATCH: "a station sees it come and go",
    }
)
# Without one of these no unit passes: it is written, and only if the order says that this is enough.
FOR_PASS = frozenset({Ability.RESET, Ability.PROOF})


@dataclass(frozen=True, slots=True)
class Declared:
    """A dialect's abilities, on which condition some of them depend, and the largest objects a device takes."""

    name: str
    device: str
    abilities: frozenset[Ability]
    conditions: Mapping[Ability, str] = field(default_factory=lambda: MappingProxyType({}))
    max_bytes: Mapping[Obj, int] = field(default_factory=lambda: MappingProxyType({}))

    def missing(self, wanted: frozenset[Ability]) -> list[str]:
        """What is wanted and not declared, in words."""
        return [f"{ability} ({MEANING[ability]})" for ability in Ability if ability in wanted - self.abilities]

    def require(self, wanted: frozenset[Ability]) -> None:
        """A Fault that names what is wanted and not declared, if anything is."""
        missing = self.missing(wanted)
        if missing:
            raise Fault(
                f"a device of dialect {self.name} cannot do what is asked: {', '.join(missing)}",
                hint="mqtt-provision dialects; with --accept-written a unit may end as WRITTEN, without reset or proof",
            )

    def as_row(self) -> dict[str, object]:
        """For JSON."""
        return {
            "dialect": self.name,
            "device": self.device,
            "abilities": {
                str(ability): self.conditions.get(ability, True) if ability in self.abilities else False
                for ability in Ability
            },
            "max_bytes": {str(obj): most for obj, most in self.max_bytes.items()},
        }
