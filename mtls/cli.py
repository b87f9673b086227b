"""What the three command lines share: tables of commands, how a fault ends a program, and where narration goes.

Results go to standard output, narration and faults to standard error; a fault is `error:`, `hint:` and an exit code
(0 done, 1 the answer is no, 2 usage or no answer, 78 configuration), never a traceback. A program imports what the
command at hand needs and nothing else: on a Raspberry Pi the whole of it takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from textwrap import TextWrapper
from typing import Any, TypeVar

import click

from mtls.errors import Fault, NoVerdict
from mtls.terminal import print_fault, sanitise

Command = TypeVar("Command", bound=Callable[..., Any])

# A command's name -> where it stands, "package.module:attribute", and the first sentence of its help.
CommandTable = Mapping[str, tuple[str, str]]


class ListedGroup(click.Group):
    """A group whose list of commands has whole sentences; click cuts them after some fifty characters."""

    def sentences(self, ctx: click.Context) -> Iterator[tuple[str, str]]:
        """Each command and the first sentence of its help."""
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None:
                yield name, command.get_short_help_str(limit=1000)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list as click writes it, with long sentences on several lines."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.sentences(ctx)))


class LazyGroup(ListedGroup):
    """A group that imports a command when it is asked for: by its name, and not by the list of commands in the help.

    A sentence in the table that is not the command's own is not seen here; tests/test_commands.py compares them.
    """

    def __init__(self, *args: Any, table: CommandTable, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, without an import."""
        return sorted({*self.commands, *self.table})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself, imported."""
        if cmd_name not in self.table:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self.table[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def sentences(self, ctx: click.Context) -> Iterator[tuple[str, str]]:
        """From the table, and of what is not in it from the command."""
        own = {name: command.get_short_help_str(limit=1000) for name, command in self.commands.items()}
        yield from sorted({**own, **{name: sentence for name, (_, sentence) in self.table.items()}}.items())


class FaultGroup(LazyGroup):
    """The one place where faults become lines and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; no fault and no error of the system leaves a traceback."""
        try:
            return super().invoke(ctx)
        except Fault as fault:
            ctx.exit(print_fault(fault))
        except BrokenPipeError:
            raise  # click ends quietly when the reader went away
        except OSError as error:
            ctx.exit(print_fault(Fault(system_words(error))))
        except KeyboardInterrupt:
            ctx.exit(print_fault(NoVerdict("interrupted")))


def system_words(error: OSError) -> str:
    """What the system says, and of which file when it says so."""
    where = f"{sanitise(str(error.filename))}: " if error.filename is not None else ""
    return f"{where}the system says: {error.strerror or error}"


def defined(rows: Iterable[tuple[str, str]]) -> str:
    """Words and what they mean, for the end of a help page: two columns, no line wider than a terminal."""
    listed = list(rows)
    indent = max(len(word) for word, _ in listed) + 4
    wrap = TextWrapper(78, subsequent_indent=" " * indent, break_on_hyphens=False)
    return "\n".join(wrap.fill(f"  {word:{indent - 2}}{meaning}") for word, meaning in listed)


def version_option(group: Command) -> Command:
    """`--version`, for reports of faults; made for each program, because click's remembers the first one's name."""
    return click.version_option(None, package_name="mqtt-mtls-gateway", message="%(prog)s %(version)s")(group)


def narrate(text: str) -> None:
    """A line for the person at the terminal, beside the result."""
    click.echo(text, err=True)


def path_option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    """An option that is a path; what it names is judged by the library."""
    return click.option(*names, type=click.Path(path_type=Path), **settings)
