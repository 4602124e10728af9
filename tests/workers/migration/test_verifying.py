"""Damage done on purpose, on either side, is found with its session and seq; and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from domain.codec import chain
from projections import session_view
from tests.conftest import Servers, Store
from tests.projections.world import World
from tests.workers.migration.scene import Scene, copied, cut, fill, note
from workers.migration.comparing import Problem
from workers.migration.record import Migrations

Entry = tuple[bytes, dict[bytes, bytes]]


def rewrite(store: Store, key: str, change: Callable[[list[Entry]], list[Entry]]) -> None:
    """Puts other entries in the place of a stream's."""
    client: Any = store.client
    entries = change(client.xrange(key))
    client.delete(key)
    for entry_id, fields in entries:
        client.xadd(key, fields, id=entry_id)


def altered(entries: list[Entry]) -> list[Entry]:
    """A byte of the second commit's body is another one."""
    entry_id, fields = entries[1]
    body = fields[b"b"]
    return [entries[0], (entry_id, fields | {b"b": body[:-1] + bytes([body[-1] ^ 1])}), *entries[2:]]


def swapped(entries: list[Entry]) -> list[Entry]:
    """The second and the third commit have changed places."""
    (second, one), (third, other) = entries[1:3]
    return [entries[0], (second, other), (third, one), *entries[3:]]


def missing(entries: list[Entry]) -> list[Entry]:
    return [entries[0], *entries[2:]]


def cut_off(entries: list[Entry]) -> list[Entry]:
    return entries[:-1]


def beheaded(entries: list[Entry]) -> list[Entry]:
    return entries[1:]


#: What is done to a log of commits at seqs 1-2, 3-4, 5-6, 7-8; the code and seq that are found.
DAMAGE: Final = {
    "a byte is another one": (altered, "LOG_ALTERED", 3),
    "two commits have changed places": (swapped, "LOG_ALTERED", 3),
    "a commit is missing": (missing, "LOG_GAP", 3),
    "the end is missing": (cut_off, "TAIL_LOST", 7),
    "the beginning is missing": (beheaded, "LOG_GAP", 1),
}


def problems(scene: Scene, *, moves: bool, damage: Callable[[str], None]) -> list[Problem]:
    """What verification finds after some damage to sessions that were copied, or moved."""
    fill(scene.source.open(), ["good", "s", "other"], commits=4)
    with scene.ends() as ends:
        migration = scene.begun(ends)
        work = scene.moving(ends, migration)
        copied(work)
        if moves:
            cut(work)
        with work.phase("copying", "copied"):
            assert work.verify().problems == []
            assert all(move.verified for _, move in Migrations(ends.target.store).moves(migration.id))
            damage("s")
            found = work.verify()
        assert (found.sessions, [one.session for one in found.problems if one.session != "s"]) == (3, [])
        moved = dict(Migrations(ends.target.store).moves(migration.id))
        assert not moved["s"].verified
        return found.problems


@pytest.mark.parametrize("moves", [False, True], ids=["copied", "moved"])
@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_named(scene: Scene, side: str, damage: str, moves: bool) -> None:
    """By side, session, and the first seq that is not as it was appended."""
    change, code, seq = DAMAGE[damage]

    def done(session: str) -> None:
        store = scene.source if side == "source" else scene.target
        keys = store.keyspace.of(session)
        rewrite(store, keys.log(session) if side == "source" or moves else keys.arriving(session), change)

    found = problems(scene, moves=moves, damage=done)

    assert [(one.side, one.session, one.code, one.seq) for one in found] == [(side, "s", code, seq)]


