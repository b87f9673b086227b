"""A copy of the store while the gateway runs, and putting one back while it does not.

A copy is made from one snapshot (`VACUUM INTO`): complete up to a commit, compact, and read while commits go on. It is
checked before it takes its name. Restoring checks the copy first, keeps the store it replaces under another name, and
refuses while a gateway holds the lock. What a restored store holds may have been delivered since: subscribers get it
again.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

from gateway.store.database import MARK_SUFFIX, SUFFIXES, check, locked, sync_folder
from gateway.store.schema import APPLICATION_ID, STEPS
from mtls.errors import Fault


def back_up(path: Path, copy: Path) -> int:
    """Copy the store at `path` to the new file `copy`; its size. Fault when that is there already or cannot be made."""
    if copy.exists():
        raise Fault(f"{copy} exists already", hint="choose another name: a backup replaces nothing")
    if not path.is_file():
        raise Fault(f"there is no store at {path}", hint="see [store] path in the configuration")
    try:
        with _unfinished(copy) as fresh:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10.0)) as db:
                db.execute("VACUUM INTO ?", (str(fresh),))
            _refuse_unsound(fresh)
            _sync_file(fresh)
            fresh.rename(copy)
            sync_folder(copy.parent)
    except sqlite3.Error as error:
        raise Fault(
            f"cannot copy {path} to {copy}: {error}", hint="is there room, and may this user read it?"
        ) from error
    return copy.stat().st_size


def restore_copy(copy: Path, path: Path, now: datetime) -> Path | None:
    """Put `copy` in the place of the store at `path`; what the store that was there is called now, if there was one."""
    _refuse_unsound(copy)
    with locked(path), _unfinished(path) as fresh:
        shutil.copyfile(copy, fresh)
        owner = path.parent.stat()
        os.chown(fresh, owner.st_uid, owner.st_gid)
        _sync_file(fresh)
        kept = None
        if path.exists():
            kept = Path(f"{path}.replaced-{now.strftime('%Y%m%dT%H%M%S.%fZ')}")
            for suffix in SUFFIXES:
                if Path(f"{path}{suffix}").exists():
                    Path(f"{path}{suffix}").rename(f"{kept}{suffix}")
        Path(f"{path}{MARK_SUFFIX}").unlink(missing_ok=True)  # it was set on the store that has gone
        fresh.rename(path)
        sync_folder(path.parent)
    return kept


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """Where to write a file that takes the name `path` when it is whole: private, and gone when it never is."""
    fresh = Path(f"{path}.unfinished")
    fresh.unlink(missing_ok=True)
    before = os.umask(0o077)
    try:
        yield fresh
    finally:
        os.umask(before)
        fresh.unlink(missing_ok=True)


def _refuse_unsound(copy: Path) -> None:
    if not copy.is_file():
        raise Fault(f"there is no backup at {copy}")
    why = check(copy)
    if why:
        raise Fault(f"{copy} is damaged: {why}", hint="take an older backup")
    with closing(sqlite3.connect(f"{copy.absolute().as_uri()}?mode=ro", uri=True)) as db:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID or not 0 < version <= len(STEPS):
        raise Fault(f"{copy} is no backup that this version can use (schema {version})")


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
