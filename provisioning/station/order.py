"""The work order: what is to be made, for how many units, under which names. Strict TOML, every key known.

    version = 1
    order = "WO-2026-117"
    quantity = 200                      # units that are to pass
    quota = 220                         # attempts that may be made for them, failures included; 0: no limit
    model = "press-sensor"              # what IDENT must say; "": any
    required_firmware = ["1.4.2"]       # one of these; []: any
    id = "press-{serial}"               # tokens {serial} {uid} {model}, lower-cased; or
    serials = "serials.csv"             # an allow-list with the columns hardware_serial[, device_id][, attribute ...]
    profile = "device-birth"            # or "device-operational"
    seal = "final"                      # or "erasable"
    rework = 2                          # how often a unit that failed may be burned again
    crl_url = ""
    spiffe_domain = ""
    dialect = "spp1"                    # or "nordic-at": what the devices speak; docs/dialects.md
    accept_written = false              # whether units may end as WRITTEN, without reset or proof
    security_tag = 16842753             # where modems keep their credentials

    [conf]                              # what the device gets to know beside its id
    [attributes]                        # what the gateway's registry gets to know

Serials are texts: leading zeros stay. A unit that is not in `serials` is refused. The counts live in the ledger, so a
work order goes on where the last shift ended.
"""

import csv
import io
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mtls.errors import ConfigFault, Fault
from mtls.keystore import read_limited
from mtls.profiles import DEVICE_BIRTH, DEVICE_OPERATIONAL, Profile
from mtls.terminal import sanitise
from provisioning.dialects.declared import Ability
from provisioning.dialects.nordic_at import MAX_TAG
from provisioning.dialects.table import BURNABLE, SPP1
from provisioning.ledger import Presented
from provisioning.spp1.host import Identity
from provisioning.spp1.protocol import SealPolicy
from provisioning.unit_order import DEFAULT_SECURITY_TAG, Gateway, LabelSource, Named, UnitOrder

MAX_SERIALS_BYTES = 64 * 1024 * 1024  # a million rows of the longest kind
MAX_COUNT = 10_000_000
PROFILES: Mapping[str, Profile] = MappingProxyType(
    {profile.name: profile for profile in (DEVICE_BIRTH, DEVICE_OPERATIONAL)}
)
ATTRIBUTE = re.compile(r"[a-z][a-z0-9_]{0,31}")  # what a policy can match as attr.NAME
_TOKEN = re.compile(r"\{([^{}]*)\}")
_TOKENS: Mapping[str, Callable[[Identity], str]] = MappingProxyType(
    {"serial": lambda unit: unit.sn, "uid": lambda unit: unit.uid, "model": lambda unit: unit.model}
)
_HINT = "docs/station.md shows a work order with every key"


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """A work order, read and judged."""

    name: str
    quantity: int
    quota: int
    model: str
    required_firmware: tuple[str, ...]
    id_template: str
    serials: Mapping[str, Named] | None
    profile: Profile
    seal: SealPolicy
    rework: int
    crl_url: str
    spiffe_domain: str
    dialect: str
    accept_written: bool
    security_tag: int
    wants_seal: bool
    conf: Mapping[str, str]
    attributes: Mapping[str, str]

    def name_of(self, identity: Identity) -> Named:
        """The id and attributes of a unit; a fault for one that is not in the list of serials."""
        if self.serials is None:
            text = _TOKEN.sub(lambda found: _TOKENS[found[1]](identity), self.id_template)
            return Named(text.lower(), self.attributes)
        listed = self.serials.get(identity.sn)
        if listed is None:
            raise Fault(
                f"hardware serial {sanitise(identity.sn)} is not in the work order's list",
                hint="sort the unit out, or add it to the list",
            )
        return listed

    def needs(self, gateway: Gateway | None) -> frozenset[Ability]:
        """What the devices of this order must be able to do."""
        wanted = {Ability.WATCH, Ability.SEAL} if self.wants_seal else {Ability.WATCH}
        return self.unit_order(port="", accept_clock=False, gateway=gateway).needs | wanted

    def unit_order(
        self, *, port: str, accept_clock: bool, label: LabelSource | None = None, gateway: Gateway | None = None
    ) -> UnitOrder:
        """What the next unit on a port is to become."""
        return UnitOrder(
            naming=self.name_of,
            profile=self.profile,
            conf=self.conf,
            seal_policy=self.seal,
            crl_url=self.crl_url or None,
            spiffe_domain=self.spiffe_domain or None,
            accept_clock=accept_clock,
            model=self.model,
            firmware=self.required_firmware,
            rework=self.rework,
            label=label,
            gateway=gateway,
            accept_written=self.accept_written,
            security_tag=self.security_tag,
            presented=Presented(work_order=self.name, port=port, quantity=self.quantity, quota=self.quota),
        )