def test_a_copy_that_chains_and_is_another_history_is_found(scene: Scene) -> None:
    """Whoever forges a commit with its digest is found out by the other side."""

    def forge(session: str) -> None:
        def change(entries: list[Entry]) -> list[Entry]:
            digest = entries[0][1][b"d"].decode()
            forged = [entries[0]]
            for number, (entry_id, fields) in enumerate(entries[1:]):
                body = entries[0][1][b"b"] if number == 0 else fields[b"b"]
                digest = chain(digest, session, 3 + 2 * number, 2, int(fields[b"t"]), body)
                forged.append((entry_id, fields | {b"b": body, b"d": digest.encode()}))
            return forged

        rewrite(scene.target, scene.target.keyspace.of(session).log(session), change)

    found = problems(scene, moves=True, damage=forge)

    assert [(one.side, one.code, one.seq) for one in found] == [("target", "COPY_DIFFERS", 3)]


def test_an_event_that_was_added_is_found(scene: Scene) -> None:
    """A copy that holds more than it was given is named at the first seq that is too much."""

    def add(session: str) -> None:
        key = scene.target.keyspace.of(session).arriving(session)
        client: Any = scene.target.client
        ((_, fields),) = client.xrevrange(key, count=1)
        digest = chain(fields[b"d"].decode(), session, 9, 1, 10**13, fields[b"b"])
        client.xadd(key, {"t": 10**13, "d": digest, "b": fields[b"b"]}, id="9-1")

    found = problems(scene, moves=False, damage=add)

    assert [(one.side, one.code, one.seq) for one in found] == [("target", "LOG_AHEAD", 9)]


def test_a_lost_seal_is_critical_and_put_back(scene: Scene) -> None:
    """A source that came back without its seal is closed again, and what it took meanwhile is named."""
    log = scene.source.open()

    def lose(session: str) -> None:
        key = scene.source.keyspace.of(session).head(session)
        packed: Any = scene.source.client.get(key)
        scene.source.client.set(key, packed.decode()[:-1] + "-")
        log.append(session, note())

    found = problems(scene, moves=True, damage=lose)

    assert {(one.side, one.code, one.severity, one.seq) for one in found} == {("source", "SEAL_LOST", "critical", 9)}
    head = log.head("s")
    assert head is not None
    assert head.is_elsewhere


def test_what_goes_on_at_the_target_is_no_problem(scene: Scene) -> None:
    """A moved session may grow; a copied one may lag behind its source."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["moved", "copied"])
    with scene.ends() as ends:
        work = scene.moving(ends, scene.begun(ends))
        copied(work)
        cut(work, ["moved"])
        target.append("moved", note())
        log.append("copied", note())

        with work.phase("copying", "copied"):
            assert work.verify().problems == []


def test_the_views_that_both_sides_built_are_compared(scene: Scene) -> None:
    """The target builds its own; one that is not what the source's workers built is named."""
    there, here = World(scene.source), World(scene.target)
    there.sessions(4)
    there.project()
    with scene.ends() as ends:
        work = scene.moving(ends, scene.begun(ends))
        copied(work)
        cut(work)
        here.project()
        with work.phase("moved", "moved"):
            first = work.verify()
            view = here.projections.views(["s-1"])[0]
            assert view is not None
            key = scene.target.keyspace.of("s-2").session_view("s-2")
            other = session_view.readable(here.projections.views(["s-2"])[0], "s-2")
            assert other is not None
            other.tags.add("nobody gave it")
            scene.target.client.set(key, session_view.encode(other))

            second = work.verify()

    assert (first.views, first.problems) == (4, [])
    assert [(one.session, one.code, one.seq) for one in second.problems] == [("s-2", "VIEW_DIFFERS", 3)]


def test_a_session_that_was_moved_on_is_no_problem(servers: Servers, scene: Scene, make_store: Any) -> None:
    """From the target to a third store: the first migration still verifies, as far as it goes."""
    fill(scene.source.open(), ["s"])
    first = scene.moved()
    third = Scene(scene.target, make_store(servers.url("valkey"), partitions=2))
    third.moved()

    with scene.ends() as ends:
        work = scene.moving(ends, Migrations(ends.target.store).get(first.id))
        with work.phase("moved", "moved"):
            assert work.verify().problems == []
    assert third.target.open().append("s", note()).first_seq == 7
