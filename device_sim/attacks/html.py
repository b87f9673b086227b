"""What one broker or several let through, as a table with a column for each, and as a page of its own."""

from collections.abc import Sequence

from device_sim.attacks.ground import Attack
from device_sim.attacks.report import AttackReport, Line
from device_sim.reports.markup import Child, Html, element, join
from device_sim.reports.page import Row, page, section, table, verdict


def as_html(reports: Sequence[AttackReport]) -> str:
    """A page that compares the brokers attacked."""
    names = ", ".join(report.broker for report in reports)
    return page(
        f"What a broker lets through: {names}",
        element("p", "device-sim attack", class_="soft"),
        element("h1", "What a broker lets through"),
        element(
            "p",
            "The same certificates, the same rules and the same conversations on raw connections for every broker. "
            "An attack is held when the broker did what it must; the sentence below says what was seen.",
        ),
        section("In short", element("div", *(_summary(report) for report in reports), class_="charts")),
        section("Every attack", attack_table(reports)),
    )


def attack_table(reports: Sequence[AttackReport]) -> Html:
    """A line per attack, a column per broker; lines with an attack that somebody let through are set apart."""
    found = [{_key(line.attack): line for line in report.lines} for report in reports]
    attacks = {_key(line.attack): line.attack for report in reports for line in report.lines}
    rows = [
        Row(
            (attack.trap, attack.name, attack.must, *(_cell(lines.get(key)) for lines in found)),
            is_bad=any(key in lines and not lines[key].finding.held for lines in found),
        )
        for key, attack in attacks.items()
    ]
    return table(["trap", "attack", "must", *(report.broker for report in reports)], rows)


def _key(attack: Attack) -> tuple[str, str]:
    return attack.trap, attack.name


def _summary(report: AttackReport) -> Html:
    count, through = len(report.lines), report.let_through
    held = f"{count - len(through)} of {count} attacks held"
    names = [element("li", f"{line.attack.trap} {line.attack.name}") for line in through]
    return element(
        "div",
        element("p", element("b", report.broker), ": ", verdict(not through, held, f"{held}. LET THROUGH:")),
        element("ul", *names, class_="failed") if names else "",
    )


def _cell(line: Line | None) -> Child:
    if line is None:
        return "not tried"
    held, evidence = line.finding
    return join(verdict(held, "held", "LET THROUGH"), element("div", evidence, class_="soft"))
