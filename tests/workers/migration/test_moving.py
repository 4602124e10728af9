"""A session that is moved is the same session: seqs, times, digests, bytes, who may append to it; at another place."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Event as Flag
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from domain import Append, Misconfigured, Receipt, SessionLog, Unavailable
from domain.log import Connecting
from domain.log.contract import Position
from domain.log.store import library_source
from tests.chaos.proxy import Fault, Moment, Proxy, Strike, proxied
from tests.conftest import ENVIRONMENT
from tests.projections.world import World
from tests.workers.migration.scene import Scene, copied, cut, fill, history, note, refused
from workers.cli import main
from workers.migration import calls
from workers.migration.ends import Ends
from workers.migration.record import Migration, Migrations, Move


def test_moved_sessions_are_equal_to_the_byte(either_way: Scene) -> None:
    """Every commit has the seqs, time, digest, bytes and trace it had, in a store of other partitions, either way."""
    log, target = either_way.source.open(), either_way.target.open()
    fill(log, [f"s-{number}" for number in range(40)])
    log.append("s-1", note(), traceparent="00-11111111111111111111111111111111-2222222222222222-01")
    before = {session: history(log, session) for session in log.sessions()}

    migration = either_way.moved()

    assert {session: history(target, session) for session in target.sessions()} == before
    moves = either_way.moves(migration)
    assert migration.state == "moved"
    assert {session: (move.state, move.seq, move.digest) for session, move in moves.items()} == {
        session: ("moved", commits[-1].last_seq, commits[-1].digest) for session, commits in before.items()
    }
    assert all(move.down_ms is not None for move in moves.values())


def test_the_target_builds_its_own_views_and_finds_nothing_wrong(scene: Scene) -> None:
    """Workers of the target are told by the feed; what they build is what those of the source built."""
    there, here = World(scene.source), World(scene.target)
    there.sessions(12)
    here.log.append("before", note())
    there.project()
    here.project()

    scene.moved()
    here.project()

    assert here.codes() == []
    assert there.codes() == []
    sessions = [f"s-{number}" for number in range(12)]
    assert here.projections.views(sessions) == there.projections.views(sessions)
    assert here.views.agent("eve")["events"] == there.views.agent("eve")["events"]


def test_a_moved_session_goes_on_at_its_new_place_alone(scene: Scene) -> None:
    """The source refuses, the target goes on at the next seq, and its digest goes on from the source's."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["s"])
    scene.moved()

    with refused("MOVED_TO"):
        log.append("s", note())
    receipt = target.append("s", note())

    assert receipt.first_seq == 7
    assert history(target, "s")[-1].digest == receipt.digest


def test_what_came_since_the_copy_is_moved_too(scene: Scene) -> None:
    """The tail is copied between seal and opening; a session that began since is moved as well."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["s"])
    with scene.ends() as ends:
        work = scene.moving(ends, scene.begun(ends))
        copied(work)
        fill(log, ["s", "new"])

        cut(work)

    assert history(target, "s") == history(log, "s")
    assert history(target, "new") == history(log, "new")


def test_only_what_is_selected_is_moved(scene: Scene) -> None:
    """The others stay as they are, open at the source, unknown to the target."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["a", "b", "c"])

    scene.moved({"sessions": ["b"]})

    assert list(target.sessions()) == ["b"]
    assert log.append("a", note()).appended == 1


def test_who_may_append_is_moved_with_a_session(scene: Scene) -> None:
    """A policy holds at the target, and a lease is its holder's there, with the same token."""
    log = scene.source.open()
    fill(log, ["strict"])
    log.set_policy("strict", "strict")
    producer = scene.producer()
    with producer.lease("leased", "ann") as lease:
        lease.append(note())
        scene.moved()
        target = scene.target.open()

        with refused("EXPECTED_REQUIRED"):
            target.append("strict", note())
        with refused("LEASE_REQUIRED"):
            target.append("leased", note("bob"))
        lease.renew()
        assert lease.append(note()).first_seq == 2
        assert target.heads(["leased"])[0].seq == 2  # type: ignore[union-attr]
    producer.close()


def test_a_discarded_commit_stays_discarded(scene: Scene) -> None:
    """The skip goes with the session, and the target's audit stream bears it out."""
    log = scene.source.open()
    fill(log, ["s"])
    second = history(log, "s")[1]
    skip = f'[{{"from_seq":3,"to_seq":4,"digest":"{second.digest}","who":"ann","why":"it is bad","at":{second.at_ms}}}]'
    scene.source.client.hset(scene.source.keyspace.of("s").skips, "s", skip)

    scene.moved()

    assert [commit.skipped for commit in scene.target.open().read("s")] == [False, True, False]


