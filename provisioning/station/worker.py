"""One port of the station: wait for a device, burn it, wait until it is gone. One thread and one lock per port.

A device is looked for by its dialect's greeting and identity over the open port; opening it again and again would reset
boards. The unit that was served last is left alone until it is unplugged or another answers. One whose burn was cut
short is continued as soon as it answers again, by the burn itself. Everything the worker tells goes through `tell`; it
prints nothing.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provisioning.burning import burn
from provisioning.dialects.device import Conversation
from provisioning.dialects.table import Dialect
from provisioning.ledger import FINISHED, Ledger, Outcome
from provisioning.port import PortFault
from provisioning.session import Port
from provisioning.spp1.host import Identity
from provisioning.station import events
from provisioning.trace import Trace
from provisioning.unit_order import Signer, UnitOrder
from provisioning.verdict import Step

ABSENT_PAUSE_S = 0.05  # until a port that is not there is looked for again
IDLE_PAUSE_S = 0.25  # until a port on which nobody answers is asked again
FULL_PAUSE_S = 1.0  # until a unit that the order has no room for is tried again: others may fail meanwhile
KNOCK_S = 0.5  # how long a device has to answer the question whether it is there

Tell = Callable[[str, str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Rules:
    """What all workers of a station share."""

    station: str
    signer: Signer
    dialect: Dialect
    open_ledger: Callable[[], Ledger]
    order: Callable[[str], UnitOrder]
    baud: int
    tell: Tell
    stop: threading.Event
    abort: threading.Event
    trace_folder: Path | None = None


class StoppablePort:
    """A port on which a second Ctrl-C arrives in every thread that waits."""

    def __init__(self, port: Port, abort: threading.Event) -> None:
        self.name = port.name
        self._port = port
        self._abort = abort

    def read(self, timeout_s: float) -> bytes:
        self._check()
        return self._port.read(timeout_s)

    def write(self, data: bytes) -> float:
        self._check()
        return self._port.write(data)

    def reopen(self, timeout_s: float) -> None:
        self._check()
        self._port.reopen(timeout_s)

    def _check(self) -> None:
        if self._abort.is_set():
            raise KeyboardInterrupt


class Worker(threading.Thread):
    """Serves one port until the station stops; `failure` is a fault of the program, if there was one."""

    def __init__(self, name: str, path: str, rules: Rules) -> None:
        super().__init__(name=f"port-{name}", daemon=True)
        self.failure: BaseException | None = None
        self._port_name = name
        self._path = path
        self._rules = rules
        self._served: Identity | None = None
        self._state = ""

    def run(self) -> None:
        """The thread: the port comes and goes, the worker stays."""
        try:
            with self._rules.open_ledger() as ledger:
                while not self._rules.stop.is_set():
                    try:
                        with self._rules.dialect.open_port(self._path, self._rules.baud) as port:
                            self._serve(StoppablePort(port, self._rules.abort), ledger)
                    except PortFault as fault:
                        self._served = None
                        self._show("absent", detail=str(fault))
                        self._rules.stop.wait(ABSENT_PAUSE_S)
        except KeyboardInterrupt:
            self._show("stopped")
        except BaseException as error:  # told by the station, which ends because of it
            self.failure = error
            self._rules.stop.set()

    def _serve(self, port: Port, ledger: Ledger) -> None:
        while not self._rules.stop.is_set():
            identity = self._who_is_there(port)
            if identity is None:
                self._served = None
                self._show("waiting")
                self._rules.stop.wait(IDLE_PAUSE_S)
            elif identity == self._served:
                if self._state != "recorded":
                    self._show("done", hardware_serial=identity.sn)
                port.read(IDLE_PAUSE_S)  # a port that goes away shows here
            elif self._is_recorded(ledger, identity):
                self._served = identity
                self._show("recorded", hardware_serial=identity.sn)
            else:
                self._burn(port, ledger, identity)

    @staticmethod
    def _is_recorded(ledger: Ledger, identity: Identity) -> bool:
        """A finished unit that is shown again is no attempt: there is nothing to do with it."""
        newest = ledger.units_named(identity.sn)[-1:]
        return any(unit.uid == identity.uid and unit.state in FINISHED for unit in newest)

    def _who_is_there(self, port: Port) -> Identity | None:
        rules = self._rules
        order = rules.order(self._port_name)
        return rules.dialect.speak(Conversation(port, order, rules.station, Trace())).look(KNOCK_S)

    def _burn(self, port: Port, ledger: Ledger, identity: Identity) -> None:
        rules = self._rules
        self._state = "burning"
        trace = rules.trace_folder
        with Trace() if trace is None else Trace.open(trace / f"{self._port_name}.log") as opened:
            verdict = burn(
                port,
                rules.signer,
                ledger,
                station=rules.station,
                dialect=rules.dialect,
                order=rules.order(self._port_name),
                trace=opened,
                progress=lambda step: self._show_step(step, identity),
            )
        if verdict.outcome is None:
            if verdict.step is not Step.HELLO:  # the order has no room; a HELLO that was lost says nothing
                self._show("full", detail=verdict.reason)
                rules.stop.wait(FULL_PAUSE_S)
            return
        rules.tell(events.VERDICT, self._port_name, events.verdict_facts(verdict))
        if verdict.outcome is Outcome.OPEN:  # it is continued when it answers again
            rules.stop.wait(IDLE_PAUSE_S)
        else:
            self._served = identity

    def _show_step(self, step: Step, identity: Identity) -> None:
        self._rules.tell(events.STEP, self._port_name, {"step": step, "hardware_serial": identity.sn})

    def _show(self, state: str, **facts: Any) -> None:
        if state != self._state:
            self._state = state
            self._rules.tell(events.PORT, self._port_name, {"state": state, **facts})
