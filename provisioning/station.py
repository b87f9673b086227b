"""Burning one unit: the order of steps from HELLO to the record, and the verdict.

The order is docs/spp1.md, section 7, as the tables below; what a step does is in `steps`. Each state of the unit is
committed to the ledger before the next action on the device. PASS is the return from the last step, the
record. Anything else, from a refusal to Ctrl-C, is FAIL with the step it happened in: the unit's row is failed,
and its certificate is revoked in the same transaction.

A unit that an earlier run left unfinished (kill -9, power) is finished when its device was sealed already; else it
is failed and burned anew with a new key. Keys are made on the device: `import_key` is not offered. Which box
holds the key is not shown by any of this; label, locked port and the ledger's uniqueness stand for that.
"""

import time
from collections.abc import Callable

from mtls.errors import Fault
from mtls.terminal import sanitise
from provisioning.ca import CertificateAuthority
from provisioning.ledger import DuplicateKey, Ledger, UnitState
from provisioning.session import Port, Session
from provisioning.spp1.fields import FieldFault
from provisioning.spp1.frames import FrameTooLong
from provisioning.spp1.host import ReplyFault
from provisioning.steps import Burn, WorkOrder
from provisioning.trace import Trace
from provisioning.verdict import Step, Verdict

__all__ = ["Step", "Verdict", "WorkOrder", "burn"]

MAX_REASON_CHARS = 300

Action = Callable[[Burn], None]

OPENING: tuple[tuple[Step, Action], ...] = (
    (Step.HELLO, Burn.hello),
    (Step.IDENT, Burn.ident),
    (Step.RESERVE, Burn.reserve),
)
BURNING: tuple[tuple[Step, Action], ...] = (
    (Step.KEYGEN, Burn.keygen),
    (Step.PROVE_KEYED, Burn.prove_keyed),
    (Step.CSR, Burn.csr),
    (Step.ISSUE, Burn.issue),
    (Step.WRITE_CHAIN, Burn.write_chain),
    (Step.WRITE_CA, Burn.write_ca),
    (Step.WRITE_CONF, Burn.write_conf),
    (Step.HASH, Burn.hash),
    (Step.RESET, Burn.reset),
    (Step.IDENT_AFTER_RESET, Burn.same_unit),
    (Step.HASH_AFTER_RESET, Burn.hash_after_reset),
    (Step.PROVE_RESET, Burn.prove_reset),
    (Step.SEAL, Burn.seal),
    (Step.PROVE_SEALED, Burn.prove_sealed),
    (Step.RECORD, Burn.record),
)
# A device that an earlier run sealed and could not record: everything that a sealed device still shows is judged.
FINISHING: tuple[tuple[Step, Action], ...] = (
    (Step.IDENT_AFTER_RESET, Burn.same_unit),
    (Step.HASH_AFTER_RESET, Burn.hash_after_reset),
    (Step.PROVE_SEALED, Burn.prove_sealed),
    (Step.RECORD, Burn.record),
)
# Interrupted here, a device may be sealed: its row stays as it is, and the next burn of the unit finishes it.
STEPS_OF_A_SEALED_DEVICE = frozenset({Step.SEAL, Step.PROVE_SEALED, Step.RECORD})


def burn(
    port: Port,
    ca: CertificateAuthority,
    ledger: Ledger,
    *,
    station: str,
    device_id: str | None = None,
    order: WorkOrder | None = None,
    trace: Trace | None = None,
    progress: Callable[[Step], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Verdict:
    """Burn the unit on `port` and return the verdict; faults of device, port, CA and ledger are verdicts too.

    `device_id` is short for `order=WorkOrder(device_id=...)`. `progress` is told each step as it begins.
    """
    order = order if order is not None else WorkOrder(device_id=device_id)
    session = Session(port, station=station, trace=trace if trace is not None else Trace(), clock=clock)
    run = _Run(Burn(session, ca, ledger, order, station), progress)
    started = clock()
    reason, hint, stop_line = run.to_the_end()
    session.close()
    return run.verdict(reason, hint, stop_line=stop_line, station=station, port=port.name, duration_s=clock() - started)


class _Run:
    """The steps of one burn, one after another, and what their failure means for the ledger."""

    def __init__(self, work: Burn, progress: Callable[[Step], None] | None) -> None:
        self._work = work
        self._progress = progress
        self._step = Step.HELLO

    def to_the_end(self) -> tuple[str, str, bool]:
        """All steps; an empty reason when they are done, else (reason, hint, whether the line stops)."""
        work = self._work
        try:
            self._take(OPENING)
            self._take(FINISHING if work.was_sealed else BURNING)
        except KeyboardInterrupt:
            if self._step in STEPS_OF_A_SEALED_DEVICE:
                return (
                    "interrupted while the device was being sealed",
                    "burn the unit again: it is finished then",
                    False,
                )
            return self._failed("interrupted at the station"), "burn the unit again", False
        except Exception as error:
            reason, hint = _explain(error, work.session)
            return self._failed(reason), hint, isinstance(error, DuplicateKey)
        return "", "", False

    def _take(self, steps: tuple[tuple[Step, Action], ...]) -> None:
        for self._step, action in steps:
            self._work.session.begin_step(self._step)
            if self._progress is not None:
                self._progress(self._step)
            action(self._work)

    def _failed(self, reason: str) -> str:
        """Fail the unit's row, certificate and all; the reason, with what the ledger could not write."""
        work = self._work
        reason = sanitise(reason, MAX_REASON_CHARS)
        if work.unit is None:
            return reason
        try:
            # Read again: an interruption may have come between a commit and our memory of it.
            work.unit = work.ledger.fail(work.ledger.unit(work.unit.id), self._step, reason)
        except Fault as fault:
            return f"{reason}; and the ledger could not be told: {fault}"
        return reason

    def verdict(
        self, reason: str, hint: str, *, stop_line: bool, station: str, port: str, duration_s: float
    ) -> Verdict:
        """PASS only without a reason and with a recorded unit."""
        work = self._work
        unit, identity, certificate = work.unit, work.identity, work.certificate
        passed = not reason and unit is not None and unit.state is UnitState.RECORDED
        return Verdict(
            passed=passed,
            step=self._step,
            reason=reason,
            hint=hint,
            stop_line=stop_line,
            port=port,
            station=station,
            unit_id=unit.id if unit else None,
            device_id=unit.device_id if unit else "",
            hardware_serial=identity.sn if identity else "",
            uid=identity.uid if identity else "",
            model=identity.model if identity else "",
            firmware=identity.fw if identity else "",
            spki_sha256=(unit.spki_sha256 if unit else None) or "",
            certificate_serial=certificate.certificate_serial if certificate else "",
            fingerprint_sha256=(certificate.fingerprint_sha256 if certificate else None) or "",
            not_after=(certificate.not_after if certificate else None) or "",
            duration_s=round(duration_s, 3),
        )


def _explain(error: Exception, session: Session) -> tuple[str, str]:
    """Reason and hint."""
    if isinstance(error, FieldFault):
        error = ReplyFault(session.last_verb, str(error))
    if isinstance(error, Fault):
        return str(error), error.hint
    if isinstance(error, FrameTooLong):
        return str(error), "shorten the station's name"
    return f"{type(error).__name__}: {error}", "this is a fault of the station's program: please report it"
