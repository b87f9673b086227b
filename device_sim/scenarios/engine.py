"""Runs a scenario: phase by phase, groups of devices come and go, actions are taken at their time, all is measured.

One event loop holds every fleet, the observer and the proxy; what an operator does runs in threads (actions.py). Each
group's figures are taken at the end of each phase, so a phase's figures are its own and the run's are their sum. A
phase lasts until its time is over and its actions are done. Nothing is judged here: judging.py does that afterwards.
"""

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from device_sim.connection_faults import Endpoint
from device_sim.fleet.figures import Deliveries, LoadMeter
from device_sim.fleet.fleet import Fleet, Sample
from device_sim.fleet.histogram import Histogram
from device_sim.fleet.identities import SimulationCa
from device_sim.fleet.observer import Observer, until_heard
from device_sim.network.fault_proxy import FaultProxy
from device_sim.scenarios.actions import ACTIONS, Doer, Ground
from device_sim.scenarios.judging import Judge, Span, sum_of
from device_sim.scenarios.model import Devices, Phase, Scenario, Step
from device_sim.scenarios.result import PhaseResult, ScenarioResult
from device_sim.targets.brokers import OurGateway, ProcessBroker
from device_sim.targets.programs import resident_bytes
from device_sim.targets.site import OBSERVER
from mtls.errors import Fault

ANSWERS_S = 5.0
LOOKS_EVERY_S = 0.05  # how fine the time of a recovery is seen
DRAIN_S, LAST_DRAIN_S = 2.0, 5.0  # for outstanding acknowledgements, when a group goes and at the end of the run

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Place:
    """The broker that a scenario is run against, and who issues its devices' certificates."""

    name: str
    endpoint: Endpoint
    ca: SimulationCa
    broker: ProcessBroker | None = None  # None: it runs already, and is not operated from here
    patience_s: float = 4.0

    def audit(self) -> list[Mapping[str, Any]] | None:
        """The audit log so far; None where there is none to read."""
        return [*self.broker.site.audit()] if isinstance(self.broker, OurGateway) else None

    def memory(self) -> int | None:
        """Resident bytes of the broker; None when it is not ours, or is down."""
        return resident_bytes(self.broker.process_id()) if self.broker is not None else None


@dataclass(slots=True)
class _Course:
    """What is looked at many times a second, of all groups that are there."""

    begin_s: float
    samples: list[Sample] = field(default_factory=list)
    incomplete_at: dict[str, float] = field(default_factory=dict)  # group -> when a device of it was last away

    def look(self, fleets: Mapping[str, Fleet]) -> None:
        now = asyncio.get_running_loop().time()
        connected = {name: fleet.connected for name, fleet in fleets.items()}
        for name, number in connected.items():
            if number < len(fleets[name].devices):
                self.incomplete_at[name] = now
        second = int(now - self.begin_s)
        if not self.samples or second > self.samples[-1].at_s:
            backlog = sum(fleet.backlog for fleet in fleets.values())
            self.samples.append(Sample(float(second), sum(connected.values()), backlog))


def check_place(scenario: Scenario, place: Place) -> None:
    """Fault when the scenario needs an operator and the broker is somebody else's."""
    if place.broker is None:
        for phase in scenario.phases:
            for step in phase.steps:
                if ACTIONS[step.action].doer is Doer.OPERATOR:
                    raise Fault(
                        f"the action {step.action} in the phase {phase.name} needs a broker that is started here",
                        hint="give --target instead of --broker",
                    )


def check_answers(place: Place) -> None:
    """Fault at once when nobody listens there: devices would only be patient."""
    try:
        socket.create_connection((place.endpoint.host, place.endpoint.port), ANSWERS_S).close()
    except OSError as error:
        raise Fault(
            f"nothing answers at {place.endpoint}: {(error.strerror or 'time-out').lower()}",
            hint="start the gateway, or give --target to have one started",
        ) from error


async def run(scenario: Scenario, place: Place, seed: int, progress: Progress = lambda _: None) -> ScenarioResult:
    """One run; Fault when it cannot be carried out."""
    check_place(scenario, place)
    async with contextlib.AsyncExitStack() as stack:
        engine = await stack.enter_async_context(_Engine.prepared(scenario, place, seed, progress))
        return await engine.carry_out()