def test_a_session_that_the_target_has_is_refused_by_name_and_left_alone(scene: Scene) -> None:
    """The other session of this name is untouched, the source's stays open, all others move."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["mine", "taken"])
    target.append("taken", note("eve"))
    before = history(target, "taken")

    migration = scene.moved()

    moves = scene.moves(migration)
    assert {session: move.state for session, move in moves.items()} == {"mine": "moved", "taken": "failed"}
    assert "MIGRATION_CONFLICT: session taken is there already" in (moves["taken"].error or "")
    assert history(target, "taken") == before
    assert log.append("taken", note()).appended == 1


def test_a_quarantined_session_stays_where_it_is(scene: Scene) -> None:
    """What does not verify is not moved; it is named."""
    log = scene.source.open()
    fill(log, ["good", "bad"])
    keys = scene.source.keyspace.of("bad")
    scene.source.client.fcall("muster_quarantine_1", 2, keys.head("bad"), keys.hold("bad"), "bad", "LOG_ALTERED", 3)

    moves = scene.moves(scene.moved())

    assert (moves["good"].state, moves["bad"].state) == ("moved", "failed")
    assert "QUARANTINED" in (moves["bad"].error or "")


def test_a_producer_that_knows_both_follows_by_itself(scene: Scene) -> None:
    """Its next append lands at the target; so do reads, a repeat by an old receipt, and many appends at once."""
    fill(scene.source.open(), ["s", "stays"])
    with scene.producer() as producer:
        first = producer.append("s", note(id="mine"))
        scene.moved({"sessions": ["s"]})

        after = producer.append("s", note())
        again = producer.append("s", note(id="mine"), known=6)
        many = producer.append_many([Append("s", (note(),)), Append("stays", (note(),)), Append("s", (note(),))])
        deduped = producer.append("s", [note(id="mine"), note(id="yours")], dedupe=True)

        assert (first.first_seq, after.first_seq) == (7, 8)
        assert (again.first_seq, again.appended, again.digest) == (7, 0, first.digest)
        assert [one.first_seq for one in many if isinstance(one, Receipt)] == [9, 7, 10]
        assert (deduped.appended, deduped.duplicates) == (1, 1)
        assert history(producer, "s") == history(scene.target.open(), "s")
        assert producer.head("s") == scene.target.open().head("s")
        assert producer.compare() == []  # what it was told of both places is there


def test_an_asyncio_producer_follows_too(scene: Scene) -> None:
    """As the blocking one."""
    fill(scene.source.open(), ["s"])

    async def follow() -> tuple[Receipt, Receipt, Receipt]:
        async with await scene.async_producer() as producer:
            first = await producer.append("s", note(id="mine"))
            await asyncio.to_thread(scene.moved)
            after = await producer.append("s", note())
            again = await producer.append("s", note(id="mine"), known=Position(6))
            return first, after, again

    first, after, again = asyncio.run(follow())

    assert (first.first_seq, after.first_seq, again.first_seq, again.appended) == (7, 8, 7, 0)


def test_a_producer_waits_while_its_session_is_between_two_places(scene: Scene) -> None:
    """Sealed at the source and not open at the target: an append waits, and lands once."""
    fill(scene.source.open(), ["s"])
    asked = Flag()
    with scene.producer() as producer, scene.ends() as ends, ThreadPoolExecutor(1) as pool:
        producer.append("s", note())
        migration = scene.begun(ends)
        work = scene.moving(ends, migration)
        copied(work)
        ends.source.ask([sealing(ends, "s", migration)])

        def append() -> Receipt:
            asked.set()
            return producer.append("s", note(id="between"))

        waiting = pool.submit(append)
        asked.wait()
        cut(work)

        assert waiting.result(30).first_seq == 8
    assert [event.id for commit in scene.target.open().read("s") for event in commit.events].count("between") == 1


def sealing(ends: Ends, session: str, migration: Migration) -> list[Any]:
    """The first step of a cutover."""
    return calls.seal(ends.source, session, migration.id, "", "to", str(ends.target.place))


def test_a_migration_is_gone_on_with_wherever_it_broke_off(scene: Scene) -> None:
    """What was opened and not noted is found open; what was sealed and not opened is opened."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["opened", "sealed", "copied"])
    with scene.ends() as ends:
        migration = scene.begun(ends)
        work = scene.moving(ends, migration)
        copied(work, ["opened", "sealed", "copied"])
        cut(work, ["opened"])
        Migrations(ends.target.store).put(migration.id, {"opened": Move("sealing"), "sealed": Move("sealing")})
        ends.source.ask([sealing(ends, "sealed", migration)])
        fill(log, ["new"])

        done = cut(work)

    assert done.failed == 0
    assert set(target.sessions()) == {"opened", "sealed", "copied", "new"}
    for session in target.sessions():
        with refused("MOVED_TO"):
            log.append(session, note())


