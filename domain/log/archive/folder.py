"""An archive in a folder of this host, or one that is mounted here."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

from domain.errors import Damaged, Misconfigured, MusterError, NotFound, Unavailable

#: Where a store's segments are until they are whole, beside its sessions, whose folders have no dot. Nobody reads it:
#: there is also what a writer leaves that was killed.
UNFINISHED: Final = ".part"
#: After so long without a write its writer counts as dead, in seconds by the clock of the file system.
ABANDONED_S: Final = 86_400.0


class Folder:
    """Segments as files. The folder itself is never made: where a disk is not mounted, nothing is written instead."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()

    def put(self, name: str, content: bytes) -> None:
        path = self._of(name)
        with self._asked():
            if not path.exists():
                _write(path, content, self._path.joinpath(*name.split("/")[:-1][:1], UNFINISHED))
            self._settle(path)
            found = _from_disk(path)
        if found != content:
            raise Damaged("ARCHIVE_DAMAGED", f"segment {name}: {self.described()} holds something else", name=name)

    def get(self, name: str) -> bytes:
        path = self._of(name)
        with self._asked():
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                raise NotFound("ARCHIVE_MISSING", f"{self.described()} has no segment {name}", name=name) from None

    def names(self, folder: str) -> Iterator[str]:
        found = _files(self._of(folder) if folder else self._path)
        while True:
            with self._asked():
                path = next(found, None)
            if path is None:
                return
            yield path.relative_to(self._path).as_posix()

    def described(self) -> str:
        return f"folder {self._path}"

    def _of(self, name: str) -> Path:
        if not all(name.split("/")) or {".", ".."} & {*name.split("/")}:
            raise NotFound("ARCHIVE_MISSING", f"{name!r} is no name of a segment", name=name)
        return self._path / name

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            if not self._path.is_dir():
                raise Unavailable("ARCHIVE_UNREACHABLE", f"there is no {self.described()}")
            yield
        except OSError as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> MusterError:
        said = f"{self.described()}: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Unavailable("ARCHIVE_FULL", said)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return Misconfigured("ARCHIVE_DENIED", said)
        return Unavailable("ARCHIVE_UNREACHABLE", said)

    def _settle(self, path: Path) -> None:
        """Makes a file's name last, and those of the folders above: all may be new, of a writer that died too."""
        folder = path.parent
        while folder != self._path.parent:
            _sync(folder)
            folder = folder.parent


def _write(path: Path, content: bytes, desk: Path) -> None:
    """Writes a file that is there, whole and on the disk, or not at all; on the `desk` until it is whole."""
    for folder in (path.parent, desk):
        folder.mkdir(parents=True, exist_ok=True)
    # Under a name of its own: whoever seals the same segment at the same time writes beside.
    unfinished = desk / uuid4().hex
    try:
        with unfinished.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            now = os.fstat(file.fileno()).st_mtime
        unfinished.rename(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    _clear(desk, now)


def _clear(desk: Path, now: float) -> None:
    """Removes what was abandoned. A writer that was only held up for so long cannot give its file its name then, and
    says so; no log was trimmed for it yet.
    """
    with suppress(OSError):
        for entry in os.scandir(desk):
            with suppress(OSError):  # another user's, or gone by now; it keeps nobody from writing
                if entry.stat().st_mtime < now - ABANDONED_S:
                    os.unlink(entry.path)


def _sync(folder: Path) -> None:
    at = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)


def _from_disk(path: Path) -> bytes:
    """What a file holds, not what the kernel remembers of it as far as it can be told to forget."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def _files(folder: Path) -> Iterator[Path]:
    """The finished files of a folder and all beneath it, in the order of their paths as a bucket has it."""
    try:
        entries = [(entry.name + "/" * entry.is_dir(), entry) for entry in os.scandir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return
    for name, entry in sorted(entries, key=lambda found: found[0]):
        if not name.endswith("/"):
            yield Path(entry.path)
        elif entry.name != UNFINISHED:
            yield from _files(Path(entry.path))
