"""A scenario's run as one page: the verdict first, then what it rests on, then how to run it again."""

from collections.abc import Iterable
from typing import Final

from device_sim.attacks.html import attack_table
from device_sim.fleet.figures import Figures
from device_sim.fleet.histogram import Histogram
from device_sim.reports import axes, charts
from device_sim.reports.markup import Child, Html, element, join
from device_sim.reports.page import Row, details, page, section, table, verdict
from device_sim.scenarios.charts import (
    backlog_chart,
    connected_chart,
    distribution_chart,
    knocks_chart,
    latencies,
    percentile_chart,
)
from device_sim.scenarios.result import ScenarioResult, Verdict

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99)
FIGURE_TITLES: Final = (
    *("phase", "group", "let in", "connections", "refused", "lost", "scheduled", "acknowledged", "dropped"),
    *(f"p{share:g}" for share in PERCENTILES),
    "max",
)


def as_html(result: ScenarioResult) -> str:
    """The whole page."""
    return page(
        f"{_word(result)}: {result.name}",
        element("p", "device-sim scenario", class_="soft"),
        element("h1", result.name),
        element("p", result.description) if result.description else "",
        element("p", verdict(not result.failed, "PASS", "FAIL"), class_="headline"),
        _in_short(result),
        section("Expectations", _expectations(result.verdicts)),
        *_attacks(result),
        *_devices(result),
        section("Run it again", _again(result)),
    )


def _word(result: ScenarioResult) -> str:
    return "FAIL" if result.failed else "PASS"


def _in_short(result: ScenarioResult) -> Html:
    met, was_the_limit = len(result.verdicts) - len(result.failed), result.load.was_the_limit
    failed = [
        element("li", f"{_where(one)}{one.expectation}: wanted {one.wanted}, seen {one.seen}") for one in result.failed
    ]
    heard = "nobody listened" if result.lost is None else f"{result.lost} lost, {result.duplicates} duplicates"
    facts = {
        "broker": result.broker,
        "started": f"{result.started_at:%Y-%m-%d %H:%M:%S} UTC",
        "took": f"{result.seconds:.1f} s",
        "seed": str(result.seed),
        "acknowledged": heard,
        **({} if was_the_limit else {"simulator": result.load.sentence()}),
    }
    return join(
        element("p", f"{met} of {len(result.verdicts)} expectations met"),
        element("ul", *failed, class_="failed") if failed else "",
        element("p", element("b", result.load.sentence()), class_="note") if was_the_limit else "",
        details(facts),
    )


def _where(one: Verdict) -> str:
    place = " · ".join(part for part in (one.phase, one.devices) if part)
    return f"{place}: " if place else ""


def _expectations(verdicts: Iterable[Verdict]) -> Html:
    return table(
        ("verdict", "expectation", "phase", "devices", "wanted", "seen"),
        [
            Row(
                (
                    verdict(one.is_met, "met", "NOT MET"),
                    one.expectation,
                    one.phase or "the whole run",
                    one.devices or "all",
                    one.wanted,
                    one.seen,
                ),
                is_bad=not one.is_met,
            )
            for one in verdicts
        ],
    )


def _devices(result: ScenarioResult) -> list[Child]:
    """What devices measured; a scenario of attacks alone has none."""
    if not any(phase.groups for phase in result.phases):
        return []
    return [
        section("Latency", *_latency(result)),
        section("The course of the run", _course(result)),
        section("Figures", _figures(result)),
        section("Refused and lost connections", _reasons(result)),
    ]


def _latency(result: ScenarioResult) -> list[Child]:
    named = latencies(result)
    if not named:
        return [element("p", "No message was acknowledged.", class_="soft")]
    return [charts.stack(percentile_chart(named), distribution_chart(named))]


def _course(result: ScenarioResult) -> Html:
    return charts.stack(connected_chart(result), knocks_chart(result), backlog_chart(result))


def _figures(result: ScenarioResult) -> Html:
    rows = [
        Row((phase.name, group, *_counts(figures), *_times(figures.latency)))
        for phase in result.phases
        for group, figures in phase.groups.items()
    ]
    return join(
        table(FIGURE_TITLES, rows, numbers=FIGURE_TITLES[2:], stacks=False),
        element(
            "p",
            "Latencies count from the time at which a message was scheduled. A message that was due in one phase and "
            "acknowledged in the next counts in each as what it was there.",
            class_="soft",
        ),
    )


def _counts(figures: Figures) -> tuple[str, ...]:
    connections = (figures.admissions, figures.refused.total(), figures.lost.total())
    messages = (figures.scheduled, figures.acknowledged, figures.dropped)
    return f"{len(figures.admitted)} of {figures.devices}", *(str(number) for number in (*connections, *messages))


def _times(latency: Histogram) -> tuple[str, ...]:
    if not latency.total:
        return ("–",) * (len(PERCENTILES) + 1)
    shares = (*PERCENTILES, 100.0)
    return tuple(axes.milliseconds(latency.percentile(share)) for share in shares)


def _reasons(result: ScenarioResult) -> Html:
    rows = [
        Row((what, reason, str(count), phase.name, group))
        for phase in result.phases
        for group, figures in phase.groups.items()
        for what, counted in (("refused", figures.refused), ("lost", figures.lost))
        for reason, count in counted.most_common()
    ]
    if not rows:
        return element("p", "None.", class_="soft")
    return table(("what", "reason", "times", "phase", "group"), rows, numbers=("times",))


def _attacks(result: ScenarioResult) -> list[Child]:
    if result.attacks is None:
        return []
    through = len(result.attacks.let_through)
    words = f"{len(result.attacks.lines) - through} of {len(result.attacks.lines)} attacks held"
    return [section("Attacks", element("p", verdict(not through, words, words)), attack_table([result.attacks]))]


def _again(result: ScenarioResult) -> Html:
    return join(
        element("pre", f"device-sim scenario run {result.name}.toml --seed {result.seed}"),
        element("p", "And the --target, or --broker and --ca, and the --scale of this run, where it had any."),
        element(
            "p",
            "The same seed makes every device say the same in the same order. Times, and with them latencies and the "
            "order of connections, are those of the machine and the broker.",
            class_="soft",
        ),
    )
