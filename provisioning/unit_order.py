"""What one unit is to become, and what is asked of it before PASS; nothing of it comes from the device.

A work order's file (`station.order`) is turned into one of these per unit; `burn` on the command line makes one of its
options. The signer is whatever holds the issuing CA's key: a CA that is open here, or one thread for many ports.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mtls.errors import Fault
from mtls.identity import DeviceId
from mtls.profiles import DEVICE_BIRTH, Profile
from provisioning.dialects.declared import FOR_PASS, Ability
from provisioning.ledger import Presented, Unit
from provisioning.spp1.host import Identity
from provisioning.spp1.protocol import MAX_TEXT_CHARS, SealPolicy

DEFAULT_SECURITY_TAG = 16842753  # the one that Nordic's own tools use


def label_text(unit: Unit) -> str:
    """What the QR code on a unit's label says."""
    return f"ID={unit.device_id};SN={unit.hardware_serial};KEY={unit.spki_sha256}"


class Signer(Protocol):
    """Who certifies keys; `provisioning.ca.CertificateAuthority` is one."""

    @property
    def root(self) -> x509.Certificate: ...

    @property
    def issuing(self) -> x509.Certificate: ...

    def issue(
        self,
        device_id: DeviceId,
        profile: Profile = ...,
        public_key: ec.EllipticCurvePublicKey | None = None,
        *,
        spiffe_domain: str | None = None,
        crl_url: str | None = None,
        unit: Unit | None = None,
        accept_clock: bool = False,
    ) -> list[x509.Certificate]: ...


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where the unit has to connect and publish before it is sealed; `{id}` in the topic is its id."""

    host: str
    port: int
    topic: str = "devices/{id}/telemetry/provisioning"

    @classmethod
    def parse(cls, text: str) -> "Gateway":
        """`HOST:PORT`; a fault for anything else, or for a host that does not fit into a request."""
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
        if not 1 <= len(host) <= MAX_TEXT_CHARS or not host.isascii() or " " in host or not 1 <= number <= 65535:
            raise Fault("--gateway is no HOST:PORT", hint="for example: --gateway gateway.local:8883")
        return cls(host, number)


# Asked for the scanned label of a unit whose right labels are given; None when none came in time.
LabelSource = Callable[[frozenset[str]], str | None]


@dataclass(frozen=True, slots=True)
class Named:
    """Under which id a unit goes, and what the gateway's registry gets to know of it."""

    device_id: str
    attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class UnitOrder:
    """`device_id` None takes the hardware serial, lower-cased; `naming` finds id and attributes from IDENT instead.

    `conf` is what the device gets to know beside its id. `rework` is how often a unit that failed may be burned again.

    `model` and `firmware`, where they are not empty, are what IDENT must say. `presented` is what the attempt in the
    ledger begins with; the device's own words are added to it. With `accept_written` a unit whose device cannot be
    reset or cannot prove its key afterwards may end as WRITTEN. `security_tag` is the place of the credentials in a
    modem.
    """

    device_id: str | None = None
    naming: Callable[[Identity], Named] | None = None
    profile: Profile = DEVICE_BIRTH
    conf: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    seal_policy: SealPolicy = SealPolicy.FINAL
    crl_url: str | None = None
    spiffe_domain: str | None = None
    accept_clock: bool = False
    model: str = ""
    firmware: tuple[str, ...] = ()
    presented: Presented = field(default_factory=Presented)
    rework: int | None = None
    unfinished_only: bool = False
    label: LabelSource | None = None
    gateway: Gateway | None = None
    accept_written: bool = False
    security_tag: int = DEFAULT_SECURITY_TAG

    @property
    def needs(self) -> frozenset[Ability]:
        """What a device must be able to do for this order."""
        asked = {Ability.CONNECT: self.gateway is not None, Ability.CONF: bool(self.conf)}
        return frozenset(
            {ability for ability, is_asked in asked.items() if is_asked} | (set() if self.accept_written else FOR_PASS)
        )
