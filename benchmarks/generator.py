"""One measurement: the processes of the generator on their cores, and the broker's time and memory meanwhile."""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from os import sched_setaffinity
from threading import BrokenBarrierError
from typing import Any, Literal, Self

from benchmarks.brokers import Running
from benchmarks.fleet import AT_ONCE, Counters, Report, Share, Traffic
from benchmarks.link import connect_all, make_links
from benchmarks.pki import Pki, device_names
from benchmarks.works import Work

Limit = Literal["broker", "generator", "neither"]

WARM_S = 0.5
SETTLED_S = 0.3
IDLE_S = 1.5  # what is freed after the handshakes is given back by then
PATIENCE_S = 300.0
BUSY = 0.85  # whoever used less of its core than this was waiting, or had not the core for itself
LATE_S = 0.002  # the generator is the limit of an open loop when one message in a hundred leaves later than this


class Failed(Exception):
    """A measurement broke off; says why."""


@dataclass(frozen=True, slots=True)
class Row:
    """One round of one kind of work against one broker; what does not apply is 0."""

    work: str
    broker: str
    round: int
    score: str
    done: int = 0
    lost: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    generator_busy: float = 0.0
    late_p99_ms: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    kib_per_connection: float = 0.0

    @property
    def per_second(self) -> float:
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def per_cpu_second(self) -> float:
        return self.done / self.cpu_seconds if self.cpu_seconds else 0.0

    @property
    def figure(self) -> float:
        """What this kind of work is judged by."""
        figure: float = getattr(self, self.score)
        return figure

    @property
    def limit(self) -> Limit:
        """Who was at the end of its core. Unless it is the broker, rates say nothing about it."""
        if self.score == "kib_per_connection":
            return "broker"
        if self.score == "p99_ms":  # a broker with time to spare is meant here
            return "broker" if self.late_p99_ms <= LATE_S * 1e3 else "generator"
        if self.cpu_seconds >= BUSY * self.seconds:
            return "broker"
        return "generator" if self.generator_busy >= BUSY else "neither"

    def as_json(self) -> dict[str, Any]:
        derived = {"per_second": self.per_second, "per_cpu_second": self.per_cpu_second}
        return {**asdict(self), **derived, "limit": self.limit}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(**{name: values[name] for name in cls.__slots__})