class _Engine:
    """One run's state."""

    def __init__(
        self, scenario: Scenario, place: Place, seed: int, progress: Progress, proxy: FaultProxy | None
    ) -> None:
        self.scenario, self.place, self.seed, self.progress = scenario, place, seed, progress
        self.endpoint = Endpoint("127.0.0.1", proxy.port, place.endpoint.ca_file) if proxy else place.endpoint
        self.groups = {devices.name: scenario.group_of(devices, seed) for devices in scenario.devices}
        ids = {name: group.ids for name, group in self.groups.items()}
        self.ground = Ground(place.ca, place.broker, proxy, ids, place.patience_s)
        self.heard: Counter[int] = Counter()
        self.deliveries = {name: Deliveries(heard=self.heard) for name in self.groups}
        self.spans: list[Span] = []
        self.phases: list[PhaseResult] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def prepared(
        cls, scenario: Scenario, place: Place, seed: int, progress: Progress
    ) -> AsyncIterator["_Engine"]:
        """Certificates made, the proxy in place, the observer listening; all is let go of at the end."""
        async with contextlib.AsyncExitStack() as stack:
            proxy = None
            if scenario.uses(*(name for name, action in ACTIONS.items() if action.doer is Doer.NETWORK)):
                target = (place.endpoint.host, place.endpoint.port)
                proxy = await stack.enter_async_context(FaultProxy(*target, seed=seed))
            engine = cls(scenario, place, seed, progress, proxy)
            for ids in engine.ground.ids.values():
                for device_id in ids:
                    place.ca.of(device_id)
            if scenario.listen:
                hearing = Deliveries(heard=engine.heard).hear
                observer = Observer(place.ca.new(OBSERVER, ou="services"), place.endpoint, scenario.listen, hearing)
                await observer.start()
                stack.push_async_callback(observer.stop)
            stack.push_async_callback(engine.let_go)
            yield engine

    async def carry_out(self) -> ScenarioResult:
        """Every phase, and then the judgement."""
        loop, meter, started_at = asyncio.get_running_loop(), LoadMeter(), datetime.now(UTC)
        self.course = _Course(loop.time())
        memory_before = self.place.memory()
        for phase in self.scenario.phases:
            self.progress(f"{phase.name}: {phase.seconds:g} s")
            await self._phase(phase)
        lag = Histogram()
        for phase_result in self.phases:
            for figures in phase_result.groups.values():
                lag.add(figures.lag)
        load, seconds = meter.read(lag), loop.time() - self.course.begin_s
        judge = Judge(self.scenario, self.place.name, self.ground.ids, self.deliveries)
        whole = sum_of(self.spans, _grown(memory_before, self.place.memory()))
        return ScenarioResult(
            name=self.scenario.name,
            description=self.scenario.description,
            broker=self.place.name,
            seed=self.seed,
            started_at=started_at,
            seconds=seconds,
            phases=tuple(self.phases),
            verdicts=judge.verdicts(self.spans, whole),
            course=tuple(self.course.samples),
            load=load,
            lost=judge.lost(),
            duplicates=judge.duplicates(),
            attacks=judge.attacks(whole),
        )

    async def let_go(self) -> None:
        """Disconnect whoever is still there."""
        self.ground.is_over = True
        for fleet in [*self.ground.fleets.values()]:
            await fleet.stop()
        self.ground.fleets.clear()

    # --- a phase ---

    async def _phase(self, phase: Phase) -> None:
        loop, fleets = asyncio.get_running_loop(), self.ground.fleets
        began, lines = loop.time(), self.place.audit()
        memory, attacked = self.place.memory(), len(self.ground.attacked)
        for devices in self.scenario.devices:
            if devices.phases[0] == phase.name:
                self._come(devices)
        watching = loop.create_task(self._watch())
        try:
            acted = await self._act(phase, began)
            await asyncio.sleep(max(0.0, began + phase.seconds - loop.time()))
            is_last = phase is self.scenario.phases[-1]
            leaving = [d.name for d in self.scenario.devices if d.phases[-1] == phase.name]
            await asyncio.gather(*(_finish(fleets[name], LAST_DRAIN_S if is_last else DRAIN_S) for name in leaving))
            if is_last and self.scenario.listen:
                await until_heard([*self.deliveries.values()])
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        span = Span(phase.name, attacked=self.ground.attacked[attacked:])
        for name, fleet in fleets.items():
            span.connected[name] = fleet.connected
            is_whole = fleet.connected == len(fleet.devices)
            away_s = self.course.incomplete_at.get(name, acted) - acted
            span.recovered_s[name] = max(0.0, away_s) if is_whole else None
        for name in leaving:
            await fleets[name].stop()
        span.groups = {name: fleet.figures.take() for name, fleet in fleets.items()}
        for name in leaving:
            del fleets[name]
        span.audit = _after(lines, self.place.audit())
        span.grown_bytes = _grown(memory, self.place.memory())
        self.spans.append(span)
        started_s = began - self.course.begin_s
        self.phases.append(PhaseResult(phase.name, started_s, loop.time() - began, dict(span.groups)))

    def _come(self, devices: Devices) -> None:
        name = devices.name
        fleet = Fleet(self.groups[name], self.endpoint, self.place.ca, deliveries=self.deliveries[name])
        self.ground.fleets[name] = fleet
        fleet.start(self.scenario.seconds_of(devices), started_s=self.course.begin_s)

    async def _act(self, phase: Phase, began: float) -> float:
        """Take the phase's actions at their time; when the last was done."""
        loop = asyncio.get_running_loop()
        done = began
        for step in sorted(phase.steps, key=lambda step: step.at_s):
            await asyncio.sleep(max(0.0, began + step.at_s - loop.time()))
            self.progress(f"{phase.name}: {_words(step)}")
            await ACTIONS[step.action].run(self.ground, step.arguments)
            done = loop.time()
        return done

    async def _watch(self) -> None:
        while True:
            self.course.look(self.ground.fleets)
            await asyncio.sleep(LOOKS_EVERY_S)


async def _finish(fleet: Fleet, within_s: float) -> None:
    """Wait for outstanding acknowledgements, unless nobody is there to get them."""
    await fleet.finish(within_s if fleet.connected else 0.0)


def _after(before: list[Any] | None, now: list[Any] | None) -> list[Any] | None:
    return None if before is None or now is None else now[len(before) :]


def _grown(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _words(step: Step) -> str:
    return " ".join([step.action, *(f"{key}={value}" for key, value in step.arguments.items())])
