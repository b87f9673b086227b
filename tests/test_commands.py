"""The tables of commands: what the three programs list is what they have, and the list waits for no import."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version

import click
import pytest
from click.testing import CliRunner

from device_sim.cli import main as device_sim
from gateway.cli import cli as mqtt_gateway
from mtls.cli import FaultGroup, LazyGroup
from provisioning.cli import cli as mqtt_provision
from tests.support.environment import unmeasured
from tests.test_architecture import ONE_IMPORTER

PROGRAMS = {"mqtt-gateway": mqtt_gateway, "mqtt-provision": mqtt_provision, "device-sim": device_sim}
ENTRIES = {"mqtt-gateway": "gateway.cli", "mqtt-provision": "provisioning.cli", "device-sim": "device_sim.cli"}
HEAVY = sorted({*ONE_IMPORTER, "asyncio", "cryptography", "ssl", "sqlite3"} - {"click"})

# Runs a program's main with the words after the first two and prints what it imported of HEAVY and of ours.
LOOK = """
import sys
from importlib import import_module
program, heavy = sys.argv[1], sys.argv[2].split(",")
sys.argv = [program, *sys.argv[3:]]
try:
    import_module(program).main()
except SystemExit as ended:
    loaded = {name.split(".")[0] for name in sys.modules}
    ours = sorted(name for name in sys.modules if name.split(".")[0] in ("gateway", "provisioning", "device_sim"))
    print(ended.code, sorted(loaded & set(heavy)), ours)
"""


def listed(group: click.Group, words: str) -> Iterator[tuple[str, click.Command, str | None]]:
    """(words, command, its sentence in a table or None) for every command below `group`."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, f"{words} {name}"
        sentence = group.table[name][1] if isinstance(group, LazyGroup) and name in group.table else None
        yield f"{words} {name}", command, sentence
        if isinstance(command, click.Group):
            yield from listed(command, f"{words} {name}")


def differing(group: click.Group, words: str) -> list[str]:
    """The commands of which a list says something else than they do themselves."""
    return [
        full
        for full, command, sentence in listed(group, words)
        if command.name != full.split()[-1] or sentence not in (None, command.get_short_help_str(limit=1000))
    ]


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_list_says_of_a_command_what_it_says_itself(program: str) -> None:
    """Every name in a table is a command's own, and every sentence the first of its help."""
    assert differing(PROGRAMS[program], program) == []


def test_a_sentence_that_is_not_the_commands_own_is_found() -> None:
    """The twin: a wrong sentence, and a wrong name."""
    place, sentence = "gateway.store.cli:store", "Copy the store, and put a copy back."
    assert differing(LazyGroup("p", table={"store": (place, sentence)}), "p") == []
    assert differing(LazyGroup("p", table={"store": (place, "Copy it.")}), "p") == ["p store"]
    assert differing(LazyGroup("p", table={"stock": (place, sentence)}), "p") == ["p stock"]


def test_an_error_of_the_system_names_its_file() -> None:
    """No traceback, and no guessing: which file, and what the system says of it; control characters are escaped."""

    def fail() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/var/a\nb")

    done = CliRunner().invoke(
        FaultGroup("p", commands={"fail": click.Command("fail", callback=fail)}, table={}), ["fail"]
    )
    assert (done.exit_code, done.output) == (1, "error: /var/a\\nb: the system says: Permission denied\n")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_help_page_fits_a_terminal_and_opens_with_an_example(program: str) -> None:
    """Every command has a line to copy, no line is wider than 80 columns and no sentence of a list is cut."""
    pages = {program: PROGRAMS[program], **{words: command for words, command, _ in listed(PROGRAMS[program], program)}}
    for words, command in pages.items():
        page = command.get_help(click.Context(command, info_name=words, terminal_width=80))
        lines = page.splitlines()
        assert [line for line in lines if len(line) > 80] == [], words
        assert any(line.strip().startswith(f"{program} ") for line in lines), words
        if isinstance(command, click.Group):
            cut = [line for line in page.partition("Commands:")[2].splitlines() if line.endswith("...")]
            assert cut == [], words


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_says_which_version_it_is(program: str) -> None:
    """The distribution's version, as a report of a fault has to name it."""
    said = CliRunner().invoke(PROGRAMS[program], ["--version"], prog_name=program)
    assert (said.exit_code, said.output) == (0, f"{program} {version('mqtt-mtls-gateway')}\n")


@pytest.mark.parametrize("words", [["--help"], ["no-such-command"]], ids=" ".join)
@pytest.mark.parametrize("program", ENTRIES)
def test_a_list_of_commands_waits_for_none_of_them(program: str, words: list[str]) -> None:
    """Neither a library nor a package of the program is imported for the help, or to refuse a word."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, ENTRIES[program], ",".join(HEAVY), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=unmeasured(),  # measuring would import what is looked for
    )
    code = 0 if words == ["--help"] else 2
    entry = ENTRIES[program]
    assert done.stdout.splitlines()[-1] == f"{code} [] {sorted({entry, entry.split('.')[0]})}"


@pytest.mark.parametrize(
    ("program", "words", "spared"),
    [
        ("mqtt-gateway", ["explain", "--help"], {"amqtt", "aiohttp", "prometheus_client", "paho", "uvloop"}),
        ("mqtt-gateway", ["status", "--help"], {"amqtt", "aiohttp", "prometheus_client", "paho", "uvloop"}),
        ("mqtt-gateway", ["run", "--help"], {"amqtt", "aiohttp", "prometheus_client", "paho"}),
        ("mqtt-provision", ["issue", "--help"], {"rich", "segno", "pkcs11", "asyncio"}),
        ("mqtt-provision", ["burn", "--help"], {"rich", "segno", "pkcs11", "asyncio"}),
        ("device-sim", ["virtual-device", "--help"], {"amqtt", "prometheus_client", "aiohttp", "asyncio"}),
        ("device-sim", ["run", "--help"], {"amqtt", "prometheus_client", "aiohttp"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_command_waits_for_nothing_of_the_others(program: str, words: list[str], spared: set[str]) -> None:
    """What only another command needs is not imported."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, ENTRIES[program], ",".join(sorted(spared)), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=unmeasured(),  # measuring would import what is looked for
    )
    assert done.stdout.splitlines()[-1].startswith("0 [] ")
