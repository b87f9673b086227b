"""What is done about units that were left unfinished: continued where their device is, else set aside.

A crash, a power cut or a pulled cable leaves a unit's row open. Whoever sees its device next continues it
(`burning`); `settle` is for the end: the ports that are named are asked once more, and a unit whose device was at none
of them is quarantined, its certificate revoked. One that broke off again stays open: its device is there. That is only
done while nobody burns on this ledger, because an open row may belong to a burn that runs at this moment.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace

from mtls.errors import Fault
from provisioning.burning import Step, UnitOrder, Verdict, burn
from provisioning.ca_folder import CaFolder
from provisioning.dialects.table import SPP1, Dialect
from provisioning.ledger import Ledger, Unit
from provisioning.session import Port
from provisioning.unit_order import Signer

ABSENT = "left unfinished, and its device was not at the ports that were asked"
Opener = Callable[[str], AbstractContextManager[Port]]


@dataclass(frozen=True, slots=True)
class Settlement:
    """What `settle` did: the verdicts of the devices it found, the units it set aside, what it could not ask."""

    verdicts: tuple[Verdict, ...]
    set_aside: tuple[Unit, ...]
    left_open: tuple[Unit, ...]
    unasked: tuple[str, ...]

    def as_row(self) -> dict[str, object]:
        """For JSON."""
        return {
            "devices": [verdict.as_row() for verdict in self.verdicts],
            "set_aside": [asdict(unit) for unit in self.set_aside],
            "left_open": [asdict(unit) for unit in self.left_open],
            "unasked": list(self.unasked),
        }

    def lines(self) -> list[str]:
        """For people, a line per unit."""
        told = [str(verdict) for verdict in self.verdicts]
        told += [f"QUARANTINED {unit.device_id} ({unit.hardware_serial})" for unit in self.set_aside]
        told += [f"OPEN {unit.device_id} ({unit.hardware_serial})" for unit in self.left_open]
        return told or ["nothing was unfinished"]

    @property
    def exit_code(self) -> int:
        """0 when every unfinished unit has been finished."""
        finished = all(verdict.exit_code == 0 for verdict in self.verdicts)
        return 0 if finished and not self.set_aside and not self.left_open else 1


def settle(
    folder: CaFolder,
    signer: Signer,
    ledger: Ledger,
    ports: Iterable[str],
    open_port: Opener,
    *,
    station: str,
    order: UnitOrder,
    dialect: Dialect = SPP1,
    keep_absent: bool = False,
) -> Settlement:
    """Continue the unfinished units whose devices are at `ports`; quarantine the others unless `keep_absent`.

    Ctrl-C in a burn ends the asking, and nothing is quarantined: a port that was not asked says nothing. An order that
    no device of the dialect can fulfil is a Fault: whoever forgot an option must not lose units by it.
    """
    ports = tuple(ports)
    if ports:
        dialect.declared.require(order.needs)
    verdicts: list[Verdict] = []
    unasked: list[str] = []
    with folder.burning(alone=not keep_absent):
        for path in ports:
            try:
                with open_port(path) as port:
                    unfinished = replace(order, unfinished_only=True)
                    verdict = burn(port, signer, ledger, station=station, dialect=dialect, order=unfinished)
                if verdict.outcome is not None:
                    verdicts.append(verdict)
                elif verdict.step is Step.HELLO:
                    unasked.append(verdict.reason)
                if verdict.interrupted:
                    keep_absent = True
                    break
            except Fault as fault:
                unasked.append(str(fault))
        there = {verdict.unit_id for verdict in verdicts}
        left_open = [unit for unit in ledger.unfinished() if keep_absent or unit.id in there]
        absent = [unit for unit in ledger.unfinished() if unit not in left_open]
        set_aside = [ledger.quarantine(unit, unit.step or str(unit.state), ABSENT) for unit in absent]
    return Settlement(tuple(verdicts), tuple(set_aside), tuple(left_open), tuple(unasked))
