"""A folder through which a device, or the host it hangs on, exchanges files: the port of the dialect `file`.

The folder is opened once, and every file is found below that descriptor and by its plain name: a folder that is
exchanged meanwhile is not followed, and neither is a link in it, because the device decides what lies there. What is
no regular file is refused before it is opened. A file is written beside its place, flushed and renamed
(`mtls.keystore`), so that a cable that is pulled leaves the old one or the new one. Any OSError is a PortFault: a stick
that was pulled, and a disk that is full, are interruptions, after which the unit can be continued.

One station at a time: the lock is flock(2) on the folder. Nothing here knows what is in the files.
"""

import fcntl
import os
import stat
from pathlib import Path
from typing import Self

from mtls.errors import Fault
from mtls.keystore import write_public
from provisioning.port import PortFault

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Folder:
    """An open, locked folder; use as a context manager or close it."""

    def __init__(self, path: str) -> None:
        """Open `path`; PortFault with one sentence and a hint when that fails."""
        self.name = path
        try:
            self._descriptor = os.open(path, _OPEN_FOLDER)
        except OSError as error:
            raise PortFault(
                f"cannot open the folder {path}: {_why(error)}", hint="mount the device, and name the folder itself"
            ) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise PortFault(f"cannot lock the folder {path}: {_why(error)}", hint="one station at a time") from None

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """The content of a file, None when there is none; a Fault for what is no plain file or larger.

        It is read past the cache, where the system can drop what it holds.
        """
        try:
            self._refuse_no_file(name, os.stat(name, dir_fd=self._descriptor, follow_symlinks=False))
            descriptor = os.open(name, _OPEN_FILE, dir_fd=self._descriptor)
            with os.fdopen(descriptor, "rb") as file:
                self._refuse_no_file(name, os.fstat(descriptor))
                # What was written a moment ago is to come from the medium, not from this machine's memory.
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                content = file.read(max_bytes + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._gone("read", name, error) from None
        if len(content) > max_bytes:
            raise Fault(
                f"{self.name}/{name} is larger than {max_bytes} bytes", hint="this is not the file that is meant"
            )
        return content

    def write(self, name: str, content: bytes) -> None:
        """Put a file into the folder, whole and flushed; one that is there is replaced."""
        try:
            write_public(Path(f"/proc/self/fd/{self._descriptor}", name), content)
        except Fault as fault:
            if isinstance(fault.__cause__, OSError):
                raise self._gone("write", name, fault.__cause__) from None
            raise

    def close(self) -> None:
        """Close it, which ends the lock."""
        os.close(self._descriptor)

    def _refuse_no_file(self, name: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise Fault(
                f"{self.name}/{name} is no regular file",
                hint="links and other special files are not followed: find out who put it there",
            )

    def _gone(self, verb: str, name: str, error: OSError) -> PortFault:
        return PortFault(
            f"cannot {verb} {self.name}/{name}: {_why(error)}",
            hint="check the device, its mount and its free space, then burn the unit again: it is continued",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _why(error: OSError) -> str:
    return "another program has it" if isinstance(error, BlockingIOError) else (error.strerror or "unknown").lower()
