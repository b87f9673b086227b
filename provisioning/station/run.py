"""The station: workers on an allow-list of ports, one signer, one stream of events, and when it all ends.

It ends when the work order has its quantity or its quota, when a public key came twice (the line stops), or when
somebody says so: the first Ctrl-C lets units in work finish, the second interrupts them, and they are continued later.
Ports are physical places, so they are named by /dev/serial/by-path: a ttyUSB number or a by-id name may be another
socket tomorrow.
"""

import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtls.errors import ConfigFault, Fault
from provisioning.ca_folder import CaFolder
from provisioning.dialects.table import BURNABLE
from provisioning.ledger import Counts, Ledger
from provisioning.station import events
from provisioning.station.events import Event
from provisioning.station.order import WorkOrder
from provisioning.station.scanner import Lines, Scanner
from provisioning.station.worker import Rules, Worker
from provisioning.unit_order import Gateway, LabelSource, Signer, UnitOrder

UNSTABLE = ("/dev/ttyUSB", "/dev/ttyACM", "/dev/serial/by-id/")
MAX_PORTS = 64
TICK_S = 0.5
JOIN_S = 400.0  # a step may take 300 s; a worker that is still there then is left behind and told

Show = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How one run of the station is set up."""

    name: str
    ports: Mapping[str, str]
    baud: int
    accept_clock: bool
    trace_folder: Path | None = None
    gateway: Gateway | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """Why the station ended, and the work order's counts at that moment."""

    why: str
    counts: Counts
    is_good: bool

    @property
    def exit_code(self) -> int:
        return 0 if self.is_good else 1


def parse_ports(texts: Sequence[str]) -> dict[str, str]:
    """`NAME=PATH` or `PATH` each; ConfigFault for a name that does not stay at its socket, or one that stands twice."""
    ports: dict[str, str] = {}
    for number, text in enumerate(texts, 1):
        name, sign, path = text.partition("=")
        name, path = (name, path) if sign and "/" not in name else (str(number), text)
        if path.startswith(UNSTABLE):
            raise ConfigFault(
                f"{path} does not name a physical port: another adapter may have that name tomorrow",
                hint="take the name under /dev/serial/by-path: ls -l /dev/serial/by-path",
            )
        if name in ports or path in ports.values() or not name.isprintable() or " " in name or not path:
            raise ConfigFault(f"the port {text} stands twice or has no usable name", hint="--port left=/dev/serial/...")
        ports[name] = path
    if not 1 <= len(ports) <= MAX_PORTS:
        raise ConfigFault(f"a station has 1 to {MAX_PORTS} ports", hint="--port left=/dev/serial/by-path/...")
    return ports


INTERRUPT = Event("interrupt", 0.0)


