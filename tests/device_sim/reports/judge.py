"""Reads a page as two foreign parsers do: as HTML, and as the XML that it also is."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from html.parser import HTMLParser

NAMES_A_RESOURCE = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "background"}


@dataclass
class Judge(HTMLParser):
    """What a page consists of."""

    tags: list[str] = field(default_factory=list)
    text: str = ""
    policy: str = ""
    faults: list[str] = field(default_factory=list)  # handlers, inline styles, addresses of other files

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attributes)
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"] or ""
        self.faults += [f"{tag} {name}" for name in found if name in NAMES_A_RESOURCE or name[:2] == "on"]
        self.faults += [f"{tag} style" for name in found if name == "style"]

    def handle_data(self, data: str) -> None:
        self.text += data


def judged(page: str) -> Judge:
    """The page as an HTML parser sees it; ElementTree's ParseError when it is no XML."""
    ET.fromstring(page)  # noqa: S314 - our own page
    judge = Judge()
    judge.feed(page)
    judge.close()
    return judge


def pictures(page: str) -> list[ET.Element]:
    """Every chart of the page."""
    root = ET.fromstring(page)  # noqa: S314 - our own page
    return root.findall(".//figure/svg")
