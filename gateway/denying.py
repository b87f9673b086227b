"""Changes to the deny list's file: parsed, changed and replaced whole, so that a reader never sees half of it.

The file belongs to this program once it has changed it: comments and order in it are not kept.
"""

from __future__ import annotations

import operator
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mtls.errors import Fault
from mtls.identity import DeviceId
from mtls.keystore import write_public
from mtls.revocation import DENY_KINDS, MAX_DENY_BYTES, MAX_SERIAL_BYTES, DenyList

_CHANGING: Final = threading.Lock()  # two that read the same list would each write it without the other's change
_SERIAL = re.compile(f"[0-9a-f]{{1,{2 * MAX_SERIAL_BYTES}}}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def parse(ids: list[str], certificate_serials: list[str], fingerprints: list[str]) -> DenyList:
    """What is to be denied, or no longer: what a person typed (colons and upper case allowed in hex).

    Fault for what could match nothing.
    """
    return DenyList(
        frozenset(_id(text) for text in ids),
        frozenset(_serial(text) for text in certificate_serials),
        frozenset(_fingerprint(text) for text in fingerprints),
    )


def add(path: Path, entries: DenyList) -> int:
    """Put entries on the list; how many were not on it."""
    return _change(path, entries, operator.or_)


def remove(path: Path, entries: DenyList) -> int:
    """Take entries off the list; how many were on it."""
    return _change(path, entries, operator.sub)


def _change(path: Path, entries: DenyList, change: Callable[[frozenset[str], frozenset[str]], frozenset[str]]) -> int:
    with _CHANGING:
        held = DenyList.from_file(path)
        wanted = DenyList(*(change(getattr(held, kind), getattr(entries, kind)) for kind in DENY_KINDS))
        if wanted == held:
            return 0
        text = wanted.to_toml().encode()
        if len(text) > MAX_DENY_BYTES:
            hint = "revoke certificates in the CRL, which holds many more, and take them off the list"
            raise Fault(f"{path} would be larger than {MAX_DENY_BYTES} bytes and could not be read", hint=hint)
        write_public(path, text)
    return abs(len(wanted) - len(held))


def _id(text: str) -> str:
    try:
        return DeviceId(text).value
    except ValueError as error:
        raise Fault(f"{text!a} is no device id: {error}", hint="mqtt-gateway sessions lists the ids") from error


def _serial(text: str) -> str:
    digits = _hex(text)
    if not _SERIAL.fullmatch(digits):
        raise Fault(f"{text!a} is no certificate serial in hex", hint="mqtt-provision inspect prints it")
    digits = digits.lstrip("0") or "0"
    return digits if len(digits) % 2 == 0 else "0" + digits


def _fingerprint(text: str) -> str:
    digits = _hex(text)
    if not _FINGERPRINT.fullmatch(digits):
        raise Fault(f"{text!a} is no SHA-256 fingerprint in hex", hint="mqtt-provision inspect prints it")
    return digits


def _hex(text: str) -> str:
    return text.replace(":", "").lower().removeprefix("0x")
