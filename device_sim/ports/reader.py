"""One serial port of the agent, for as long as it takes: found, opened, read into the spool, and lost again.

Runs in a thread of its own. A port is never given up: whatever happens to it (a cable, another program, a hub) is one
PortLost, and the device is looked for by its stable name with a growing pause. Readings that came in one read are
committed together; only then is the device told, with `announce`, how many are safe: `!S N` counts the readings that
were committed since the port was opened.

Commands come from the connection's thread through `offer` and leave through `ended`. They survive an unplug, and are
the gateway's until they have ended.
"""

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from device_sim.lines import SPP1_FRAME
from device_sim.ports.commands import Command, CommandLine, Outcome
from device_sim.ports.config import PortSettings
from device_sim.ports.finding import check_hello
from device_sim.ports.framing import FrameCounts, FrameReader, Kind, encode_frame
from device_sim.ports.parsing import make_parser
from device_sim.ports.spool import Message, Spool
from device_sim.serial_port import AgentPort, PortLost
from device_sim.sources import FIRST_RETRY_S, LONGEST_RETRY_S, STOP_POLL_S

STEADY_S = 10.0  # a port that lived this long was good: the next look comes quickly again
Ended = Callable[[str, Command, Outcome], None]


class PortReader:
    """Reads one port until `stop`; `ended` is called in this thread for every command that has ended."""

    def __init__(self, settings: PortSettings, spool: Spool, narrate: Callable[[str], None], ended: Ended) -> None:
        self.settings = settings
        self.counts = FrameCounts()
        self._spool = spool
        self._narrate = narrate
        self._ended = ended
        self._parse = make_parser(settings.parser, columns=settings.columns, kind=settings.kind)
        self._offered: deque[Command] = deque()
        self._unfinished: tuple[Command, ...] = ()
        self._told = ""

    def offer(self, command: Command) -> None:
        """Queue a command; from any thread."""
        self._offered.append(command)

    def run(self, stop: threading.Event) -> None:
        """Until `stop`, or until the spool is ended."""
        pause_s = FIRST_RETRY_S
        while not stop.is_set():
            started = monotonic()
            try:
                port = self._open()
            except PortLost as lost:
                self._tell(f"port {self.settings.name} is not there: {lost}; waiting for it")
            else:
                self._use(port, stop)
            pause_s = FIRST_RETRY_S if monotonic() - started > STEADY_S else pause_s
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_RETRY_S)

    def _open(self) -> AgentPort:
        """The first candidate that opens and, where HELLO is asked, answers; PortLost with the last one's reason."""
        settings, why = self.settings, PortLost("no port fits")
        for path in settings.device.candidates():
            port = None
            try:
                port = AgentPort(path, baud=settings.baud, dtr=settings.dtr, rts=settings.rts)
                if settings.device.hello:
                    check_hello(port, settings.device.hello)
            except PortLost as lost:
                why = PortLost(f"{path}: {lost}")
                if port is not None:
                    port.close()
                continue
            self._told = ""
            self._narrate(f"reading port {settings.name} on {path}")
            return port
        raise why

    def _use(self, port: AgentPort, stop: threading.Event) -> None:
        settings = self.settings
        line = CommandLine(
            settings.framing,
            window=settings.window_bytes,
            max_frame=settings.max_frame_bytes,
            waiting=self._unfinished,
        )
        try:
            self._read(port, line, stop)
        except PortLost as lost:
            self._tell(f"port {settings.name} went away ({lost}); waiting for it")
        finally:
            port.close()
            self._report(line)
            self._unfinished = line.unfinished

    def _read(self, port: AgentPort, line: CommandLine, stop: threading.Event) -> None:
        settings, committed = self.settings, 0
        # A new reader per opening: the half frame before an unplug never meets the half frame after it.
        frames = FrameReader(settings.framing, self.counts, settings.max_frame_bytes)
        while not stop.is_set():
            while self._offered:
                line.offer(self._offered.popleft())
            if data := line.send(monotonic()):
                port.write(data)
            self._report(line)
            messages = self._messages(frames.feed(port.read(STOP_POLL_S)), line)
            if not messages:
                continue
            if not self._spool.put(messages):
                return
            committed += len(messages)
            if settings.announce:
                port.write(encode_frame(settings.framing, b"!S %d" % committed))

    def _messages(self, frames: list[bytes], line: CommandLine) -> list[Message]:
        settings, messages = self.settings, []
        for frame in frames:
            is_talk = settings.framing is Kind.LINE and frame.startswith(SPP1_FRAME)
            if is_talk or (settings.commands and line.hear(frame)):
                continue
            reading = self._parse(frame)
            if reading is None:
                self.counts.unparsed += 1
                continue
            messages.append(Message(settings.topic_of(reading.kind), reading.payload, settings.qos))
        return messages

    def _report(self, line: CommandLine) -> None:
        while line.ended:
            command, outcome = line.ended.pop(0)
            self._ended(self.settings.name, command, outcome)

    def _tell(self, text: str) -> None:
        # Said once per reason: a device may stay away for days.
        if text != self._told:
            self._narrate(text)
        self._told = text
