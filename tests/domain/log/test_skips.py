"""Skips: whoever reads a session's commits from a log finds those marked that were discarded, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import msgspec
import pytest

from domain import Commit, MemoryLog
from domain.log.skips import Skip, marked, parse_skips, with_skip
from tests.conftest import Servers, Store
from tests.domain.log.logs import Blocking, RunnableLog, note

Begun: TypeAlias = tuple[RunnableLog, Callable[[str, int, str], None]]
FIRST = Skip(3, 4, "00ff", "ann", "a bug", 1_700_000_000_000)
SECOND = msgspec.structs.replace(FIRST, from_seq=9, to_seq=9, digest="11ee")


@pytest.fixture(params=["valkey", "valkey-async", "redis7", "memory"])
def begun(request: pytest.FixtureRequest, servers: Servers, make_store: Callable[..., Store]) -> Iterator[Begun]:
    """A log of each kind, and how a commit of it is discarded."""
    kind, _, face = request.param.partition("-")
    if kind == "memory":
        memory = MemoryLog(clock_ms=lambda: 1_700_000_000_000)
        yield memory, memory.skip
        return
    store = make_store(servers.url(kind))
    log: RunnableLog = store.open()
    if face == "async":
        log = Blocking(store.open_async)

    def skip(session: str, seq: int, digest: str) -> None:
        keys = store.keyspace.of(session)
        skips = with_skip(store.client.hget(keys.skips, session), Skip(1, seq, digest, "ann", "a bug", 1))  # type: ignore[arg-type]
        assert skips is not None
        store.client.hset(keys.skips, session, skips)

    yield log, skip
    if isinstance(log, Blocking):
        log.close()


def test_commits_are_marked_however_they_are_read(begun: Begun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, backward, from the middle, many sessions together, on later pages too."""
    log, skip = begun
    monkeypatch.setattr("domain.log.protocol.FIRST_PAGE_ENTRIES", 2)
    monkeypatch.setattr("domain.log.protocol.EACH_FIRST_PAGE_ENTRIES", 2)
    monkeypatch.setattr("domain.log.protocol.PAGE_ENTRIES", 2)
    names = [f"s-{number}" for number in range(6)]
    for _ in range(7):
        for name in names:
            log.append(name, (note(), note()))
    digests = {commit.last_seq: commit.digest for commit in log.read("s-1")}
    for seq in (2, 10, 14):
        skip("s-1", seq, digests[seq])
    skip("s-2", 4, digests[4])  # another session's digest

    def skipped(commits: list[Commit]) -> list[int]:
        return [commit.last_seq for commit in commits if commit.skipped]

    assert skipped(list(log.read("s-1"))) == [2, 10, 14]
    assert skipped(list(log.read("s-1", after=3, to=10))) == [10]
    assert skipped(list(log.read_back("s-1"))) == [14, 10, 2]
    assert [skipped(list(commits)) for commits in log.read_each(names)] == [[], [2, 10, 14], [], [], [], []]
    assert [len(list(log.read(name))) for name in names] == [7] * 6


def test_what_a_producer_repeats_is_recognised_in_a_skipped_commit(
    begun: Begun,
) -> None:
    """A commit that was discarded is still there: its events are not appended a second time."""
    log, skip = begun
    receipt = log.append("s", (note("a"), note("b")))
    assert receipt.digest is not None
    skip("s", 2, receipt.digest)

    again = log.append("s", (note("a"), note("b"), note("c")), dedupe=True)

    assert (again.appended, again.duplicates) == (1, 2)


def test_a_skip_is_stored_once_and_beside_others() -> None:
    """The same commit again is no other skip; what cannot be read gives way."""
    once = with_skip(None, FIRST)
    assert once is not None
    assert with_skip(once, msgspec.structs.replace(FIRST, who="bob", why="again")) is None
    both = with_skip(once, SECOND)

    assert msgspec.json.decode(both or b"")[0] == {
        "from_seq": 3, "to_seq": 4, "digest": "00ff", "who": "ann", "why": "a bug", "at": 1_700_000_000_000,
    }  # fmt: skip
    assert parse_skips(both) == {(4, "00ff"), (9, "11ee")}
    for junk in (b"", b"{", b"[1]", b"\xff", b"{}"):
        assert parse_skips(junk) == frozenset()
        assert with_skip(junk, FIRST) == once


def test_a_skip_fits_its_commit_alone() -> None:
    """Another commit that took its place carries another digest, and is folded."""
    commits = [Commit("s", 1, 4, 1, digest, b"") for digest in ("00ff", "00fe")]

    assert [commit.skipped for commit in marked(commits, frozenset({(4, "00ff")}))] == [True, False]
