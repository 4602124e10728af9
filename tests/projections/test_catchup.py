"""Catching up: what a batch of the feed makes of a session's view, whatever became of that view before."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import Event, MemoryLog
from domain.agent import Totals, contributions, merge
from domain.codec import Commit
from domain.log.feed import Span
from projections import catchup, session_view
from projections.catchup import Batch, fold_span
from tests.projections.world import World, did, folded, foreign_append, histories, lying_append, memory_log, notes

#: What may have become of a session's view before a batch: each as seqs of the log, and what else happened to it.
FATES: Final = (
    "exact",
    "missing",
    "damaged",
    "behind",
    "partly ahead",
    "ahead",
    "of another session",
    "of another log",
)


def stored_view(log: MemoryLog, fate: str, before: int, inside: int, last: int) -> bytes | None:
    """The view as its fate left it: `before` is the seq before the batch, `inside` one in it, `last` the log's."""
    match fate:
        case "exact":
            return session_view.encode(folded(log, "s", before)) if before else None
        case "missing":
            return None
        case "damaged":
            return session_view.encode(folded(log, "s", before))[:-1] + b"\xff"
        case "behind":
            return session_view.encode(
                folded(log, "s", max(0, before - 1)) if before > 1 else session_view.initial("s")
            )
        case "partly ahead":
            return session_view.encode(folded(log, "s", inside))
        case "ahead":
            return session_view.encode(folded(log, "s", last))
        case "of another session":
            return session_view.encode(folded(memory_log("t", [notes(last)]), "t"))
        case _:
            other = folded(memory_log("s", [notes(before)]), "s") if before else session_view.initial("s")
            other.digest = "0" * 20
            return session_view.encode(other)


@pytest.mark.parametrize("fate", FATES)
@given(commits=histories(), cuts=st.tuples(st.integers(0), st.integers(0), st.integers(0)))
def test_whatever_became_of_a_view_the_batch_makes_it_right(
    fate: str, commits: list[list[Event]], cuts: tuple[int, int, int]
) -> None:
    """The view is the fold, and the totals move from what was counted to what the view contributes."""
    log = memory_log("s", commits)
    read = list(log.read("s"))
    begin = cuts[0] % len(read)
    end = begin + cuts[1] % (len(read) - begin)
    inside = begin + cuts[2] % (end - begin + 1)
    batch = read[begin : end + 1]
    span = Span("s", batch[0].first_seq, batch[-1].last_seq)
    before, last = span.from_seq - 1, read[-1].last_seq
    stored = stored_view(log, fate, before, read[inside].last_seq, last)
    counted = {"partly ahead": read[inside].last_seq, "ahead": last}.get(fate, before)

    outcome = fold_span(log, span, stored, batch)

    if counted >= span.to_seq:
        assert outcome is None, "the view held the batch already, and was counted with it"
        return
    assert outcome is not None
    assert outcome.parked is None
    assert outcome.view == session_view.encode(folded(log, "s", span.to_seq))
    totals = contributions(folded(log, "s", counted)) if counted else {}
    merge(totals, outcome.moved)
    assert totals == contributions(folded(log, "s", span.to_seq))


def altered(commits: list[Commit], at: int) -> list[Commit]:
    """The commits, one of which carries another actor than when it was appended."""
    commit = commits[at]
    wrong = Commit(
        commit.session,
        commit.first_seq,
        commit.last_seq,
        commit.at_ms,
        commit.digest,
        commit.body.replace(b"ann", b"bob"),
    )
    return [*commits[:at], wrong, *commits[at + 1 :]]


@pytest.mark.parametrize("has_view", [True, False])
@pytest.mark.parametrize(("damage", "code"), [("altered", "LOG_ALTERED"), ("lost", "LOG_GAP"), ("cut", "TAIL_LOST")])
def test_a_broken_commit_leaves_the_view_at_the_last_good_one(damage: str, code: str, has_view: bool) -> None:
    """The outcome says which law breaks at which seq; what was good before it is folded and counted, nothing after."""
    log = memory_log("s", [[did("modified", "ann")] for _ in range(6)])
    stored = session_view.encode(folded(log, "s", 2)) if has_view else None
    good = folded(log, "s", 3)
    commits = log._commits["s"]
    log._commits["s"] = {"altered": altered(commits, 3), "lost": commits[:3] + commits[4:], "cut": commits[:3]}[damage]

    outcome = fold_span(log, Span("s", 3, 6), stored, list(log.read("s", after=2)))

    assert outcome is not None
    assert outcome.parked is not None
    assert (outcome.parked.code, outcome.parked.first_bad_seq) == (code, 4)
    assert outcome.view == session_view.encode(good)
    assert outcome.moved == {"ann": Totals(1)}


