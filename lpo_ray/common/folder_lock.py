"""A folder's lock: one holder, on whatever machine, known by a record in the lock's file.

The kernel's lock (flock) decides wherever it reaches: on one machine, and between machines on NFSv4 and on Lustre with
flock. It ends with its process, so what a SIGKILL leaves is free at once. Some network file systems have no such lock,
or one that other machines do not see. There the record decides: its holder renews it every ``BEAT_SECONDS``, and a
record of another machine counts until nobody has renewed it for ``LEASE_SECONDS``, by the clock of the one that waits.
A holder that was suspended for longer finds another's record, and learns it from ``check``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from lpo_ray.common.process_identity import ProcessIdentity

BEAT_SECONDS = 5.0
LEASE_SECONDS = 20.0
SETTLE_SECONDS = 2.0
"""for the records of others that ask at the same moment to become visible, where there is no kernel's lock"""
RECORD_BYTES = 1024
"""of every record, so that one takes the place of another in one write"""
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK)
Flock = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Holder:
    """Record of who holds a lock."""

    process: ProcessIdentity
    since: float
    """unix seconds, of its own clock"""
    token: str
    """told from another holding by the same process"""
    beat: int = 0
    """how often it was renewed"""

    def __str__(self) -> str:
        minutes = max(0.0, time.time() - self.since) / 60
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"{self.process} has it since {since} ({minutes:.0f} min)"


class Held(Exception):
    """A lock that another has; says who, as far as that is on record."""

    def __init__(self, path: Path, holder: Holder | None) -> None:
        super().__init__(path, holder)
        self.path, self.holder = path, holder

    def __str__(self) -> str:
        if self.holder is None:
            return "another process has it, which is not on record"
        process = self.holder.process
        if process.is_here and not process.is_alive:
            return f"{self.holder}; that has ended, but a process that it started still has its files open"
        return str(self.holder)


class FolderLock:
    """Lock of a folder, held within a ``with`` block, whose start raises Held."""

    def __init__(
        self,
        path: Path,
        *,
        note: Callable[[str], None] = lambda text: None,
        me: ProcessIdentity | None = None,
        flock: Flock = fcntl.flock,
        beat_seconds: float = BEAT_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        """``path``: file of the lock. ``note`` is told when the start has to wait. The rest is for tests."""
        self._path, self._note, self._flock = path, note, flock
        self._beat_seconds, self._lease_seconds, self._settle_seconds = beat_seconds, lease_seconds, settle_seconds
        self._mine = Holder(me or ProcessIdentity.own(), 0.0, os.urandom(8).hex())
        self._descriptor = -1
        self._ended = threading.Event()

    def __enter__(self) -> FolderLock:
        """Take the lock. Raises Held at once where that is known, and after LEASE_SECONDS at the latest."""
        has_flock = self._open()
        try:
            holder = _read(self._descriptor)
            if holder is not None and self._may_live(holder, has_flock=has_flock):
                self._wait_for_silence(holder)
            self._mine = replace(self._mine, since=time.time(), beat=0)
            self._write()
            if not has_flock:
                time.sleep(self._settle_seconds)
                self.check()
        except BaseException:
            self._close()
            raise
        self._ended.clear()
        threading.Thread(target=self._renew, name=f"lock of {self._path.parent}", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        with contextlib.suppress(Held, OSError):
            self.check()
            os.ftruncate(self._descriptor, 0)
        self._close()

    def check(self) -> None:
        """Raise Held when another has taken the lock, or its folder is gone: what this process wrote would go among
        what that one writes.
        """
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            raise Held(self._path, None) from None
        own = os.fstat(self._descriptor)
        holder = holder_of(self._path)
        if holder is None:  # read while it was renewed, or given up by another
            time.sleep(0.05)
            holder = holder_of(self._path)
        if (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino) or _token(holder) != self._mine.token:
            raise Held(self._path, holder)

    def _open(self) -> bool:
        """Open the file and lock it. Returns whether the file system has locks. Raises Held."""
        while True:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            has_flock = True
            try:
                self._flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                has_flock = error.errno not in NO_LOCKS
                if has_flock:
                    holder = _read(self._descriptor)
                    self._close()
                    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                        raise
                    raise Held(self._path, holder) from None
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self._path).st_ino == os.fstat(self._descriptor).st_ino:
                    return has_flock
            self._close()  # its folder was removed in between

    def _may_live(self, holder: Holder, *, has_flock: bool) -> bool:
        """Whether the holder on record may be at work on another machine. Raises Held when it is alive here."""
        if holder.process.is_alive:
            raise Held(self._path, holder)
        return not (holder.process.is_here or (has_flock and holder.process.on_this_boot))

    def _wait_for_silence(self, holder: Holder) -> None:
        """Wait until the record was not renewed for the lease. Raises Held as soon as it is."""
        self._note(f"{self._path.parent}: {holder}; waiting {self._lease_seconds:g} s to see whether it is alive")
        until = time.monotonic() + self._lease_seconds
        while time.monotonic() < until:
            time.sleep(min(1.0, self._lease_seconds / 10))
            now = holder_of(self._path)
            if now is not None and (now.token, now.beat) != (holder.token, holder.beat):
                raise Held(self._path, now)

    def _renew(self) -> None:
        while not self._ended.wait(self._beat_seconds):
            try:
                self.check()
                self._mine = replace(self._mine, beat=self._mine.beat + 1)
                self._write()
            except Held:
                return
            except OSError:  # a file system that is away for a moment
                continue

    def _write(self) -> None:
        fields = {
            "since": self._mine.since, "token": self._mine.token, "beat": self._mine.beat,
            "process": self._mine.process.to_json(),
        }  # fmt: skip
        os.pwrite(self._descriptor, json.dumps(fields).ljust(RECORD_BYTES - 1).encode() + b"\n", 0)
        os.fsync(self._descriptor)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def holder_of(path: Path) -> Holder | None:
    """Return who holds the lock whose file is ``path``, as far as it is on record; None: nobody.

    It is read through a new descriptor: a network file system looks at its server then.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _read(descriptor)
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> Holder | None:
    try:
        found = json.loads(os.pread(descriptor, RECORD_BYTES, 0))
        process = ProcessIdentity.from_json(found["process"])
        if process is None:
            return None
        return Holder(process, float(found["since"]), str(found["token"]), int(found["beat"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _token(holder: Holder | None) -> str:
    return "" if holder is None else holder.token
