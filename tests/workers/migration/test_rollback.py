"""A rollback undoes what one migration did, and nothing else; nothing that was appended is lost by it."""

from __future__ import annotations

from typing import Any

import pytest

from domain import Conflict, Event
from projections.projection import Projection
from tests.projections.examples import EventsByType, SpentPerSession, SumsWithoutSubtract
from tests.projections.own_world import Own
from tests.projections.world import World
from tests.workers.migration.scene import Scene, copied, cut, fill, history, note, refused
from workers.migration import calls
from workers.migration.record import Migration, Migrations, Move


def rolled_back(scene: Scene, migration: Migration, *, carry_back: bool = False) -> tuple[int, int]:
    """How many sessions are back, and how many are not."""
    with scene.ends() as ends:
        work = scene.moving(ends, migration)
        with work.phase("rolling back", "rolled back"):
            done = work.rollback(carry_back=carry_back)
    return done.sessions, done.failed


def truth(scene: Scene, side: str) -> dict[bytes, bytes]:
    """Logs, heads, holds and the registry of a side, byte by byte; without names that are free, or say where a session
    is.
    """
    store = scene.source if side == "source" else scene.target
    words = (b":log:", b":head:", b":hold:", b":sessions", b":arriving:", b":skips")
    found = {key: value for key, value in store.snapshot().items() if any(word in key for word in words)}
    left = [key for key in found if b":hold:" in key and store.client.hexists(key.decode(), "moved_to")]
    for key in left:
        del found[key], found[key.replace(b":hold:", b":head:")]
    client: Any = store.client
    heads = [key for key in found if b":head:" in key and client.get(key).startswith(b"0 ")]
    return {key: value for key, value in found.items() if key not in heads}


def test_what_was_moved_is_back_and_what_was_there_is_untouched(either_way: Scene) -> None:
    """Sessions that the target had are equal to the byte, those of the source take appends again at the next seq."""
    log, target = either_way.source.open(), either_way.target.open()
    fill(log, ["a", "b", "clash"])
    fill(target, ["clash", "theirs"])
    target.set_policy("theirs", "strict")
    there, here = truth(either_way, "target"), {one: history(log, one) for one in ("a", "b", "clash")}
    migration = either_way.moved()

    back = rolled_back(either_way, migration)

    assert back == (3, 0)
    assert truth(either_way, "target") == there
    assert {one: history(log, one) for one in here} == here
    assert [log.append(one, note()).first_seq for one in here] == [7, 7, 7]


def test_a_migration_that_was_broken_off_is_rolled_back(scene: Scene) -> None:
    """Copied, sealed, or moved: each session is back at its source and open, and the target holds nothing of them."""
    log = scene.source.open()
    fill(log, ["copied", "sealed", "moved"])
    fill(scene.target.open(), ["theirs"])
    there = truth(scene, "target")
    with scene.ends() as ends:
        migration = scene.begun(ends)
        work = scene.moving(ends, migration)
        copied(work)
        cut(work, ["moved"])
        ends.source.ask([calls.seal(ends.source, "sealed", migration.id, "", "to", str(ends.target.place))])

    assert rolled_back(scene, migration) == (3, 0)

    assert truth(scene, "target") == there
    assert [log.append(one, note()).first_seq for one in ("copied", "sealed", "moved")] == [7, 7, 7]


def test_what_was_copied_and_not_noted_is_taken_back_too(scene: Scene) -> None:
    """Whoever died between a copy and its note left a copy behind; a rollback finds it."""
    log = scene.source.open()
    fill(log, ["s"])
    with scene.ends() as ends:
        migration = scene.begun(ends)
        work = scene.moving(ends, migration)
        copied(work)
        Migrations(ends.target.store).put(migration.id, {"s": Move("begun")})

    assert rolled_back(scene, migration) == (1, 0)

    assert not [key for key in scene.target.keys() if b":arriving:" in key]  # noqa: SIM118
    assert truth(scene, "target") == {}


