"""JUnit XML, which every CI server reads: suites of cases, a failure with what was wanted and what was seen."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from device_sim.reports.markup import LONGEST_TEXT
from mtls.terminal import sanitise


@dataclass(frozen=True, slots=True)
class Case:
    """One test case; it failed when `seen` is not None."""

    classname: str
    name: str
    wanted: str = ""
    seen: str | None = None


@dataclass(frozen=True, slots=True)
class Suite:
    """A named list of cases; `seconds` when its time was taken."""

    name: str
    cases: tuple[Case, ...]
    seconds: float | None = None

    @property
    def failures(self) -> int:
        """How many cases failed."""
        return sum(case.seen is not None for case in self.cases)


def document(suites: Sequence[Suite]) -> str:
    """The whole file; a single suite is its root, as most tools write it."""
    if len(suites) == 1:
        root = _element(suites[0])
    else:
        root = ET.Element(
            "testsuites",
            tests=str(sum(len(suite.cases) for suite in suites)),
            failures=str(sum(suite.failures for suite in suites)),
        )
        root.extend(_element(suite) for suite in suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _element(suite: Suite) -> ET.Element:
    element = ET.Element("testsuite", name=_text(suite.name), tests=str(len(suite.cases)), failures=str(suite.failures))
    if suite.seconds is not None:
        element.set("time", f"{suite.seconds:.3f}")
    for case in suite.cases:
        one = ET.SubElement(element, "testcase", classname=_text(case.classname), name=_text(case.name))
        if case.seen is not None:
            failure = ET.SubElement(one, "failure", message=_text(case.seen))
            failure.text = f"must: {_text(case.wanted)}"
    return element


def _text(value: str) -> str:
    """Without the characters that XML 1.0 cannot hold."""
    return sanitise(value, LONGEST_TEXT)
