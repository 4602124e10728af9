"""A sealed session takes nothing, says where it went, and still tells a repeat of what it took before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec import structs

from domain import Conflict, Unavailable
from tests.projections.world import World
from tests.workers.migration.scene import Scene, fill, note, refused
from workers.migration import calls
from workers.migration.calls import Sealed, Standing
from workers.migration.ends import End, Ends
from workers.stating import commit_keys, own_commit

PLACE = "redis://elsewhere:6379/0 prod:main 77"


def seal(end: End, session: str = "s", task: str = "t", by: str = "b") -> object:
    return calls.answered(session, end.ask([calls.seal(end, session, task, by, "to", PLACE)])[0])


def unseal(end: End, session: str = "s", task: str = "t", by: str = "b") -> object:
    return calls.answered(session, end.ask([calls.unseal(end, session, task, by)])[0])


def test_a_sealed_session_takes_no_appends_and_says_where_it_went(either_way: Scene) -> None:
    """The error names the place, on either kind of server, and nothing is written."""
    log = either_way.source.open()
    fill(log, ["s"])
    with either_way.ends() as ends:
        sealed = seal(ends.source)
    before = either_way.source.snapshot()

    with pytest.raises(Conflict) as raised:
        log.append("s", note())

    assert (raised.value.code, raised.value.facts["place"]) == ("MOVED_TO", PLACE)
    assert isinstance(sealed, Sealed)
    assert sealed.position == log.heads(["s"])[0].position  # type: ignore[union-attr]
    assert either_way.source.snapshot() == before


def test_nothing_else_gets_into_a_sealed_session(scene: Scene) -> None:
    """Neither a lease, nor a policy, nor what Muster states of it, nor a fork into it."""
    log = scene.source.open()
    fill(log, ["s", "parent"])
    with scene.ends() as ends:
        seal(ends.source)
    before = scene.source.snapshot()

    with refused("MOVED_TO"):
        log.lease("s", "ann")
    with refused("MOVED_TO"):
        log.set_policy("s", "strict")
    with refused("SESSION_TAKEN"):
        log.fork("parent", 2, "s")
    names, seq = commit_keys(log, "s"), 6
    commit = own_commit(log, "s", "expired", {}, expected=seq)
    assert log.client.fcall("muster_state_1", len(names), *names, *commit)[:2] == [b"REFUSED", b"MOVED_TO"]
    assert scene.source.snapshot() == before


def test_a_repeat_of_a_commit_that_is_there_is_told_its_receipt(scene: Scene) -> None:
    """A producer whose reply was lost right before the seal learns that its commit arrived."""
    log, again = scene.source.open(), scene.source.open()
    fill(log, ["s"])
    receipt = log.append("s", note(id="e-1"))
    exact = log.append("s", note(id="e-2"), expected=7)
    with scene.ends() as ends:
        seal(ends.source)

    found = again.append("s", note(id="e-1"), known=6)
    same = again.append("s", note(id="e-2"), expected=7)

    assert (found.first_seq, found.digest, found.appended) == (receipt.first_seq, receipt.digest, 0)
    assert (same.first_seq, same.digest, same.appended) == (exact.first_seq, exact.digest, 0)


def test_only_who_sealed_it_opens_it_again(scene: Scene) -> None:
    """Another task, or a process that another one of its task took over from, opens nothing."""
    log = scene.source.open()
    fill(log, ["s"])
    with scene.ends() as ends:
        first, same, newer = seal(ends.source), seal(ends.source), seal(ends.source, by="newer")
        other = seal(ends.source, task="other")
        assert first == same == newer
        assert isinstance(other, Conflict)
        for task, by in (("other", "newer"), ("t", "b")):
            assert isinstance(unseal(ends.source, task=task, by=by), Conflict)
        with refused("MOVED_TO"):
            log.append("s", note())

        opened = unseal(ends.source, by="newer")

        assert isinstance(opened, Standing)
        assert opened.word == "OPEN"
        assert log.append("s", note()).first_seq == 7


def test_a_process_that_was_thought_dead_opens_nothing(scene: Scene) -> None:
    """Another one goes on with its migration: what it had copied is theirs, and neither adds to it nor opens it."""
    log = scene.source.open()
    fill(log, ["s"])
    with scene.ends() as ends:
        migration = scene.begun(ends)
        old, new = scene.moving(ends, migration), scene.moving(ends, migration)
        old.copying.by, new.copying.by = "old", "new"
        old.copying.copy(["s"])
        sealed = seal(ends.source, task=migration.id, by="old")
        assert isinstance(sealed, Sealed)
        new.copying.copy(["s"])
        before = scene.target.snapshot()

        opening = calls.open_(ends.target, "s", migration.id, "old", sealed, "", "ann")
        at = sealed.position
        commits = list(log.read("s"))[-1:]
        adding = calls.stage(ends.target, "s", migration.id, "old", str(ends.source.place), at, commits)
        answers = [calls.answered("s", reply) for reply in ends.target.ask([opening, adding])]

        assert all(isinstance(answer, Conflict) for answer in answers)
        assert scene.target.snapshot() == before
        opening = calls.open_(ends.target, "s", migration.id, "new", sealed, "", "ann")
        assert isinstance(calls.answered("s", ends.target.ask([opening])[0]), Standing)


def test_a_lease_outlives_a_seal_that_is_taken_back(scene: Scene) -> None:
    """While it is sealed its holder is told where to go, and afterwards holds it as before."""
    log = scene.source.open()
    with log.lease("s", "ann") as lease, scene.ends() as ends:
        lease.append(note())
        seal(ends.source)
        for attempt in (lease.renew, lambda: lease.append(note())):
            with refused("MOVED_TO"):
                attempt()
        unseal(ends.source)

        lease.renew()
        assert lease.append(note()).first_seq == 2


def test_a_copy_that_arrives_is_seen_by_nobody_and_its_name_is_held(scene: Scene) -> None:
    """Until it is opened it is in no list, has no log, and takes no appends."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["s"])
    with scene.ends() as ends:
        work = scene.moving(ends, scene.begun(ends))
        work.copy()

    assert list(target.sessions()) == []
    assert list(target.read("s")) == []
    with pytest.raises(Unavailable, match="SESSION_ARRIVING"):
        target.append("s", note())
    with refused("SESSION_ARRIVING"):
        target.set_policy("s", "strict")
    views = World(scene.target).views
    assert list(views.sessions()) == []
    with refused("SESSION_ARRIVING"):
        views.session("s")


