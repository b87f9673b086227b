"""A CA's passphrase: from a file that only its owner reads, or typed on a terminal.

Never from an argument or the environment: an argument stands in the process list and in the shell's history, an
environment is inherited by every child. Without a file and without a terminal there is no passphrase, and no guess.
"""

import getpass
import sys
from collections.abc import Callable
from pathlib import Path

from mtls.errors import ConfigFault
from mtls.keystore import read_private

MAX_PASSPHRASE_BYTES = 1024
MIN_PASSPHRASE_CHARS = 8  # for a new CA; a key stretched by PKCS#8 does not make less a secret


def passphrase_from_file(path: Path) -> bytes:
    """The passphrase in `path`, without its line end; ConfigFault for a loose, empty or many-lined file."""
    text = read_private(path, MAX_PASSPHRASE_BYTES).rstrip(b"\r\n")
    if not text or b"\n" in text or b"\0" in text:
        raise ConfigFault(
            f"the passphrase file {path} does not hold exactly one line",
            hint="write the passphrase and nothing else into it",
        )
    return text


def checked_new_passphrase(passphrase: bytes) -> bytes:
    """A passphrase for a new CA; ConfigFault when it is too short to protect a key."""
    if len(passphrase.decode(errors="replace")) < MIN_PASSPHRASE_CHARS:
        raise ConfigFault(
            f"the passphrase is shorter than {MIN_PASSPHRASE_CHARS} characters",
            hint="choose a longer one; for a throw-away CA there is --insecure-dev",
        )
    return passphrase


def passphrase_source(file: Path | None) -> Callable[[], bytes]:
    """Where the passphrase of an existing CA comes from; it is asked for only when a key is read."""
    if file is not None:
        return lambda: passphrase_from_file(file)
    return lambda: _typed("passphrase of the CA: ")


def pin_source() -> Callable[[], bytes]:
    """Where the PIN of an HSM comes from whose URI names no file."""
    return lambda: _typed("PIN of the HSM's token: ")


def new_passphrase(file: Path | None) -> bytes:
    """The passphrase of a new CA, from a file or typed twice."""
    if file is not None:
        return checked_new_passphrase(passphrase_from_file(file))
    first = checked_new_passphrase(_typed("passphrase for the new CA: "))
    if _typed("the same again: ") != first:
        raise ConfigFault("the two passphrases differ", hint="repeat the command and type the same one twice")
    return first


def _typed(prompt: str) -> bytes:
    if not sys.stdin.isatty():
        raise ConfigFault(
            "the CA's passphrase is needed and there is no terminal to ask on",
            hint="name a file that holds it with --passphrase-file",
        )
    try:
        return getpass.getpass(prompt, stream=sys.stderr).encode()
    except EOFError:
        raise ConfigFault("no passphrase was typed", hint="repeat the command, or use --passphrase-file") from None