class Station:
    """One run; `run` returns when it is over."""

    def __init__(
        self,
        settings: Settings,
        order: WorkOrder,
        folder: CaFolder,
        signer: Signer,
        show: Show,
        labels: Lines | None = None,
    ) -> None:
        missing = BURNABLE[order.dialect].declared.missing(order.needs(settings.gateway))
        if missing:
            raise ConfigFault(
                f"work order {order.name}: a device of dialect {order.dialect} cannot do what is asked: "
                f"{', '.join(missing)}",
                hint="mqtt-provision dialects says what each can do",
            )
        self.stop, self.abort, self._over = threading.Event(), threading.Event(), threading.Event()
        self._settings, self._order, self._folder, self._signer, self._show = settings, order, folder, signer, show
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._why = ""
        self._is_good = True
        self._scanner: Scanner | None = None
        if labels is not None:
            self._scanner = Scanner(settings.ports, lambda port, text: self._tell(events.LABEL, port, {"detail": text}))
            threading.Thread(target=self._scan, args=(labels,), name="scanner", daemon=True).start()

    def run(self) -> Ending:
        """Serve the ports until the order is complete or somebody stops it."""
        with ExitStack() as stack:
            stack.enter_context(self._folder.burning())
            ledger = stack.enter_context(Ledger.open(self._folder.ledger))
            self._open(ledger)
            stack.enter_context(self._on_interrupt())
            workers = [Worker(name, path, self._rules()) for name, path in self._settings.ports.items()]
            for worker in workers:
                worker.start()
            stack.callback(self._over.set)
            self._follow(ledger, workers)
            counts = ledger.counts(self._order.name)
        failure = next((worker.failure for worker in workers if worker.failure is not None), None)
        if failure is not None:
            raise failure if isinstance(failure, Fault) else Fault(f"a port's worker ended: {failure!r}")
        ending = Ending(self._why or "stopped by the operator", counts, self._is_good)
        self._show(Event(events.END, time.monotonic(), facts={"why": ending.why, "counts": counts.as_row()}))
        return ending

    def _open(self, ledger: Ledger) -> None:
        counts = ledger.counts(self._order.name)
        unfinished = [unit.hardware_serial for unit in ledger.unfinished()]
        facts = {"state": "open", "order": self._order.name, "counts": counts.as_row(), "unfinished": unfinished}
        self._show(Event(events.LINE, time.monotonic(), facts=facts))
        self._judge(counts)

    def _follow(self, ledger: Ledger, workers: Sequence[Worker]) -> None:
        """Show events until every worker has ended."""
        deadline = None
        while any(worker.is_alive() for worker in workers) or not self._events.empty():
            try:
                event = self._events.get(timeout=TICK_S)
            except queue.Empty:
                event = Event("tick", time.monotonic())
            if event is INTERRUPT:
                self._interrupted()
            else:
                self._take(event, ledger)
            if self.stop.is_set():
                deadline = deadline or time.monotonic() + JOIN_S
                if time.monotonic() > deadline:
                    raise Fault("a port did not come to an end", hint="its unit is unfinished: mqtt-provision resume")

    def _take(self, event: Event, ledger: Ledger) -> None:
        self._show(event)
        if event.kind != events.VERDICT:
            return
        if event.facts["stop_line"]:
            self._end("a public key came twice: the line stops", is_good=False)
        self._judge(ledger.counts(self._order.name))

    def _judge(self, counts: Counts) -> None:
        order = self._order
        good = counts.passed + counts.delivered
        if good >= order.quantity:
            self._end(f"work order {order.name} is complete: {good} units", is_good=True)
        elif order.quota and counts.started >= order.quota and not counts.open:
            self._end(f"work order {order.name} has used its quota of {order.quota} attempts", is_good=False)

    @contextmanager
    def _on_interrupt(self) -> Iterator[None]:
        """Ctrl-C as a wish and not as an exception, which could come between any two lines.

        The handler may interrupt itself and anything else, locks included, so it does the one thing that is safe there.
        """
        before = signal.signal(signal.SIGINT, lambda *_: self._events.put(INTERRUPT))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupted(self) -> None:
        if self.stop.is_set():
            self.abort.set()
        self._end("", is_good=True)
        self._tell(events.LINE, "", {"state": "aborting" if self.abort.is_set() else "stopping"})

    def _end(self, why: str, *, is_good: bool) -> None:
        if not self.stop.is_set():
            self._why, self._is_good = why, is_good
        self.stop.set()

    def _rules(self) -> Rules:
        return Rules(
            station=self._settings.name,
            signer=self._signer,
            open_ledger=lambda: Ledger.open(self._folder.ledger),
            dialect=BURNABLE[self._order.dialect],
            order=self._unit_order,
            baud=self._settings.baud,
            tell=self._tell,
            stop=self.stop,
            abort=self.abort,
            trace_folder=self._settings.trace_folder,
        )

    def _unit_order(self, port: str) -> UnitOrder:
        return self._order.unit_order(
            port=port,
            accept_clock=self._settings.accept_clock,
            label=self._label_source(port),
            gateway=self._settings.gateway,
        )

    def _label_source(self, port: str) -> LabelSource | None:
        scanner = self._scanner
        if scanner is None:
            return None
        return lambda right: scanner.ask(port, right, self.abort.is_set)

    def _scan(self, lines: Lines) -> None:
        # Units in work still want their labels when the station has been told to stop.
        for line in lines(self._over.is_set):
            if self._scanner is not None:
                self._scanner.feed(line)

    def _tell(self, kind: str, port: str, facts: Mapping[str, Any]) -> None:
        self._events.put(Event(kind, time.monotonic(), port, facts))
