"""The layout is proved from the imports, so a drawing of it cannot go stale.

Every rule is a function from a tree of Python files to the sentences that say what breaks it, and every rule
has a made-up tree that it must refuse: a rule that cannot fail proves nothing. What is checked is what the
source imports and names, and what a table of commands (`mtls.cli.LazyGroup`) imports later; it does not see imports
composed at run time.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAMS = ("mtls", "gateway", "provisioning", "device_sim")
MAX_LINES = 400

# A tree is its files: path from the repository's root -> parsed source.
Tree = Mapping[str, tuple[str, ast.Module]]
Rule = Callable[[Tree], list[str]]

# --- the rules, as data ---

ARROWS: dict[str, frozenset[str]] = {
    "mtls": frozenset(),
    "gateway": frozenset({"mtls"}),
    "provisioning": frozenset({"mtls"}),
    "device_sim": frozenset({"gateway", "provisioning", "mtls"}),
}

# Outside library -> the only places that may import it (a folder ends with "/").
ONE_IMPORTER: dict[str, tuple[str, ...]] = {
    "amqtt": ("gateway/broker/",),
    "serial": ("provisioning/port.py", "device_sim/serial_port.py"),
    "click": (
        *("mtls/cli.py", "gateway/cli.py", "device_sim/cli.py", "provisioning/cli.py"),
        *("gateway/options.py", "device_sim/options.py", "provisioning/options.py"),
        *("gateway/service_cli.py", "gateway/live_cli.py", "gateway/policy_cli.py", "gateway/crl_cli.py"),
        *("gateway/store/cli.py", "gateway/torture/cli.py", "gateway/uplink/cli.py"),
        *("provisioning/ca_cli.py", "provisioning/custody/cli.py", "provisioning/conformance/cli.py"),
        *("provisioning/station/cli.py", "provisioning/station/unit_cli.py"),
        *("provisioning/records/cli.py", "provisioning/records/handover_cli.py"),
        *("device_sim/agent_cli.py", "device_sim/handshake_cli.py", "device_sim/virtual_cli.py"),
        *("device_sim/ports/cli.py", "device_sim/fleet/cli.py", "device_sim/attacks/cli.py"),
        "device_sim/scenarios/cli.py",
    ),
    "pkcs11": ("provisioning/pkcs11_key.py",),
    "paho": ("device_sim/agent.py", "device_sim/mqtt_client.py", "device_sim/fleet/connection.py", "gateway/uplink/"),
    "transitions": ("gateway/broker/",),  # amqtt's state machine, which raises through
    "uvloop": ("gateway/",),
    "rich": ("provisioning/station/view.py",),
    "segno": ("provisioning/records/labels.py",),
    "aiohttp": ("gateway/bounded_http.py", "gateway/metrics.py", "gateway/enrolment/server.py"),
    "prometheus_client": ("gateway/metrics.py", "device_sim/scenarios/prometheus.py"),
    "pytest": ("device_sim/pytest_plugin/",),  # which only pytest loads: no program needs it
}

CONTEXT_MAKER = "mtls/tls.py"
CONTEXT_CALLS = frozenset({"SSLContext", "create_default_context", "_create_unverified_context", "wrap_socket"})

PURE: tuple[str, ...] = (
    "mtls/identity.py",
    "mtls/profiles.py",
    "mtls/clock.py",
    "mtls/judgement.py",
    "gateway/policy/topics.py",
    "gateway/broker/fields.py",
    "gateway/broker/packets.py",
    "gateway/broker/connection.py",
    "gateway/broker/exchange.py",
    "gateway/broker/routing.py",
    "gateway/broker/sessions.py",
    "gateway/broker/session_table.py",
    "gateway/broker/stored_session.py",
    "gateway/broker/outlet.py",
    "gateway/admission.py",
    "provisioning/spp1/",
    "device_sim/spp1_device.py",
    "device_sim/ports/framing.py",
    "device_sim/ports/parsing.py",
    "device_sim/ports/commands.py",
    "device_sim/reports/",
    "device_sim/scenarios/html.py",
    "device_sim/scenarios/charts.py",
    "device_sim/scenarios/junit.py",
    "device_sim/scenarios/prometheus.py",
)
# What a pure module may not touch: sockets, clocks, files, processes, threads, randomness of the system.
IMPURE = frozenset(
    (
        *("asyncio", "select", "selectors", "socket", "ssl", "signal", "subprocess", "multiprocessing"),
        *("threading", "fcntl", "io", "os", "pathlib", "shutil", "sqlite3", "tempfile", "sys", "logging"),
        *("time", "random", "termios", "tty", "serial", "click", "uvloop", "amqtt", "paho"),
    )
)
# A pure module takes the time as an argument.
CLOCK_CALLS = frozenset({"now", "utcnow", "today"})
# A command in a table: imported when it is asked for, and an import all the same.
COMMAND_PLACE = re.compile(rf"({'|'.join(PROGRAMS)})(\.\w+)+:\w+")
POSSESSIVE_GROUP = re.compile(r"\)[*+?]\+|\(\?>")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError")


def read_tree(root: Path) -> Tree:
    """Every Python file of the programs below `root`."""
    found = (path for program in PROGRAMS for path in sorted((root / program).rglob("*.py")))
    texts = ((path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")) for path in found)
    return {name: (text, ast.parse(text, name)) for name, text in texts}


def made_up(files: Mapping[str, str]) -> Tree:
    return {name: (text, ast.parse(text, name)) for name, text in files.items()}


def imports_of(name: str, module: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that `module` imports at once or later, relative imports made absolute."""
    package = name.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and COMMAND_PLACE.fullmatch(str(node.value)):
            yield node.lineno, str(node.value).replace(":", ".")


