"""The whole judgement of one device: the table of all checks, and who may be judged.

The checks make keys, replace them, seal the device and erase it. A device that is not BLANK is therefore touched only
with the operator's word for it; one that is sealed for good cannot be judged at all.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from mtls.errors import Fault
from provisioning.conformance.checking import Check, Result, run
from provisioning.conformance.key_checks import KEY_CHECKS
from provisioning.conformance.line import Failed, Line, Silent
from provisioning.conformance.line_checks import BOOT_CHECKS, LINE_CHECKS
from provisioning.conformance.object_checks import OBJECT_CHECKS
from provisioning.conformance.probe import Probe
from provisioning.conformance.seal_checks import ERASE_CHECKS, SEAL_CHECKS
from provisioning.conformance.session_checks import HELLO_CHECKS, SESSION_CHECKS, TIME_CHECKS
from provisioning.session import Port
from provisioning.spp1.fields import FieldFault
from provisioning.spp1.protocol import State

CHECKS: tuple[Check, ...] = (
    *HELLO_CHECKS,
    *LINE_CHECKS,
    *SESSION_CHECKS,
    *BOOT_CHECKS,
    *ERASE_CHECKS,
    *KEY_CHECKS,
    *OBJECT_CHECKS,
    *SEAL_CHECKS,
    *TIME_CHECKS,
)


class NotBlank(Fault):
    """The device holds something, and nobody said that it may be lost."""

    exit_code = 2


def judge(
    port: Port,
    *,
    yes_erase: bool = False,
    seal_final: bool = False,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Result]:
    """Every check in order; the device is BLANK afterwards, or sealed for good where that was asked for.

    Faults: nobody answers on the port (Fault), the port goes away (PortFault), the device is not BLANK and `yes_erase`
    was not said (NotBlank), or it does not let itself be erased (Fault).
    """
    probe = Probe(Line(port, random_bytes, clock), seal_final=seal_final)
    _admit(port.name, probe, yes_erase=yes_erase)
    yield from run(CHECKS, probe)
    if not seal_final:
        _leave_blank(probe)


def _admit(name: str, probe: Probe, *, yes_erase: bool) -> None:
    try:
        probe.greet()
        state = probe.state()
    except Silent:
        raise Fault(
            f"no device on {name} answers SPP/1", hint="check the port's name, the baud rate and the device's power"
        ) from None
    except (Failed, FieldFault):
        return  # no session, so nothing can be destroyed; the first check says what is wrong with its HELLO
    if state is not State.BLANK and not yes_erase:
        raise NotBlank(
            f"the device on {name} is {state}: the checks destroy its key and its certificate",
            hint="--yes-erase, if they may be lost",
        )
    try:
        if state is State.SEALED:
            probe.erase()
    except Failed:
        raise Fault(
            f"the device on {name} is sealed and does not let itself be erased", hint="judge another unit"
        ) from None


def _leave_blank(probe: Probe) -> None:
    """What a run cut short left behind is erased at the next one; a device that does not is FAIL already."""
    with suppress(Failed, FieldFault):
        probe.greet()
        if probe.state() is not State.BLANK:
            probe.erase()
