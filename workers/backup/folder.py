"""A backup's folder: packed lines, what the manifest says of them, and checksums that `sha256sum -c` understands.

Rows (`sessions-…`) say where each session stood, lines (`commits-…`) what was appended since the backup this one goes
on from; both ordered by session, one file of each a partition. The audit streams are one file, whole. The checksums are
written last: without them a folder is no backup yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import msgspec
import zstandard
from msgspec import Struct

from domain.errors import Damaged, NotFound
from domain.log.lines import LineUnreadable
from domain.log.subscribing.delivery import Wanted
from domain.log.subscribing.reached import Reached

T = TypeVar("T")

SCHEMA: Final = "muster.backup/1"
MANIFEST: Final = "manifest.json"
SUMS: Final = "SHA256SUMS"
AUDIT: Final = "audit.ndjson.zst"
#: What a file is called while it is being written.
UNFINISHED: Final = ".part"


class Row(Struct, frozen=True, omit_defaults=True):
    """Where a session stood at the cut. `whole`: the lines of earlier backups are not part of it.

    `damaged`: the seq from which on its log did not verify, when it was read; the row is that of what comes before.
    """

    session: str
    seq: int
    digest: str
    gate: str
    policy: str = "any"
    quarantined: dict[str, Any] | None = None
    skips: str | None = None
    whole: bool = False
    damaged: int | None = None
    #: Where the session was moved to, or from where it is kept equal: it takes no appends, nor where it is restored.
    moved: dict[str, str] | None = None


class Cut(Struct, frozen=True):
    """A partition's place in the backup: all that was appended until `at_ms` (server time), `events` in all."""

    partition: int
    at_ms: int
    events: int
    sessions: int
    commits: int
    damaged: int


class Subscribed(Struct, frozen=True):
    """A durable subscription, and how far it was in each of its partitions, when all cuts had been made."""

    name: str
    wanted: Wanted
    reached: dict[int, Reached]


class Manifest(Struct, frozen=True):
    """What a backup holds. `base` is the backup it goes on from: its id, and its folder as seen from this one."""

    id: str
    store: str
    epoch: int
    environment: str
    namespace: str
    partitions: int
    #: Of a commit: events and bytes at most.
    commit_events: int
    commit_bytes: int
    began_at: str
    ended_at: str
    base: tuple[str, str] | None
    cuts: list[Cut]
    subscriptions: list[Subscribed] = []
    #: How many entries of audit streams; None: an earlier release kept none.
    audited: int | None = None
    schema: str = SCHEMA

    @property
    def events(self) -> int:
        return sum(cut.events for cut in self.cuts)

    @property
    def sessions(self) -> int:
        return sum(cut.sessions for cut in self.cuts)


def rows_name(partition: int) -> str:
    return f"sessions-{partition:04}.ndjson.zst"


def lines_name(partition: int) -> str:
    return f"commits-{partition:04}.ndjson.zst"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup. Raises NotFound (BACKUP_MISSING), Damaged (BACKUP_DAMAGED)."""
    try:
        sums, stored = read_sums(folder), (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise NotFound("BACKUP_MISSING", f"{folder} holds no finished backup: {error.strerror}") from None
    if sums.get(MANIFEST) != sha256(stored).hexdigest():
        raise damaged(folder / MANIFEST, "its checksum does not fit")
    try:
        return msgspec.json.decode(stored, type=Manifest)
    except msgspec.MsgspecError as error:
        raise damaged(folder / MANIFEST, str(error)) from None


def read_sums(folder: Path) -> dict[str, str]:
    """The checksums of a backup's files, by name. Raises OSError, Damaged (BACKUP_DAMAGED)."""
    sums: dict[str, str] = {}
    *lines, rest = (folder / SUMS).read_bytes().split(b"\n")
    if rest:
        raise damaged(folder / SUMS, "its last line is cut off")
    for line in lines:
        digest, _, name = line.decode("utf-8", "replace").partition("  ")
        if len(digest) != 64 or not name or name in sums:
            raise damaged(folder / SUMS, f"the line {line!r} is none")
        sums[name] = digest
    return sums


def chain_of(folder: Path) -> list[tuple[Path, Manifest]]:
    """A backup and all that it goes on from, the oldest first. Raises as `read_manifest`, for any of them."""
    chain = [(folder, read_manifest(folder))]
    while (base := chain[0][1].base) is not None:
        at = (chain[0][0] / base[1]).resolve()
        manifest = read_manifest(at)
        if manifest.id != base[0]:
            raise damaged(at / MANIFEST, f"it is backup {manifest.id}, not {base[0]}, which {chain[0][0]} goes on from")
        chain.insert(0, (at, manifest))
    return chain


def damaged(path: Path, why: str) -> Damaged:
    return Damaged("BACKUP_DAMAGED", f"{path}: {why}", path=str(path))


# -- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def packed(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Takes lines, and packs them into a file that is there, whole and on the disk, or not at all."""
    unfinished = path.with_name(path.name + UNFINISHED)
    with unfinished.open("wb") as file:
        with zstandard.ZstdCompressor(level=6, write_checksum=True).stream_writer(file, closefd=False) as writer:
            yield lambda line: _write_line(writer, line)
        _to_disk(file)
    settle(unfinished, path)


def _write_line(writer: Any, line: bytes) -> None:
    writer.write(line)
    writer.write(b"\n")


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is there, whole and on the disk, or not at all."""
    unfinished = path.with_name(path.name + UNFINISHED)
    with unfinished.open("wb") as file:
        file.write(content)
        _to_disk(file)
    settle(unfinished, path)


def settle(unfinished: Path, path: Path) -> None:
    """Gives a finished file its name."""
    unfinished.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def finish(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest, then the checksums of all files as they can be read back."""
    write_whole(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    of_partitions = [name(cut.partition) for cut in manifest.cuts for name in (rows_name, lines_name)]
    names = sorted([MANIFEST, AUDIT, *of_partitions])
    sums = "".join(f"{sum_of(folder / name)}  {name}\n" for name in names)
    write_whole(folder / SUMS, sums.encode())


# -- reading ---------------------------------------------------------------------------------------------------------


def sum_of(path: Path) -> str:
    """The checksum of a file."""
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def unpacked(path: Path, decode: Callable[[bytes], T]) -> Iterator[T]:
    """What the lines of a file hold. Raises Damaged (BACKUP_DAMAGED)."""
    rest = b""
    try:
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
            while chunk := reader.read(1 << 20):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from map(decode, lines)
    except (OSError, zstandard.ZstdError, msgspec.MsgspecError, LineUnreadable) as error:
        raise damaged(path, str(error)) from None
    if rest:
        raise damaged(path, "its last line is cut off")


def rows(folder: Path, partition: int) -> Iterator[Row]:
    """Where the sessions of a partition stood."""
    return unpacked(folder / rows_name(partition), msgspec.json.Decoder(Row).decode)


def stray_files(folder: Path, sums: Iterable[str]) -> list[str]:
    """Files in the folder of which the checksums say nothing."""
    known = {*sums, SUMS}
    return sorted(path.name for path in folder.iterdir() if path.name not in known)