def is_within(name: str, places: tuple[str, ...]) -> bool:
    return any(name.startswith(place) if place.endswith("/") else name == place for place in places)


# --- the rules, as functions ---


def arrows_are_kept(tree: Tree) -> list[str]:
    """device_sim -> {gateway, provisioning} -> mtls, and gateway never meets provisioning."""
    wrong = []
    for name, (_, module) in tree.items():
        program = name.split("/")[0]
        for line, target in imports_of(name, module):
            other = target.split(".")[0]
            if other in PROGRAMS and other != program and other not in ARROWS[program]:
                wrong.append(f"{name}:{line} imports {target}: no arrow {program} -> {other}")
    return wrong


def libraries_have_one_importer(tree: Tree) -> list[str]:
    """One place per outside library, so that replacing it touches one place."""
    return [
        f"{name}:{line} imports {target}, which only {', '.join(ONE_IMPORTER[target.split('.')[0]])} may"
        for name, (_, module) in tree.items()
        for line, target in imports_of(name, module)
        if not is_within(name, ONE_IMPORTER.get(target.split(".")[0], (name,)))
    ]


def contexts_have_one_maker(tree: Tree) -> list[str]:
    """TLS settings live in one module: no other calls a maker of contexts or imports one by name."""
    wrong = []
    for name, (_, module) in tree.items():
        if name == CONTEXT_MAKER:
            continue
        wrong += [
            f"{name}:{line} imports {target}"
            for line, target in imports_of(name, module)
            if target in {f"ssl.{call}" for call in CONTEXT_CALLS - {"SSLContext"}}
        ]
        for node in ast.walk(module):
            if not isinstance(node, ast.Call):
                continue
            function = ast.unparse(node.func)
            if function.split(".")[-1] in CONTEXT_CALLS and (function.startswith("ssl.") or "." not in function):
                wrong.append(f"{name}:{node.lineno} calls {function}: only {CONTEXT_MAKER} makes TLS contexts")
    return wrong


def pure_modules_are_pure(tree: Tree) -> list[str]:
    """No socket, clock, file, process or thread in the modules that decide."""
    wrong = []
    for name, (_, module) in tree.items():
        if not is_within(name, PURE):
            continue
        wrong += [
            f"{name}:{line} imports {target}, and the module is declared pure"
            for line, target in imports_of(name, module)
            if target.split(".")[0] in IMPURE
        ]
        wrong += [
            f"{name}:{node.lineno} reads the clock: the time is an argument of a pure module"
            for node in ast.walk(module)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in CLOCK_CALLS
            and ast.unparse(node.func.value).split(".")[-1] in {"datetime", "date", "dt"}
        ]
    return wrong