def read_work_order(path: Path) -> WorkOrder:
    """The work order in a file; ConfigFault naming file, key and value for anything wrong."""
    try:
        document = tomllib.loads(read_limited(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigFault(f"{path}: {error}", hint="a work order is TOML") from None
    reader = _Reader(path, document)
    reader.refuse_unknown()
    if reader.integer("version", least=1, most=1, default=0) != 1:
        raise ConfigFault(f"{path}: version is not 1", hint=_HINT)
    attributes = reader.texts_table("attributes")
    for name in attributes:
        if not ATTRIBUTE.fullmatch(name):
            raise ConfigFault(f"{path}: [attributes] {name!a} is not a name like line or site_2", hint=_HINT)
    return WorkOrder(
        name=reader.text("order", required=True),
        quantity=reader.integer("quantity", least=1, most=MAX_COUNT),
        quota=reader.integer("quota", least=0, most=MAX_COUNT, default=0),
        model=reader.text("model"),
        required_firmware=reader.texts("required_firmware"),
        id_template=reader.template(),
        serials=reader.serials(attributes),
        profile=PROFILES[reader.choice("profile", tuple(PROFILES), DEVICE_BIRTH.name)],
        seal=SealPolicy(reader.choice("seal", tuple(SealPolicy), SealPolicy.FINAL)),
        rework=reader.integer("rework", least=0, most=100, default=2),
        crl_url=reader.text("crl_url"),
        spiffe_domain=reader.text("spiffe_domain"),
        dialect=reader.choice("dialect", tuple(BURNABLE), SPP1.declared.name),
        accept_written=reader.flag("accept_written"),
        security_tag=reader.integer("security_tag", least=0, most=MAX_TAG, default=DEFAULT_SECURITY_TAG),
        wants_seal="seal" in document,
        conf=reader.texts_table("conf"),
        attributes=attributes,
    )


_KEYS = frozenset(
    (
        *("version", "order", "quantity", "quota", "model", "required_firmware", "id", "serials", "profile", "seal"),
        *("rework", "crl_url", "spiffe_domain", "conf", "attributes"),
        *("dialect", "accept_written", "security_tag"),
    )
)


class _Reader:
    """Typed access to one document."""

    def __init__(self, path: Path, document: Mapping[str, Any]) -> None:
        self._path = path
        self._document = document

    def _wrong(self, key: str, wanted: str) -> ConfigFault:
        return ConfigFault(f"{self._path}: {key} = {self._document.get(key)!a} is not {wanted}", hint=_HINT)

    def refuse_unknown(self) -> None:
        for key in self._document:
            if key not in _KEYS:
                raise ConfigFault(f"{self._path}: unknown key {key!a}", hint=_HINT)

    def text(self, key: str, *, required: bool = False) -> str:
        value = self._document.get(key, "")
        if not isinstance(value, str) or len(value) > 256 or not value.isprintable() or (required and not value):
            raise self._wrong(key, "a text of 1 to 256 printable characters" if required else "a text")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._document.get(key, [])
        texts = value if isinstance(value, list) else [None]
        if not all(isinstance(item, str) and item and item.isprintable() for item in texts):
            raise self._wrong(key, "a list of printable texts")
        return tuple(texts)

    def texts_table(self, key: str) -> Mapping[str, str]:
        value = self._document.get(key, {})
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise self._wrong(key, "a table of texts")
        return MappingProxyType(dict(value))

    def integer(self, key: str, *, least: int, most: int, default: int | None = None) -> int:
        value = self._document.get(key, default)
        if type(value) is not int or not least <= value <= most:
            if key == "version":
                return 0
            raise self._wrong(key, f"a whole number from {least} to {most}")
        return value

    def flag(self, key: str) -> bool:
        value = self._document.get(key, False)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        value = self._document.get(key, default)
        if value not in choices:
            raise self._wrong(key, f"one of {', '.join(choices)}")
        return str(value)

    def template(self) -> str:
        if "serials" in self._document and "id" in self._document:
            raise ConfigFault(f"{self._path}: id and serials exclude each other", hint=_HINT)
        template = self.text("id") or "{serial}"
        left_over = _TOKEN.sub("", template)
        if not {"serial", "uid"} & set(_TOKEN.findall(template)) or set(_TOKEN.findall(template)) - _TOKENS.keys():
            raise self._wrong("id", "a template with {serial} or {uid}, and {model} at most")
        if set("{}") & set(left_over):
            raise self._wrong("id", "a template with whole tokens in braces")
        return template

    def serials(self, attributes: Mapping[str, str]) -> Mapping[str, Named] | None:
        name = self.text("serials")
        return read_serials(self._path.parent / name, attributes) if name else None


def read_serials(path: Path, attributes: Mapping[str, str]) -> Mapping[str, Named]:
    """hardware serial -> id and attributes, from CSV; a serial or id that stands twice is a fault."""
    try:
        rows = csv.DictReader(io.StringIO(read_limited(path, MAX_SERIALS_BYTES).decode("utf-8-sig")), strict=True)
        columns = rows.fieldnames or ()
        wrong = [
            name for name in columns if name not in ("hardware_serial", "device_id") and not ATTRIBUTE.fullmatch(name)
        ]
        if "hardware_serial" not in columns or wrong or len(set(columns)) != len(columns):
            raise ConfigFault(f"{path}: the first line does not name hardware_serial and attributes", hint=_HINT)
        listed: dict[str, Named] = {}
        ids: set[str] = set()
        for row in rows:
            serial, device_id = row["hardware_serial"], row.get("device_id") or row["hardware_serial"].lower()
            if not serial or None in row or None in row.values() or serial in listed or device_id in ids:
                raise ConfigFault(
                    f"{path}: line {rows.line_num} is empty, has other columns, or repeats a serial or an id",
                    hint=_HINT,
                )
            own = {key: value for key, value in row.items() if key not in ("hardware_serial", "device_id") and value}
            listed[serial] = Named(device_id, MappingProxyType({**attributes, **own}))
            ids.add(device_id)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigFault(f"{path}: {error}", hint="the list of serials is CSV in UTF-8") from None
    return MappingProxyType(listed)
