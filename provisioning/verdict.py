"""What came out of burning one unit: PASS, WRITTEN, or FAIL with the step and the reason.

A verdict is built once, at the end, and holds only text that is safe to print. PASS exists only with everything
known (the constructor `passed` is called after the record). WRITTEN is a unit that has its certificate, read back where
that is possible, and gave no proof of possession after a reset, because its kind cannot. Everything else is FAIL.
"""

from dataclasses import asdict, dataclass
from enum import StrEnum

from provisioning.ledger_schema import Outcome


class Step(StrEnum):
    """The steps of a burn, in their order; public names, they stand in verdicts, ledgers and records."""

    HELLO = "hello"
    IDENT = "ident"
    RESERVE = "reserve"
    RECOVER = "recover"
    KEYGEN = "keygen"
    PROVE_KEYED = "prove-keyed"
    CSR = "csr"
    ISSUE = "issue"
    WRITE_CHAIN = "write-chain"
    WRITE_CA = "write-ca"
    WRITE_CONF = "write-conf"
    HASH = "hash"
    RESET = "reset"
    IDENT_AFTER_RESET = "ident-after-reset"
    HASH_AFTER_RESET = "hash-after-reset"
    PROVE_RESET = "prove-reset"
    LABEL = "label"
    CONNECT = "connect"
    SEAL = "seal"
    PROVE_SEALED = "prove-sealed"
    RECORD = "record"


_AFTER = {Outcome.OPEN: "; unfinished: resume it", Outcome.QUARANTINED: "; quarantined"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one burn. `stop_line` says that the next unit must not be started before somebody looked.

    An `outcome` that is open is a unit left unfinished, to be continued; None is that nothing was started.
    `interrupted` is Ctrl-C: whoever was going to burn more units stops.
    """

    passed: bool
    step: Step
    written: bool = False
    outcome: Outcome | None = None
    reason: str = ""
    hint: str = ""
    stop_line: bool = False
    interrupted: bool = False
    port: str = ""
    station: str = ""
    unit_id: int | None = None
    device_id: str = ""
    hardware_serial: str = ""
    uid: str = ""
    model: str = ""
    firmware: str = ""
    spki_sha256: str = ""
    certificate_serial: str = ""
    fingerprint_sha256: str = ""
    not_after: str = ""
    duration_s: float = 0.0

    @property
    def exit_code(self) -> int:
        """The program's: 0 for PASS, and for WRITTEN where it was accepted beforehand; 1 for everything else."""
        return 0 if self.passed or self.written else 1

    @property
    def word(self) -> str:
        """The one word of it."""
        return "PASS" if self.passed else "WRITTEN" if self.written else "FAIL"

    def as_row(self) -> dict[str, object]:
        """All of it as plain values, for JSON."""
        return {"verdict": self.word, **asdict(self)}

    def __str__(self) -> str:
        name = self.device_id or self.hardware_serial or self.port
        if self.passed:
            return f"PASS {name}: valid until {self.not_after[:10]}, fingerprint {self.fingerprint_sha256}"
        if self.written:
            return (
                f"WRITTEN {name}: valid until {self.not_after[:10]}, fingerprint {self.fingerprint_sha256}; "
                "no proof of its key after a reset"
            )
        after = "; stop the line" if self.stop_line else _AFTER.get(self.outcome or Outcome.PASSED, "")
        return f"FAIL {name} at {self.step}: {self.reason}{after}"
