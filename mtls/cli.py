"""What the three command lines share: how a fault ends a program, and where narration goes.

Results go to standard output, narration and faults to standard error; a fault is `error:`, `hint:` and an exit code
(0 done, 1 the answer is no, 2 usage, 78 configuration), never a traceback.
"""

from __future__ import annotations

from typing import Any

import click

from mtls.errors import Fault
from mtls.terminal import print_fault


class FaultGroup(click.Group):
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
            ctx.exit(print_fault(Fault(f"the system says: {error.strerror or error}")))


def narrate(text: str) -> None:
    """A line for the person at the terminal, beside the result."""
    click.echo(text, err=True)
