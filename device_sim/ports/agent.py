"""The agent of an agent.toml: every port's readings through one spool and one connection, and commands back down.

    devices/ID/telemetry/PORT       what a port reads, unless the configuration names other topics
    devices/ID/commands/PORT/REF    a command for the device on that port; REF is the sender's name for it
    devices/ID/results/PORT/REF     how it ended: {"result":"done"}, and the like (commands.py, Outcome)

A command gets its PUBACK when it has ended and its result is in the spool. Until then it is the gateway's, in a session
that persists: the gateway sends it again after a loss. What comes again marked as a duplicate is not given to the
device twice as long as this process lives; after a restart it may be, so commands should say what is to be.
"""

import contextlib
import json
import re
import ssl
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime

from device_sim.agent import Courier, Settings
from device_sim.credentials import CertificateFault
from device_sim.mqtt_client import MAX_IN_FLIGHT, Connection, Received
from device_sim.outbox import Tally
from device_sim.ports.commands import Command, Outcome
from device_sim.ports.config import AgentConfig
from device_sim.ports.reader import PortReader
from device_sim.ports.spool import Message, Spool

MAX_REMEMBERED = 256  # commands that ended, against duplicates; the gateway has at most its max_inflight of ours open
_REFERENCE = re.compile(r"[A-Za-z0-9_-]{1,32}")
_Key = tuple[str, Command]


class PortAgent(Courier):
    """One run of an agent with serial ports."""

    def __init__(self, config: AgentConfig, *, wake: int, narrate: Callable[[str], None]) -> None:
        settings = Settings(
            config.device_id,
            config.files,
            config.endpoint,
            topic="",
            retry_forever=True,
            renew_at=config.renew_at,
        )
        self._spool = Spool(config.spool_file, config.spool_bytes, config.when_full, narrate)
        super().__init__(settings, self._spool, wake=wake, narrate=narrate)
        self._ports = {port.name: PortReader(port, self._spool, narrate, self._command_ended) for port in config.ports}
        self._commands = threading.Lock()
        self._open: dict[_Key, Received | None] = {}  # the message to confirm on this connection
        self._ended: OrderedDict[_Key, None] = OrderedDict()
        self._to_confirm: list[Received] = []

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """What each port made of its bytes."""
        return {name: asdict(port.counts) for name, port in self._ports.items()}

    def run(self) -> Tally:
        """Until `wake`; ConfigFault for files that cannot be used, Fault for a port's reader that broke.

        A certificate out of its dates, or a refusal by the gateway, ends nothing here: the ports must be read on.
        """
        with contextlib.suppress(CertificateFault):
            self._credentials.context(datetime.now(UTC))
        return super().run()

    # --- the ports' threads ---

    def _threads(self) -> list[threading.Thread]:
        return [
            threading.Thread(target=self._run_port, args=(port,), name=f"port {name}", daemon=True)
            for name, port in self._ports.items()
        ]

    def _run_port(self, port: PortReader) -> None:
        try:
            port.run(self._stop_source)
        except Exception as error:  # whatever it is: an agent that reads only some of its ports must not look healthy
            self._source_fault = error
            self._spool.ring()

    def _is_stopped(self) -> bool:
        return self._source_fault is not None or super()._is_stopped()

    def _command_ended(self, name: str, command: Command, outcome: Outcome) -> None:
        topic = f"devices/{self._settings.device_id}/results/{name}/{command.reference}"
        payload = json.dumps({"result": outcome}, separators=(",", ":")).encode()
        if not self._spool.put([Message(topic, payload)]):
            return  # ending: without its PUBACK the command comes again to the next run
        with self._commands:
            self._ended[name, command] = None
            while len(self._ended) > MAX_REMEMBERED:
                self._ended.popitem(last=False)
            received = self._open.pop((name, command), None)
            if received is not None:
                self._to_confirm.append(received)
        self._spool.ring()

    # --- the connection's thread ---

    def _connect(self, context: ssl.SSLContext) -> Connection:
        with self._commands:
            self._to_confirm.clear()
            self._open = dict.fromkeys(self._open)
        settings = self._settings
        filters = [
            f"devices/{settings.device_id}/commands/{name}/+"
            for name, port in self._ports.items()
            if port.settings.commands
        ]
        return Connection(settings.endpoint, context, settings.device_id, settings.state, filters)

    def _fill(self, connection: Connection) -> None:
        self._take_commands(connection)
        while self._spool.in_flight < MAX_IN_FLIGHT:
            taken = self._spool.take()
            if taken is None:
                return
            row, message = taken
            self._spool.sent(connection.publish(message.topic, message.payload, qos=message.qos), row)

    def _take_commands(self, connection: Connection) -> None:
        for topic_filter in connection.refused:
            self._narrate(f"warning: the gateway grants no subscription to {topic_filter}: no commands come")
        connection.refused.clear()
        for received in connection.received:
            self._take_command(received)
        connection.received.clear()
        with self._commands:
            ready, self._to_confirm = self._to_confirm, []
        for received in ready:
            connection.confirm(received)

    def _take_command(self, received: Received) -> None:
        name, reference = received.topic.split("/")[-2:]
        port = self._ports.get(name)
        if port is None or not _REFERENCE.fullmatch(reference):
            self._narrate("warning: a command without a usable reference was dropped")
            self._to_confirm.append(received)
            return
        command = Command(reference, received.payload)
        with self._commands:
            key = (name, command)
            is_known = key in self._open
            if received.is_duplicate and not is_known and key in self._ended:
                self._to_confirm.append(received)
                return
            if is_known and not received.is_duplicate:
                self._to_confirm.append(received)  # the same again while the first one runs: one result answers both
                return
            self._open[key] = received
        if not is_known:
            port.offer(command)