def test_the_feed_becomes_views_checkpoints_and_totals(world: World) -> None:
    """After all batches, every view is the fold of its log and every total the sum over the views."""
    world.sessions(20, events=3)
    world.log.append("long", notes(70, "zoe"))

    world.project()

    assert world.is_caught_up()
    world.assert_views_are_folds()
    assert world.views.agent("zoe").items() >= {"events": 70, "sessions": 1, "present": 1}.items()
    assert list(world.projections.checkpoints("long")) == [70]
    assert world.verify() == []


def test_what_comes_later_moves_the_same_views(world: World) -> None:
    """Batch after batch gives what one batch gives, in views, checkpoints, totals and cursors."""
    names = world.sessions(6, events=1)
    for number in range(8):
        world.project()
        for name in names:
            world.log.append(name, [did("broke", f"agent-{number % 3}"), did("left", "ann")])
    world.project()
    step_by_step = world.derived()
    world.redis.delete(*step_by_step)

    world.project()

    assert world.derived() == step_by_step


POISON: Final = {
    "undecodable body": ("EVENT_UNREADABLE", b"\xc1\xc1"),
    "not as many events as kinds": ("EVENT_UNREADABLE", b"\x90"),
    "broken JSON": ("EVENT_UNREADABLE", b'[{"type":'),
    "no text where text belongs": ("EVENT_UNREADABLE", b'[{"type":"x.y","id":1,"actor":"ann"}]'),
}


@pytest.mark.parametrize("poison", POISON)
def test_an_unreadable_commit_parks_its_session_alone(world: World, poison: str) -> None:
    """A foreign producer's body that cannot be decoded stops its own session, with the reason; all others go on."""
    code, body = POISON[poison]
    names = world.sessions(12)
    world.project()
    assert foreign_append(world.store, names[0], ".", body)[0] == "APPENDED"
    for name in names:
        world.log.append(name, did("tool.called"))

    world.project()

    assert world.is_caught_up()
    assert [finding.code for finding in world.verify()] == [code]
    seqs = {view["session"]: view["seq"] for view in world.views.sessions()}
    assert seqs == {names[0]: 3, **dict.fromkeys(names[1:], 4)}
    (reason,) = world.projections.parked(world.keyspace.partition_of(names[0]), [names[0]])
    assert reason is not None
    assert (reason.code, reason.first_bad_seq) == (code, 4)


@pytest.mark.parametrize("is_first", [True, False])
def test_an_event_that_lied_about_its_kind_parks_its_session_alone(world: World, is_first: bool) -> None:
    """An event that the table refuses, behind a kind that the gate took, stops its own session; all others go on."""
    world.log.append("good", did("start"))
    world.log.append("lied", did("completed"))
    if not is_first:
        world.project()
    lying_append(world.store, "lied", did("modified"), ".")
    world.log.append("lied", did("tool.called"))
    world.log.append("good", did("modified"))

    world.project()

    (found,) = world.verify()
    assert (found.code, found.session, found.first_bad_seq) == ("EVENT_ILLEGAL", "lied", 2)
    assert world.views.session("good")["seq"] == 2
    assert world.views.session("lied")["seq"] == 1
    assert world.views.agent("agent-1").items() >= {"events": 3, "sessions": 2, "present": 2}.items()


def test_a_parked_session_stays_where_it_is(world: World) -> None:
    """What is appended to a parked session later is not folded over the gap."""
    world.log.append("bad", did("completed"))
    lying_append(world.store, "bad", did("modified"), ".")
    world.project()
    world.log.append("bad", did("tool.called"))

    world.project()

    assert world.views.session("bad")["seq"] == 1
    assert world.is_caught_up()


def test_damaged_totals_are_left_for_recovery(world: World) -> None:
    """A difference is never added to what cannot be read; the other agents' totals move on."""
    world.log.append("s", [did("modified", "ann"), did("modified", "bob")])
    world.project()
    keys = world.keyspace.of("s")
    world.redis.set(keys.agent_view("ann"), b"garbage")
    world.log.append("s", [did("modified", "ann"), did("modified", "bob")])

    world.project()

    assert world.redis.get(keys.agent_view("ann")) == b"garbage"
    assert world.views.agent("bob")["events"] == 2
    assert world.codes() == ["AGENT_DIFFERS"]


def test_a_batch_without_spans_moves_the_cursor_alone(world: World) -> None:
    """A feed entry that tells of nothing is passed over."""
    world.log.append("s", did("start"))
    world.project()
    partition = world.keyspace.partition_of("s")
    token = world.leases.claim(partition, ttl_ms=60_000)
    assert token is not None

    catchup.apply(world.projections, world.log, Batch(partition, token, 1, 2, []))

    assert world.projections.cursor(partition).position == 2
    world.projections.step(partition, token=token, cursor_from=2, cursor_to=1, operations=[])