def modules_are_small(tree: Tree) -> list[str]:
    """A module that does not fit into a reader's head is two modules."""
    sizes = ((name, text.count("\n")) for name, (text, _) in tree.items())
    return [f"{name} has {lines} lines, more than {MAX_LINES}" for name, lines in sizes if lines > MAX_LINES]


def nothing_is_left_for_later(tree: Tree) -> list[str]:
    """A gap is an issue in the tracker, never a mark in the code."""
    return [
        f"{name}:{number} holds {found.group()}"
        for name, (text, _) in tree.items()
        for number, line in enumerate(text.splitlines(), 1)
        if (found := UNFINISHED.search(line))
    ]


def modules_open_with_their_purpose(tree: Tree) -> list[str]:
    """Every module that holds code says first what it is for."""
    return [
        f"{name} has no docstring"
        for name, (_, module) in tree.items()
        if module.body and not ast.get_docstring(module)
    ]


def regular_expressions_work_on_debian(tree: Tree) -> list[str]:
    """Python before 3.11.5, Debian 12's own among them, matches possessive groups wrongly (CPython gh-106052)."""
    return [
        f"{name}:{node.lineno} has a possessive or atomic group: Python 3.11.2 matches it wrongly, write a plain one"
        for name, (_, module) in tree.items()
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and POSSESSIVE_GROUP.search(node.value)
    ]


RULES: tuple[Rule, ...] = (
    arrows_are_kept,
    libraries_have_one_importer,
    contexts_have_one_maker,
    pure_modules_are_pure,
    modules_are_small,
    nothing_is_left_for_later,
    modules_open_with_their_purpose,
    regular_expressions_work_on_debian,
)

