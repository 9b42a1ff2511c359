"""The lock of a result folder: one run at a time writes into it."""

from __future__ import annotations

import errno
import os
import platform
from datetime import datetime, timezone
from pathlib import Path

from vtprune.cli.error import UserError

try:
    import fcntl
except ImportError:  # not there on Windows
    fcntl = None

LOCK, MARK = "lock", "lock.pid"
"""The file that is locked; the file whose being there is the lock where the system or the disk has no locks."""

# what network disks say that have no locks
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class Lock:
    """A lock that is held. It ends with ``release`` and, where the system has file locks, with the process.

    Raises UserError, which names the other's process, where another run holds it.
    """

    def __init__(self, folder: Path):
        self._descriptor, self._mark = None, None
        if fcntl is None or not self._lock(folder):
            self._make_mark(folder)

    def release(self) -> None:
        """Lets the next run in; more than once is no error."""
        if self._descriptor is not None:
            # the file stays: who deletes it could delete the one that somebody else has just locked
            os.close(self._descriptor)
        if self._mark is not None:
            self._mark.unlink(missing_ok=True)
        self._descriptor, self._mark = None, None

    def _lock(self, folder: Path) -> bool:
        """False where the disk has no locks."""
        path = folder / LOCK
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                return False
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise UserError(f"{_busy(folder, path)}; wait for it, or choose another --out") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _own_name())
        self._descriptor = descriptor
        return True

    def _make_mark(self, folder: Path) -> None:
        path = folder / MARK
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise UserError(
                f"{_busy(folder, path)}; wait for it, or choose another --out. If that process is no more, delete "
                f"{path}"
            ) from None
        os.write(descriptor, _own_name())
        os.close(descriptor)
        self._mark = path


def _own_name() -> bytes:
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return f"process {os.getpid()} on {platform.node() or 'this machine'} since {since}\n".encode()


def _busy(folder: Path, path: Path) -> str:
    holder = path.read_text(encoding="utf-8", errors="replace").strip()
    return f"another run writes into {folder}: {holder or 'a process that has just begun'}"
