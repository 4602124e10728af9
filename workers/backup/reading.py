"""Reading backups: what a chain of them holds of each session, and whether all of it is as it was written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import groupby
from pathlib import Path

from msgspec import Struct

from domain.codec import Commit, genesis
from domain.errors import Damaged
from domain.log.lines import decode_line
from domain.session import OPEN_GATE
from workers.backup import audit
from workers.backup.creating import read_on
from workers.backup.folder import (
    AUDIT,
    Manifest,
    Row,
    chain_of,
    damaged,
    lines_name,
    read_sums,
    rows,
    rows_name,
    stray_files,
    sum_of,
    unpacked,
)
from workers.pacing import Pace


class Kept(Struct, frozen=True):
    """What a backup holds of a session: where it stood, and the commits up to there. What a log held beyond what
    verifies is in the files, and not here.
    """

    row: Row
    commits: list[Commit]


class Problem(Struct, frozen=True):
    """Something in a backup is not as it was written."""

    path: str
    cause: str


def sessions(chain: Sequence[tuple[Path, Manifest]], partition: int) -> Iterator[Kept]:
    """The sessions of a partition, by id. Raises Damaged (BACKUP_DAMAGED) at the first that is not whole."""
    parts = [_of_one(folder, partition, age) for age, (folder, _) in enumerate(chain)]
    newest = chain[-1][0] / rows_name(partition)
    for session, found in groupby(merge(*parts, key=_by_session), key=lambda part: part[0].session):
        held = list(found)
        row, _, age = held[-1]
        if age != len(chain) - 1:
            raise damaged(newest, f"session {session} is missing, an older backup has it")
        start = max((place for place, part in enumerate(held) if part[0].whole), default=0)
        commits = [commit for _, more, _ in held[start:] for commit in more]
        stands, _ = read_on(Row(session, 0, genesis(session), OPEN_GATE), commits)
        if (stands.seq, stands.digest, stands.gate) != (row.seq, row.digest, row.gate) or (
            stands.damaged != row.damaged
        ):
            raise damaged(newest, f"session {session} stands at {stands.seq} by its commits, at {row.seq} by its row")
        yield Kept(row, [commit for commit in commits if commit.last_seq <= row.seq])


def _of_one(folder: Path, partition: int, age: int) -> Iterator[tuple[Row, list[Commit], int]]:
    """The sessions that one backup has of a partition, with the commits that it adds."""
    lines = unpacked(folder / lines_name(partition), decode_line)
    commit = next(lines, None)
    for row in rows(folder, partition):
        found: list[Commit] = []
        while commit is not None and commit.session == row.session:
            found.append(commit)
            commit = next(lines, None)
        yield row, found, age
    if commit is not None:
        raise damaged(folder / lines_name(partition), f"session {commit.session} has commits and no row")


def _by_session(part: tuple[Row, list[Commit], int]) -> tuple[str, int]:
    return part[0].session, part[2]


def verify(folder: Path, pace: Pace) -> list[Problem]:
    """Reads a backup, and all that it goes on from, to the last byte; what is not as it was written.

    Raises NotFound (BACKUP_MISSING), Damaged (BACKUP_DAMAGED) where it cannot even be told what should be there.
    """
    chain = chain_of(folder)
    problems = [problem for path, manifest in chain for problem in _files(path, manifest)]
    for cut in chain[-1][1].cuts:
        try:
            count = events = 0
            for kept in sessions(chain, cut.partition):
                count, events = count + 1, events + kept.row.seq
                pace.took(kept.row.seq)
            if (count, events) != (cut.sessions, cut.events):
                raise damaged(
                    folder / rows_name(cut.partition),
                    f"{count} sessions with {events} events are there, {cut.sessions} with {cut.events} should be",
                )
        except Damaged as found:
            problems.append(Problem(found.facts.get("path", str(folder)), found.cause))
    if (expected := chain[-1][1].audited) is not None:
        try:
            if (count := sum(1 for _ in audit.entries(folder))) != expected:
                raise damaged(folder / AUDIT, f"{count} entries are there, {expected} should be")
        except Damaged as found:
            problems.append(Problem(found.facts.get("path", str(folder)), found.cause))
    return problems


def _files(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    sums = read_sums(folder)
    names = [name(cut.partition) for cut in manifest.cuts for name in (rows_name, lines_name)]
    for name in [*names, *([AUDIT] if manifest.audited is not None else [])]:
        if name not in sums:
            yield Problem(str(folder / name), "the checksums do not name it")
    for name, expected in sums.items():
        if not (folder / name).is_file():
            yield Problem(str(folder / name), "it is missing")
        elif sum_of(folder / name) != expected:
            yield Problem(str(folder / name), "its checksum does not fit")
    for name in stray_files(folder, sums):
        yield Problem(str(folder / name), "nobody knows what it is")