def test_what_a_function_is_not_given_right_it_refuses(scene: Scene) -> None:
    """A copy whose bytes are not what their digest says is named with its seq, and nothing of it is kept."""
    log = scene.source.open()
    fill(log, ["s"])
    with scene.ends() as ends:
        work = scene.moving(ends, scene.begun(ends))
        at = work.copying.standing(["s"])["s"]
        commits = list(log.read("s"))
        commits[1] = structs.replace(commits[1], body=commits[0].body + b"\x01")
        before = scene.target.snapshot()
        command = calls.stage(ends.target, "s", work.migration.id, "", str(ends.source.place), at, commits)  # type: ignore[arg-type]

        answer = calls.answered("s", ends.target.ask([command])[0])

        assert "COPY_DIFFERS" in str(answer)
        assert answer.facts["seq"] == 3  # type: ignore[union-attr]
        assert scene.target.snapshot() == before


@pytest.mark.parametrize("step", [seal, unseal])
def test_a_session_that_is_not_there_is_said_to_be_absent(scene: Scene, step: Callable[[End], object]) -> None:
    """Nothing is made by asking."""
    ends: Ends
    with scene.ends() as ends:
        answer = step(ends.source)

    assert "SESSION_UNKNOWN" in str(answer)
    names = scene.source.keys()
    assert not [key for key in names if b"hold" in key or b"head" in key]
