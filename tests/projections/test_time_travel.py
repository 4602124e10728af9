"""Any state of any session can be had again: at a seq, at a time, and of the real logs too."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime, timedelta, timezone
from itertools import islice
from random import Random
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain import Append, Damaged, Event, Refused
from domain.codec import parse_line
from domain.log.contract import Position
from projections import session_view
from projections.difference import Change, changes
from projections.queries import state_at
from tests.chaos.effort import FULL
from tests.main_job.inputs import LOGS, lines_of
from tests.projections.world import World, did, histories, memory_log, notes, raised_code

#: How many sessions of a real log are appended in one call, and how many events there are at most in a commit.
TOGETHER: Final = 500
LARGEST: Final = 4


def at_ms(ms: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms)


@pytest.fixture
def timed(world: World) -> World:
    """A session of 400 commits of one to three events, each some ms after the one before it by the server's clock."""
    for number in range(400):
        world.log.append("timed", [did("modified", "ann", entities=[f"f{number}"]), *notes(number % 3, "bob")])
    world.project()
    return world


def test_a_time_is_the_last_commit_at_or_before_it(timed: World) -> None:
    """At a commit's time the session stands at the last commit of that ms; right before it, at the one before."""
    commits = list(timed.log.read("timed"))
    last_of = {commit.at_ms: commit.last_seq for commit in commits}

    for ms, seq in list(last_of.items())[::7]:
        assert timed.views.seq_at("timed", at_ms(ms)) == seq
        assert timed.views.session_at("timed", at_ms(ms)) == timed.views.session_at("timed", seq)
        before = [last for at, last in last_of.items() if at < ms]
        if before:
            assert timed.views.seq_at("timed", at_ms(ms - 1)) == max(before)
    end = at_ms(commits[-1].at_ms)
    assert timed.views.session_at("timed", end + timedelta(days=1)) == timed.views.session("timed")
    assert timed.views.seq_at("timed", end.astimezone(timezone(timedelta(hours=5)))) == commits[-1].last_seq


def test_what_is_no_time_of_a_session_is_said(timed: World) -> None:
    """A time before its beginning, one without an offset, and a session that is not there are errors of their own."""
    begun = at_ms(next(timed.log.read("timed")).at_ms)

    assert raised_code(lambda: timed.views.session_at("timed", begun - timedelta(milliseconds=1))) == "TIME_UNKNOWN"
    assert raised_code(lambda: timed.views.session_at("timed", begun.replace(tzinfo=None))) == "TIME_INVALID"
    assert raised_code(lambda: timed.views.session_at("none", begun)) == "SESSION_UNKNOWN"


def test_a_time_is_found_without_reading_the_log(timed: World) -> None:
    """The commits that are looked at on the way do not grow with the log, but with its logarithm."""
    calls: list[int] = []
    exchange = timed.log._exchange

    def counting(requests: Any, once: bool = False) -> Any:
        answers = exchange(requests, once)
        calls.append(sum(len(answer) for answer in answers))
        return answers

    timed.log._exchange = counting  # type: ignore[method-assign]
    commits = list(islice(timed.log.read("timed"), 300))
    calls.clear()

    assert timed.log.position_at("timed", commits[-1].at_ms).seq >= commits[-1].last_seq
    assert len(calls) <= 5
    assert sum(calls) <= 1 + 4 * 8


def test_a_checkpoint_of_another_history_is_not_trusted(timed: World) -> None:
    """A checkpoint that was sealed before the log lost its tail, and goes on otherwise, is passed over."""
    key = timed.keyspace.of("timed").checkpoints("timed")
    seq, stored = max(timed.projections.checkpoints("timed").items())
    other = session_view.decode(stored)
    true = timed.views.session_at("timed", seq)
    other.digest, other.state = "0" * 20, "expired"
    timed.redis.hset(key, seq, session_view.encode(other))

    assert timed.views.session_at("timed", seq) == true
    assert timed.views.session_at("timed", seq + 1)["state"] == "working"


# -- differences ------------------------------------------------------------------------------------------------------


def test_a_difference_names_every_field_that_differs(world: World) -> None:
    """Scalars with both values, maps key by key, lists member by member; and nothing that is equal."""
    world.log.append("s", did("modified", "ann", entities=["a.py"]))
    world.log.append("s", did("modified", "ann", entities=["b.py"]))
    world.log.append("s", [did("broke", "bob"), did("left", "ann")])

    found = {change.field: (change.before, change.after) for change in world.views.difference("s", 1, 4)}

    for moved in ("digest", "last_at"):
        found.pop(moved, None)
    assert found == {
        "seq": (1, 4),
        "state": ("working", "broken"),
        "agents.ann.events": (1, 3),
        "agents.ann.last_seq": (1, 4),
        "agents.ann.present": (True, False),
        "agents.bob": (None, world.views.session("s")["agents"]["bob"]),
        "event_types.broke": (None, 1),
        "event_types.left": (None, 1),
        "event_types.modified": (1, 2),
        "entities.b.py": (False, True),
        "last_type": ("modified", "left"),
        "transitions.working>broken": (None, 1),
        "open_breaks.3": (False, True),
    }
    assert world.views.difference("s", 2, 2) == []
    assert [change.field for change in world.views.difference("s", 4)] == []