# Per rule: files that break it, and the file that must be named.
BREAKS: tuple[tuple[Rule, dict[str, str], str], ...] = (
    (arrows_are_kept, {"gateway/x.py": "import provisioning.ca"}, "gateway/x.py:1"),
    (
        arrows_are_kept,
        {"provisioning/x.py": "def f():\n    from gateway import config"},
        "provisioning/x.py:2",
    ),
    (arrows_are_kept, {"gateway/cli.py": "T = {'x': ('provisioning.ca:f', '')}"}, "gateway/cli.py:1"),
    (arrows_are_kept, {"mtls/x.py": "from device_sim.agent import Agent"}, "mtls/x.py:1"),
    (libraries_have_one_importer, {"gateway/cli.py": "import amqtt.broker"}, "gateway/cli.py:1"),
    (
        libraries_have_one_importer,
        {"provisioning/burning.py": "from serial import Serial"},
        "provisioning/burning.py:1",
    ),
    (libraries_have_one_importer, {"gateway/config.py": "import click"}, "gateway/config.py:1"),
    (
        libraries_have_one_importer,
        {"device_sim/sources.py": "import paho.mqtt.client"},
        "device_sim/sources.py:1",
    ),
    (libraries_have_one_importer, {"device_sim/cli.py": "import pytest"}, "device_sim/cli.py:1"),
    (
        contexts_have_one_maker,
        {"gateway/x.py": "import ssl\nc = ssl.create_default_context()"},
        "gateway/x.py:2",
    ),
    (contexts_have_one_maker, {"gateway/x.py": "import ssl\nc = ssl.SSLContext()"}, "gateway/x.py:2"),
    (
        contexts_have_one_maker,
        {"gateway/x.py": "from ssl import create_default_context as c"},
        "gateway/x.py:1",
    ),
    (contexts_have_one_maker, {"gateway/x.py": "from ssl import SSLContext\nSSLContext()"}, "gateway/x.py:2"),
    (pure_modules_are_pure, {"mtls/identity.py": "import os"}, "mtls/identity.py:1"),
    (
        pure_modules_are_pure,
        {"provisioning/spp1/host.py": "from asyncio import sleep"},
        "provisioning/spp1/host.py:1",
    ),
    (pure_modules_are_pure, {"mtls/judgement.py": "n = datetime.datetime.now()"}, "mtls/judgement.py:1"),
    (modules_are_small, {"mtls/x.py": "a = 1\n" * (MAX_LINES + 1)}, "mtls/x.py has 401"),
    (nothing_is_left_for_later, {"mtls/x.py": "a = 1\n# TODO more"}, "mtls/x.py:2"),
    (modules_open_with_their_purpose, {"mtls/x.py": "a = 1"}, "mtls/x.py"),
    (regular_expressions_work_on_debian, {"mtls/x.py": "a = r'(?:ab?c)*+d'"}, "mtls/x.py:1"),
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_rule(rule: Rule) -> None:
    """Every rule holds for the programs as they are."""
    assert rule(read_tree(REPOSITORY)) == []


@pytest.mark.parametrize(("rule", "files", "named"), BREAKS, ids=lambda value: getattr(value, "__name__", None))
def test_the_rule_can_fail(rule: Rule, files: dict[str, str], named: str) -> None:
    """Every rule refuses a made-up tree that breaks it, and names the place."""
    assert [sentence for sentence in rule(made_up(files)) if sentence.startswith(named)]


def test_every_rule_has_a_tree_that_breaks_it() -> None:
    """No rule stands without its proof that it can fail."""
    assert {rule for rule, _, _ in BREAKS} == set(RULES)


def test_an_allowed_import_is_allowed() -> None:
    """The twin: a tree that keeps every rule is not accused of anything."""
    good = made_up(
        {
            "gateway/broker/runtime.py": '"""Runs."""\nimport amqtt\nfrom mtls.identity import DeviceId',
            "device_sim/cli.py": '"""Commands."""\nimport click\nfrom provisioning.spp1 import frames',
            "mtls/tls.py": '"""Contexts."""\nimport ssl\n\ncontext = ssl.SSLContext()',
            "gateway/x.py": '"""A listener."""\nimport ssl\n\n\ndef f(context: ssl.SSLContext) -> None: ...',
        }
    )
    assert [sentence for rule in RULES for sentence in rule(good)] == []


def test_every_pure_module_named_here_exists() -> None:
    """A module that was renamed does not drop out of its rule unnoticed."""
    names = read_tree(REPOSITORY).keys()
    assert [place for place in PURE if not any(is_within(name, (place,)) for name in names)] == []


# --- the drawing ---

DRAWN_ARROW = re.compile(r"^\s*(\w+)\s*-->\s*(\w+)\s*$", re.MULTILINE)


def package_of(name: str) -> str:
    """The box a file stands in: its innermost package, as a dotted name."""
    return ".".join(name.split("/")[:-1])


def arrows_between_packages(tree: Tree) -> set[tuple[str, str]]:
    """(from, to) for every import from one package of the programs into another."""
    packages = {package_of(name) for name in tree}
    arrows = set()
    for name, (_, module) in tree.items():
        for _, target in imports_of(name, module):
            parts = target.split(".")
            inside = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
            box = next((candidate for candidate in inside if candidate in packages), None)
            if box and box != package_of(name):
                arrows.add((package_of(name), box))
    return arrows


def test_the_drawing_shows_the_imports_and_nothing_else() -> None:
    """docs/architecture.md has exactly one arrow per pair of packages where one imports the other."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawing = page.split("```mermaid", 1)[1].split("```", 1)[0]
    drawn = {(start.replace("__", "."), end.replace("__", ".")) for start, end in DRAWN_ARROW.findall(drawing)}
    imported = arrows_between_packages(read_tree(REPOSITORY))
    lines = sorted(f"    {start} --> {end}".replace(".", "__") for start, end in imported)
    assert drawn == imported, "the drawing should have these arrows:\n" + "\n".join(lines)


def test_the_drawing_is_judged_by_the_imports() -> None:
    """The twin: an import that crosses a package is an arrow, one within a package is none."""
    files = {"gateway/a.py": "from mtls import tls", "mtls/tls.py": "from mtls import b", "mtls/b.py": ""}
    assert arrows_between_packages(made_up(files)) == {("gateway", "mtls")}