def test_what_was_appended_since_is_never_given_up_in_silence(scene: Scene) -> None:
    """Without leave to carry it back the rollback is refused, with names, before anything is changed."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["a", "b"])
    migration = scene.moved()
    target.append("b", [note(), note()])
    before = (scene.source.snapshot(), truth(scene, "target"))

    with pytest.raises(Conflict, match=r"session|b \(seqs 7 to 8\)") as raised:
        rolled_back(scene, migration)

    assert raised.value.code == "ROLLBACK_REFUSED"
    assert raised.value.facts["sessions"] == ["b"]
    assert (scene.source.snapshot(), truth(scene, "target")) == before


def test_what_was_appended_since_is_carried_back(scene: Scene) -> None:
    """With the seqs, digests and bytes it had on the target; the source's workers are told of it."""
    log, target, world = scene.source.open(), scene.target.open(), World(scene.source)
    fill(log, ["a", "b"])
    world.project()
    migration = scene.moved()
    for number in range(300):
        target.append("b", note(id=f"e-{number}"))
    held = history(target, "b")

    assert rolled_back(scene, migration, carry_back=True) == (2, 0)

    assert history(log, "b") == held
    assert log.append("b", note()).first_seq == 307
    world.project()
    assert world.codes() == []


def test_a_session_that_completed_on_the_target_is_completed_when_it_is_back(scene: Scene) -> None:
    """The gate is carried back too."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["s"])
    migration = scene.moved()
    target.append("s", Event.of("completed", actor="ann"))

    rolled_back(scene, migration, carry_back=True)

    with refused("GATE_REFUSED"):
        log.append("s", note())


@pytest.mark.parametrize("projected", ["all of it", "none of it"])
def test_what_workers_derived_goes_with_the_sessions(scene: Scene, projected: str) -> None:
    """The target's views, indexes and sums are those of the sessions it had before, however far its workers were."""
    source, target = World(scene.source), World(scene.target)
    source.sessions(8)
    target.log.append("theirs", note("eve"))
    target.project()
    before = target.views.agent("eve")
    migration = scene.moved()
    if projected == "all of it":
        target.project()
        assert target.views.agent("eve") != before

    rolled_back(scene, migration)
    target.project()

    assert target.codes() == []
    assert target.views.agent("eve") == before
    assert [one["session"] for one in target.views.sessions()] == ["theirs"]


@pytest.mark.parametrize("projected", ["all of it", "none of it"])
@pytest.mark.parametrize("kind", [EventsByType, SumsWithoutSubtract, SpentPerSession])
def test_what_own_projections_derived_goes_too(scene: Scene, kind: type[Projection], projected: str) -> None:
    """Their workers merge again from what is left, however far they were."""
    source, target = World(scene.source), World(scene.target)
    source.sessions(8)
    target.log.append("theirs", note("eve"))
    own = Own(target, kind)
    own.project()
    before = own.states()
    migration = scene.moved()
    if projected == "all of it":
        own.project()
        assert own.states() != before

    rolled_back(scene, migration)
    own.project()

    own.assert_right()
    assert own.states() == before
    target.log.append("theirs", note("ann"))
    own.project()
    own.assert_right()


def test_a_producer_that_followed_comes_back(scene: Scene) -> None:
    """Its next append after the rollback lands at the source."""
    fill(scene.source.open(), ["s"])
    with scene.producer() as producer:
        migration = scene.moved()
        there = producer.append("s", note())
        rolled_back(scene, migration, carry_back=True)

        back = producer.append("s", note())

        assert (there.first_seq, back.first_seq) == (7, 8)
        assert history(scene.source.open(), "s")[-1].digest == back.digest
    assert list(scene.target.open().sessions()) == []


def test_nobody_begins_a_session_anew_where_it_was_taken_back_from(scene: Scene) -> None:
    """A producer that goes on at the target is told where the session is; its name is not free there."""
    fill(scene.source.open(), ["s"])
    migration = scene.moved()
    rolled_back(scene, migration)

    with refused("MOVED_TO"):
        scene.target.open().append("s", note())

    again = scene.moved()
    assert again.id != migration.id
    assert scene.target.open().append("s", note()).first_seq == 7


def test_a_lease_that_went_on_at_the_target_does_not_come_back_with_its_old_holder(scene: Scene) -> None:
    """Who held it before the move, and lost it there, cannot append at the source."""
    log, target = scene.source.open(), scene.target.open()
    lease = log.lease("s", "ann")
    lease.append(note())
    migration = scene.moved()
    target.client.hset(scene.target.keyspace.of("s").hold("s"), "deadline", "0")  # it ran out
    with target.lease("s", "bob") as other:
        other.append(note("bob"))

    rolled_back(scene, migration, carry_back=True)

    with refused("LEASE_LOST"):
        lease.append(note())
