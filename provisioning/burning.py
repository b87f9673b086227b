"""Burning one unit: the order of steps from HELLO to the record, and the verdict.

The order is docs/spp1.md, section 7, as the tables below, for every dialect; what a dialect does not declare is left
out (NEEDS). What a step does is in `steps`. Each state of the unit is committed to the ledger before the next action on
the device. PASS is the return from the last step, the record, with a proof of possession after a reset; WRITTEN is the
same without that proof, where the order accepts it. Everything else is FAIL with the step it happened in, and one of
three things for the unit:

- failed: the device, the label or the CA said no. The row is closed and its certificate revoked in one transaction.
- interrupted: power, cable, Ctrl-C or the ledger's disk. The row stays open, whoever sees the device next continues
  it with the same key and certificate, and after MAX_INTERRUPTIONS it is quarantined.
- quarantined: device and ledger contradict each other. The certificate is revoked and a person decides.

kill -9 is an interruption that nobody could note. Keys are made on the device: `import_key` is not offered. Which box
holds the key is not shown by any of this; label, locked port and the ledger's uniqueness stand for that.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from mtls.errors import Fault
from mtls.terminal import sanitise
from provisioning.dialects.declared import Ability
from provisioning.dialects.device import Conversation, DeviceGone
from provisioning.dialects.table import SPP1, Dialect
from provisioning.ledger import (
    FINISHED,
    DuplicateKey,
    Ledger,
    LedgerFault,
    OrderComplete,
    Outcome,
    UnitState,
)
from provisioning.port import PortFault
from provisioning.steps import Burn, Contradiction, NothingLeft
from provisioning.trace import Trace
from provisioning.unit_order import Signer, UnitOrder
from provisioning.verdict import Step, Verdict

__all__ = ["Step", "UnitOrder", "Verdict", "burn"]

MAX_REASON_CHARS = 300
MAX_INTERRUPTIONS = 3  # a cable is pulled once or twice by accident; what always breaks off is a fault of the unit

Action = Callable[[Burn], None]
Steps = tuple[tuple[Step, Action], ...]

OPENING: Steps = (
    (Step.HELLO, Burn.hello),
    (Step.IDENT, Burn.ident),
    (Step.RESERVE, Burn.reserve),
)
BURNING: Steps = (
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
    (Step.LABEL, Burn.label),
    (Step.CONNECT, Burn.connect),
    (Step.SEAL, Burn.seal),
    (Step.PROVE_SEALED, Burn.prove_sealed),
    (Step.RECORD, Burn.record),
)
# A unit that has a key in the ledger goes on with that key, and with its certificate if it was signed.
CONTINUING: Steps = ((Step.RECOVER, Burn.recover), *BURNING[1:])
# A device that an earlier run sealed and could not record: everything that a sealed device still shows is judged.
FINISHING: Steps = (
    (Step.IDENT_AFTER_RESET, Burn.same_unit),
    (Step.HASH_AFTER_RESET, Burn.hash_after_reset),
    (Step.PROVE_SEALED, Burn.prove_sealed),
    (Step.RECORD, Burn.record),
)
# A step is left out for a dialect that does not declare what it needs.
NEEDS: Mapping[Step, frozenset[Ability]] = {
    Step.PROVE_KEYED: frozenset({Ability.PROOF}),
    Step.CSR: frozenset({Ability.CSR}),
    Step.WRITE_CONF: frozenset({Ability.CONF}),
    Step.HASH: frozenset({Ability.READ_BACK}),
    Step.RESET: frozenset({Ability.RESET}),
    Step.IDENT_AFTER_RESET: frozenset({Ability.RESET}),
    Step.HASH_AFTER_RESET: frozenset({Ability.RESET, Ability.READ_BACK}),
    Step.PROVE_RESET: frozenset({Ability.PROOF}),
    Step.SEAL: frozenset({Ability.SEAL}),
    Step.PROVE_SEALED: frozenset({Ability.SEAL, Ability.PROOF}),
}
NOTHING: frozenset[Ability] = frozenset()
_ENDED = {UnitState.RECORDED: Outcome.PASSED, UnitState.DELIVERED: Outcome.DELIVERED}


def burn(
    port: Any,
    ca: Signer,
    ledger: Ledger,
    *,
    station: str,
    dialect: Dialect = SPP1,
    order: UnitOrder | None = None,
    trace: Trace | None = None,
    progress: Callable[[Step], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Verdict:
    """Burn the unit on `port` and return the verdict; faults of device, port, CA and ledger are verdicts too.

    `port` is what the dialect opens. `progress` is told each step as it begins.
    """
    order = order if order is not None else UnitOrder()
    trace = trace if trace is not None else Trace()
    device = dialect.speak(Conversation(port, order, station, trace, clock))
    run = _Run(Burn(device, ca, ledger, order, station), progress)
    started = clock()
    ending = run.to_the_end()
    device.close()
    return run.verdict(ending, port=port.name, duration_s=clock() - started)


class _Ending:
    """Why a burn did not pass, and what became of its unit."""

    def __init__(
        self, reason: str = "", hint: str = "", outcome: Outcome | None = None, error: BaseException | None = None
    ) -> None:
        self.reason, self.hint, self.outcome, self.error = reason, hint, outcome, error


class _Run:
    """The steps of one burn, one after another, and what their failure means for the ledger."""

    def __init__(self, work: Burn, progress: Callable[[Step], None] | None) -> None:
        self._work = work
        self._progress = progress
        self._step = Step.HELLO

    def to_the_end(self) -> _Ending:
        """All steps, or how they ended."""
        work = self._work
        try:
            self._take(OPENING)
            self._take(self._way())
        except KeyboardInterrupt as error:
            return self._ended(error, "interrupted at the station", "burn the unit again: it is continued then")
        except Exception as error:
            told = work.device.translated(error)
            return self._ended(told, *_explain(told))
        return _Ending(outcome=_ENDED[work.unit.state] if work.unit is not None else None)

    def _way(self) -> Steps:
        work = self._work
        if work.was_sealed:
            return FINISHING
        asked = {Step.LABEL: work.order.label is not None, Step.CONNECT: work.order.gateway is not None}
        can = work.device.declared.abilities
        steps = CONTINUING if work.is_continued else BURNING
        return tuple(
            (step, action) for step, action in steps if asked.get(step, True) and NEEDS.get(step, NOTHING) <= can
        )

    def _take(self, steps: Steps) -> None:
        for self._step, action in steps:
            self._work.device.begin_step(self._step)
            if self._progress is not None:
                self._progress(self._step)
            action(self._work)

    def _ended(self, error: BaseException, reason: str, hint: str) -> _Ending:
        """Tell the ledger what became of the unit; the reason, with what could not be written."""
        work, reason = self._work, sanitise(reason, MAX_REASON_CHARS)
        try:
            outcome = self._settle(error, reason) if work.unit is not None else self._refuse(error, reason)
        except Fault as fault:
            outcome = Outcome.OPEN if work.unit is not None else None
            reason = f"{reason}; and the ledger could not be told: {fault}"
        if outcome in _ENDED.values():
            return _Ending(outcome=outcome, error=error)
        return _Ending(reason, hint, outcome, error)

    def _settle(self, error: BaseException, reason: str) -> Outcome:
        work = self._work
        # Read again: an interruption may have come between a commit and our memory of it.
        work.unit = unit = work.ledger.unit(work.unit.id if work.unit is not None else 0)
        if unit.state in FINISHED:
            return _ENDED[unit.state]
        if _is_interruption(error):
            times = work.ledger.interrupt(unit, self._step, reason)
            if isinstance(error, KeyboardInterrupt) or times < MAX_INTERRUPTIONS:
                return Outcome.OPEN
            work.unit = work.ledger.quarantine(unit, self._step, f"interrupted {times} times, last: {reason}")
            return Outcome.QUARANTINED
        if isinstance(error, Contradiction):
            work.unit = work.ledger.quarantine(unit, self._step, reason)
            return Outcome.QUARANTINED
        work.unit = work.ledger.fail(unit, self._step, reason)
        return Outcome.FAILED

    def _refuse(self, error: BaseException, reason: str) -> Outcome | None:
        """A device that answered and got no unit is a failed attempt; silence, Ctrl-C and a full order are none."""
        if self._step is Step.HELLO or isinstance(error, KeyboardInterrupt | NothingLeft | OrderComplete):
            return None
        work = self._work
        work.ledger.refuse_attempt(work.presented, work.station, self._step, reason)
        return Outcome.FAILED

    def verdict(self, ending: _Ending, *, port: str, duration_s: float) -> Verdict:
        """PASS only without a reason and with a recorded unit, WRITTEN only with a delivered one."""
        work = self._work
        unit, identity, certificate = work.unit, work.identity, work.certificate
        passed = not ending.reason and unit is not None and unit.state is UnitState.RECORDED
        return Verdict(
            passed=passed,
            step=self._step,
            outcome=ending.outcome,
            written=not ending.reason and unit is not None and unit.state is UnitState.DELIVERED,
            reason=ending.reason,
            hint=ending.hint,
            stop_line=isinstance(ending.error, DuplicateKey),
            interrupted=isinstance(ending.error, KeyboardInterrupt),
            port=port,
            station=work.station,
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


def _is_interruption(error: BaseException) -> bool:
    """Power, cable, Ctrl-C, a device that rebooted, or a ledger that cannot be written: nobody said no."""
    return isinstance(error, KeyboardInterrupt | PortFault | DeviceGone) or type(error) is LedgerFault


def _explain(error: Exception) -> tuple[str, str]:
    """Reason and hint."""
    if isinstance(error, Fault):
        return str(error), error.hint
    return f"{type(error).__name__}: {error}", "this is a fault of the station's program: please report it"