@settings(max_examples=25)
@given(histories(), st.randoms(use_true_random=False))
def test_a_difference_made_to_the_one_state_gives_the_other(commits: list[list[Event]], chance: Random) -> None:
    """Whatever the history and whichever way: with the differences brought in, one document is the other."""
    log = memory_log("s", commits)
    seqs = [chance.randint(1, sum(map(len, commits))) for _ in range(2)]
    before, after = (
        session_view.document(view, digest=whole)
        for view, whole in (state_at(log, session_view.initial("s"), seq) for seq in seqs)
    )

    assert brought_in(before, list(changes(before, after))) == after


def brought_in(document: dict[str, Any], found: list[Change]) -> dict[str, Any]:
    """A document after changes were made to it."""
    made = deepcopy(document)
    for change in found:
        at = made
        for name in change.path[:-1]:
            at = at[name]
        last: Any = int(change.path[-1]) if change.path[0] == "open_breaks" else change.path[-1]
        if isinstance(at, list):
            (at.append if change.after else at.remove)(last)
            at.sort()
        elif change.after is None and change.path[0] in ("agents", "event_types", "transitions", "type_pairs"):
            del at[last]
        else:
            at[last] = change.after
    return made


def test_two_sessions_are_compared_too(world: World) -> None:
    """A state of one session and one of another: also what only one of them has."""
    world.log.append("s", did("modified", "ann", entities=["a.py"]))
    world.log.append("t", did("broke", "ann", entities=["b.py"]))

    found = {change.field: (change.before, change.after) for change in world.views.difference("s", 1, 1, other="t")}

    assert found["session"] == ("s", "t")
    assert found["entities.a.py"] == (True, False)
    assert found["event_types.modified"] == (1, None)
    assert raised_code(lambda: world.views.difference("s", 1, other="none")) == "SESSION_UNKNOWN"


# -- real sessions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOGS)
def test_the_state_of_every_real_session_is_the_fold_of_its_prefix(world: World, name: str) -> None:
    """For every session of the real logs (in the gate the first 2,000 of a log), at sampled seqs and at the times of
    commits: what the read API gives, with the checkpoints that were made on the way, is the fold of so many events.
    """
    chance = Random(name)
    told_of = dict(islice(real_histories(name).items(), None if FULL else 2_000))
    appended = append_all(world, told_of, chance)
    world.project()

    for session, events in told_of.items():
        ends = dict(appended[session])
        for seq in sorted({chance.randint(1, len(events)), chance.choice([1, len(events)])}):
            whole = max((end for end in ends if end <= seq), default=0)
            expected = session_view.initial(session)
            for event in events[:seq]:
                expected.apply(event)
            found = world.views.session_at(session, seq)
            told = session_view.document(expected)
            for by_commits in ("digest", "started_at", "last_at", "completed_at"):
                told[by_commits] = found[by_commits]
            assert found == told
            assert (found["digest"] is not None) == (seq == whole)
            if seq == whole:
                assert world.views.seq_at(session, at_ms(ends[seq])) >= seq


def real_histories(name: str) -> dict[str, list[Event]]:
    """The legal events of a real log, by session."""
    found: dict[str, list[Event]] = {}
    views: dict[str, Any] = {}
    for line in lines_of(name):
        try:
            session, event = parse_line(line)
            views.setdefault(session, session_view.initial(session)).apply(event)
        except (Refused, Damaged):  # what an import refuses too
            continue
        found.setdefault(session, []).append(event)
    return found


def append_all(world: World, told_of: dict[str, list[Event]], chance: Random) -> dict[str, list[tuple[int, int]]]:
    """Appends histories in commits of any size; returns the last seq and the time of each commit."""
    appended: dict[str, list[tuple[int, int]]] = {session: [] for session in told_of}
    commits: list[Append] = []
    for session, events in told_of.items():
        at = 0
        while at < len(events):
            size = chance.randint(1, LARGEST)
            commits.append(Append(session, tuple(events[at : at + size]), known=Position(at)))
            at += size
    for first in range(0, len(commits), TOGETHER):
        for receipt in world.log.append_many(commits[first : first + TOGETHER]):
            assert not isinstance(receipt, Exception), receipt
            appended[receipt.session].append((receipt.last_seq, receipt.at_ms))
    return appended