class CutsTheOther(Proxy):
    """The way to the source, which cuts the way to the target as soon as something is sealed."""

    def __init__(self, url: str, other: Proxy) -> None:
        self._other = other
        address = urlsplit(url)
        super().__init__(str(address.hostname), int(address.port or 0))

    def _what_befalls(self, request: bytes) -> tuple[Fault, Strike | None]:
        if b"muster_seal_1" not in request:
            return Fault.NONE, None
        return Fault.NONE, Strike(Moment.TAKEN, self._cut_the_other)

    def _cut_the_other(self) -> None:
        self._other._is_cut = True
        self._other.break_connections()


def test_a_session_does_not_wait_for_a_target_that_fails(scene: Scene) -> None:
    """Sealed, and then the target is away before the rest is copied: the source is opened again, and goes on."""
    log = scene.source.open()
    fill(log, ["a", "b"])
    with (
        proxied(scene.target.url) as to_target,
        closing(CutsTheOther(scene.source.url, to_target)) as to_source,
        scene.ends(source_url=to_source.url, target_url=to_target.url, retry_for_s=0) as ends,
    ):
        work = scene.moving(ends, scene.begun(ends))
        copied(work)
        log.append("a", note())
        with pytest.raises((Unavailable, redis.RedisError)):
            cut(work)

    assert [log.append(one, note()).first_seq for one in ("a", "b")] == [8, 7]


def test_commits_that_waited_in_a_spool_follow_too(scene: Scene, tmp_path: Path) -> None:
    """Spooled while the source was away, sent when it is back: to where the session is by then, once and in order."""
    fill(scene.source.open(), ["s"])
    options: dict[str, Any] = {"environment": ENVIRONMENT, "namespace": scene.source.namespace}
    with proxied(scene.source.url) as way:
        connecting = Connecting(way.url, retry_for_s=0)
        with SessionLog.open(connecting, spool=tmp_path / "spool", moved=[scene.target.url], **options) as producer:
            producer.append("s", note(id="before"))
            with way.cut():
                spooled = [producer.append("s", note(id=f"away-{number}")) for number in range(3)]
                scene.moved()
            assert producer.drained(timeout_s=30)

    assert all(receipt.is_spooled for receipt in spooled)
    ids = [event.id for commit in scene.target.open().read("s") for event in commit.events]
    assert ids[6:] == ["before", "away-0", "away-1", "away-2"]


def test_functions_of_an_earlier_release_are_refused_before_anything_is_sealed(scene: Scene) -> None:
    """Both servers need those of this one."""
    source = library_source().replace("muster_yield_1", "muster_other_1")
    scene.source.client.function_load(source, replace=True)
    try:
        with pytest.raises(Misconfigured, match="FUNCTIONS_MISSING"), scene.ends():
            pass
    finally:
        scene.source.client.function_load(library_source(), replace=True)


def test_a_moved_session_is_restored_as_one(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup of the source does not make it a writer again."""
    fill(scene.source.open(), ["s"])
    scene.moved()
    monkeypatch.setenv("MUSTER_ENVIRONMENT", ENVIRONMENT)
    there = ["--url", scene.source.url, "--namespace", scene.source.namespace]
    assert main(["backup", "create", str(tmp_path / "backup"), *there]) == 0
    client = scene.source.client
    client.delete(*scene.source.keys())
    assert main(["backup", "restore", str(tmp_path / "backup"), *there]) == 0

    with refused("MOVED_TO"):
        scene.source.open().append("s", note())


def test_whoever_listens_at_the_target_is_told_of_what_is_opened_there(scene: Scene) -> None:
    """Each seq once and in order, what came before and after the move too; one session from the seq it was read to."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["a", "b"])
    fill(target, ["theirs"])
    with target.subscribe(after="beginning") as everything, target.subscribe(after="now") as newest:
        first = [everything.get(timeout_s=30) for _ in range(6)]
        assert newest.get(timeout_s=0) is None
        scene.moved()
        target.append("b", note())
        rest = [everything.get(timeout_s=30) for _ in range(13)]
        new = [newest.get(timeout_s=30) for _ in range(13)]
    with target.subscribe("b", after=4) as one:
        left = [one.get(timeout_s=30) for _ in range(3)]

    assert {delivery.session for delivery in first if delivery} == {"theirs"}
    for given in (rest, new):
        seqs: dict[str, list[int]] = {"a": [], "b": []}
        for delivery in given:
            assert delivery is not None
            seqs[delivery.session].append(delivery.seq)
        assert seqs == {"a": [1, 2, 3, 4, 5, 6], "b": [1, 2, 3, 4, 5, 6, 7]}
    assert [delivery.seq for delivery in left if delivery] == [5, 6, 7]