def allow_many_files() -> None:
    """Thousands of connections need as many descriptors; children inherit the limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass(frozen=True, slots=True)
class Generator:
    """How the clients run: in how many processes, on which cores, and for how long each measurement counts."""

    pki: Pki
    processes: int
    cores: Collection[int]
    seconds: float

    def measure(self, work: Work, running: Running, number: int = 1) -> Row:
        """One round; Failed when a client was refused, cut off, or heard something that nobody sent."""
        crew = _Crew(self, work, running)
        try:
            crew.meet()
            if work.kind == "idle":
                return self._idle(crew, number)
            return self._connects(crew, number) if work.kind == "connect" else self._traffic(crew, number)
        except BrokenBarrierError:
            raise Failed(f"{work.name}, {running.broker.name}: {crew.fault()}") from None
        finally:
            crew.end()

    def _idle(self, crew: "_Crew", number: int) -> Row:
        before = crew.running.resident_kib
        crew.meet()
        crew.reports()
        time.sleep(IDLE_S)
        kib = (crew.running.resident_kib - before) / crew.work.devices
        return Row(crew.work.name, crew.running.broker.name, number, crew.work.score, kib_per_connection=kib)

    def _connects(self, crew: "_Crew", number: int) -> Row:
        cpu, start = crew.running.cpu_seconds, time.monotonic()
        crew.meet()
        busy = max(report.busy for report in crew.reports())
        seconds, cpu = time.monotonic() - start, crew.running.cpu_seconds - cpu
        names = (crew.work.name, crew.running.broker.name, number, crew.work.score)
        return Row(*names, crew.work.devices, 0, seconds, cpu, busy)

    def _traffic(self, crew: "_Crew", number: int) -> Row:
        time.sleep(SETTLED_S)
        begin = time.monotonic() + 0.05
        end = begin + WARM_S + self.seconds * (2 if crew.work.kind == "open loop" else 1)
        crew.counters.window[:] = begin, begin + WARM_S, end
        crew.meet()
        before = crew.sample(begin + WARM_S)
        after = crew.sample(end)
        seconds, cpu, done = (b - a for a, b in zip(before, after, strict=True))
        reports = crew.reports()
        latencies = [latency * 1e3 for report in reports for latency in report.latencies_s]
        late = [late * 1e3 for report in reports for late in report.late_s]
        return Row(
            *(crew.work.name, crew.running.broker.name, number, crew.work.score),
            *(int(done), crew.counters.on_their_way(crew.work.fan), seconds, cpu),
            generator_busy=max(report.busy for report in reports),
            late_p99_ms=percentile(late, 99),
            p50_ms=percentile(latencies, 50),
            p99_ms=percentile(latencies, 99),
        )


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1] if len(values) > 1 else 0.0


class _Crew:
    """The processes of one measurement. All meet when connected, when it begins and when it is over."""

    def __init__(self, generator: Generator, work: Work, running: Running) -> None:
        self.work, self.running = work, running
        self._fault = ""
        context = multiprocessing.get_context("fork")
        names, count = device_names(work.devices), generator.processes
        for name in (*names, "backend"):
            generator.pki.credential(name)
        self.counters = Counters(count)
        self._barrier = context.Barrier(count + 1, timeout=PATIENCE_S)
        stock = int(running.broker.most * (WARM_S + generator.seconds))
        self._pipes: list[Connection] = []
        self._processes = []
        for index in range(count):
            ours, theirs = context.Pipe(duplex=False)
            share = Share(work, index, count, running.port, stock)
            arguments = (share, generator, names, self.counters, self._barrier, theirs)
            process = context.Process(target=_member, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def meet(self) -> None:
        self._barrier.wait()

    def sample(self, when: float) -> tuple[float, float, float]:
        """Time, broker CPU and messages received, at that time."""
        time.sleep(max(0.0, when - time.monotonic()))
        return time.monotonic(), self.running.cpu_seconds, float(sum(self.counters.received))

    def reports(self) -> list[Report]:
        """What every process says at its end."""
        reports = [pipe.recv() if pipe.poll(PATIENCE_S) else Report(fault="no report came") for pipe in self._pipes]
        self._fault = next((report.fault for report in reports if report.fault), "")
        if self._fault:
            raise Failed(f"{self.work.name}, {self.running.broker.name}: {self._fault}")
        return reports

    def fault(self) -> str:
        """What broke a meeting."""
        said = (pipe.recv().fault for pipe in self._pipes if pipe.poll(1.0))
        return next((fault for fault in said if fault), "a process of the generator ended")

    def end(self) -> None:
        self._barrier.abort()  # who waits there has reported, and closes
        for process in self._processes:
            process.join(timeout=30)
            if process.is_alive():
                process.kill()
                process.join()


def _member(share: Share, generator: Generator, names: list[str], counters: Counters, barrier: Any, pipe: Any) -> None:
    """The life of one process of the generator."""
    sched_setaffinity(0, generator.cores)
    links = []
    try:
        if share.work.kind in ("connect", "idle"):
            links = make_links(generator.pki, share.names(names))
            barrier.wait()
            barrier.wait()
            start, cpu = time.monotonic(), time.process_time()
            connect_all(links, share.port, max(1, AT_ONCE // share.count))
            pipe.send(Report(busy=(time.process_time() - cpu) / max(time.monotonic() - start, 1e-9)))
        else:
            traffic = Traffic(share, generator.pki, names, counters)
            links = traffic.links
            barrier.wait()
            barrier.wait()
            pipe.send(traffic.run())
        barrier.wait()
    except BrokenBarrierError:
        pass  # it is over, or another process has failed and says so
    except Exception as error:
        pipe.send(Report(fault=f"{type(error).__name__}: {error}"))
        barrier.abort()
    finally:
        for link in links:
            link.close()
