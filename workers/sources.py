"""Where a damaged log may be completed from: an archive, or a backup with all that it goes on from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path

from domain.codec import Commit
from domain.errors import Conflict, Damaged
from domain.log.archive.place import Archive
from domain.log.archive.segment import Label, folder_of, label_of, opened
from projections.grafting import Held, Source
from workers.backup import reading
from workers.backup.folder import SUMS, chain_of
from workers.settings import ArchiveSettings


def open_source(where: str, store: str, *, archive: ArchiveSettings, say: Callable[[str], None]) -> Source:
    """The backup in a folder, or the archive at a URL, opened with the keys of `archive`; of this store. `say` is told
    what of it is damaged.

    Raises Conflict (BACKUP_DIFFERS), Damaged (BACKUP_DAMAGED), Misconfigured (SETTING_INVALID).
    """
    if (Path(where) / SUMS).exists():
        return BackupSource(Path(where), store)
    return ArchiveSource(archive.opened_at(where), store, say=say)


class BackupSource:
    """A backup. All of it must be as it was written (BACKUP_DAMAGED)."""

    def __init__(self, folder: Path, store: str) -> None:
        self._chain = chain_of(folder)
        self._folder = folder
        self._manifest = self._chain[-1][1]
        if self._manifest.store != store:
            raise Conflict("BACKUP_DIFFERS", f"{folder} is of store {self._manifest.store}, not of {store}")

    def held(self) -> Iterator[Held]:
        for partition in range(self._manifest.partitions):
            for kept in reading.sessions(self._chain, partition):
                yield Held(kept.row.session, kept.row.seq, partial(_after, kept.commits))

    def described(self) -> str:
        return f"backup {self._manifest.id}"


def _after(commits: Iterable[Commit], seq: int) -> Iterator[Commit]:
    return (commit for commit in commits if commit.last_seq > seq)


class ArchiveSource:
    """The segments of a store in an archive. One that is not as it was sealed is passed over."""

    def __init__(self, archive: Archive, store: str, *, say: Callable[[str], None]) -> None:
        self._archive = archive
        self._store = store
        self._say = say

    def held(self) -> Iterator[Held]:
        labels = (label for name in self._archive.names(self._store) if (label := label_of(name)) is not None)
        for session, found in groupby(labels, key=lambda label: label.session):
            yield Held(session, max(label.to_seq for label in found), partial(self._commits, session))

    def _commits(self, session: str, after: int) -> Iterator[Commit]:
        for name in self._archive.names(folder_of(self._store, session)):
            label: Label | None = label_of(name)
            if label is not None and label.session == session and label.to_seq > after:
                try:
                    commits = opened(name, self._archive.get(name))
                except Damaged as damaged:
                    self._say(str(damaged))
                else:
                    yield from _after(commits, after)

    def described(self) -> str:
        return f"archive, {self._archive.described()}"
