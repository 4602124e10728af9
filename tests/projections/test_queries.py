"""The read API: what readers get is right whatever became of the views, and pages are complete."""

from __future__ import annotations

import pytest
from msgspec import structs

from domain import Append, DeadlineExceeded
from domain.log.contract import SPOOLED
from projections import session_view
from projections.queries import state_at
from tests.projections.world import World, did, folded, foreign_append, notes, raised_code


@pytest.fixture
def long(world: World) -> World:
    """A session of commits of one to seven events, 150 in all, with checkpoints on the way; others beside it."""
    world.sessions(5)
    size = 0
    while size < 150:
        events = [
            did("modified", "ann", entities=[f"f{size}"]),
            did("broke", "bob"),
            did("handoff", "ann"),
            *notes(4, "eve"),
        ]
        commit = events[: 1 + size % 7]
        world.log.append("long", commit)
        size += len(commit)
    world.project()
    return world


def test_a_session_at_every_seq_is_the_fold_to_it(long: World) -> None:
    """At each seq the state is that of applying so many events; the digest stands only where a commit ends."""
    commits = list(long.log.read("long"))
    ends = {commit.last_seq: commit for commit in commits}
    view = session_view.initial("long")
    for commit in commits:
        for event in commit.events:
            view.apply(event)
            view.last_at = commit.at_ms
            view.started_at = view.started_at or commit.at_ms
            if view.seq in ends:
                view.digest = commit.digest
            expected = session_view.document(view, digest=view.seq in ends)
            assert long.views.session_at("long", view.seq) == expected
    assert long.views.session_at("long", view.seq) == long.views.session("long")


def test_checkpoints_shorten_the_way_and_change_nothing(long: World) -> None:
    """From the last checkpoints, from damaged ones, and without any, the state at a seq is the same."""
    assert len(long.projections.checkpoints("long")) == 4
    seqs = range(1, 150, 7)
    with_checkpoints = [long.views.session_at("long", seq) for seq in seqs]
    key = long.keyspace.of("long").checkpoints("long")

    long.redis.hset(key, mapping=dict.fromkeys(long.projections.checkpoints("long"), b"garbage"))
    with_damaged_ones = [long.views.session_at("long", seq) for seq in seqs]
    other = session_view.encode(folded(long.log, "s-1"))
    long.redis.hset(key, mapping=dict.fromkeys(long.projections.checkpoints("long"), other))
    with_anothers = [long.views.session_at("long", seq) for seq in seqs]
    long.redis.delete(key)
    without_any = [long.views.session_at("long", seq) for seq in seqs]

    assert with_damaged_ones == with_checkpoints
    assert with_anothers == with_checkpoints
    assert without_any == with_checkpoints


def test_a_checkpoint_is_where_reading_begins(long: World) -> None:
    """Only the commits after the checkpoint are read."""
    seq, stored = min(long.projections.checkpoints("long").items())
    for commit in long.log.read("long", to=seq):
        long.redis.xdel(long.keyspace.of("long").log("long"), f"{commit.last_seq}-{len(commit.events)}")

    view, _ = state_at(long.log, session_view.decode(stored), seq + 1)

    assert view.seq == seq + 1
    assert long.views.session_at("long", seq)["seq"] == seq


def test_what_is_not_there_is_said(long: World) -> None:
    """Unknown sessions, agents and seqs are errors of their own; so is a session id that is none."""
    head = long.views.session("long")["seq"]
    assert raised_code(lambda: long.views.session("none")) == "SESSION_UNKNOWN"
    assert raised_code(lambda: long.views.session_at("none", 1)) == "SESSION_UNKNOWN"
    assert raised_code(lambda: long.views.agent("none")) == "AGENT_UNKNOWN"
    assert raised_code(lambda: long.views.session_at("long", 0)) == "SEQ_UNKNOWN"
    assert raised_code(lambda: long.views.session_at("long", head + 1)) == "SEQ_UNKNOWN"
    assert raised_code(lambda: long.views.session("not an id")) == "SESSION_INVALID"


@pytest.mark.parametrize("damage", ["missing", "garbage", "another type", "another session's"])
def test_a_view_that_cannot_be_trusted_is_folded_for_the_reader(long: World, damage: str) -> None:
    """The reader gets the same document, from the log."""
    before = list(long.views.sessions())
    key = long.keyspace.of("long").session_view("long")
    other = long.redis.get(long.keyspace.of("s-1").session_view("s-1"))
    long.redis.delete(key)
    if damage == "garbage":
        long.redis.set(key, b"garbage")
    elif damage == "another type":
        long.redis.rpush(key, "a")
    elif damage == "another session's":
        long.redis.set(key, other)

    assert long.views.session("long") == folded_document(long, "long")
    assert list(long.views.sessions()) == before
    long.redis.delete(key)


def folded_document(world: World, session: str) -> dict[str, object]:
    return session_view.document(folded(world.log, session))


@pytest.mark.parametrize("damage", ["missing", "garbage"])
def test_a_head_that_is_damaged_hides_no_session(long: World, damage: str) -> None:
    """The session is still listed and shown, and so are all others; its neighbours' readers notice nothing."""
    before = list(long.views.sessions())
    keys = long.keyspace.of("long")
    long.redis.delete(keys.head("long"), keys.session_view("long"))
    if damage == "garbage":
        long.redis.set(keys.head("long"), "garbage")

    assert list(long.views.sessions()) == before
    assert long.views.session("long") == folded_document(long, "long")


def test_a_session_without_a_worker_is_shown_all_the_same(world: World) -> None:
    """Before anything was projected, readers get the fold of the log."""
    world.sessions(3)

    assert [view["seq"] for view in world.views.sessions()] == [3, 3, 3]


def test_a_damaged_log_is_shown_as_far_as_it_verifies(long: World) -> None:
    """A view that is rebuilt for a reader ends before the damage; a seq after it is an error."""
    keys = long.keyspace.of("s-1")
    long.redis.delete(keys.session_view("s-1"))
    long.redis.xdel(keys.log("s-1"), "2-1")

    assert long.views.session("s-1")["seq"] == 1
    assert long.views.session_at("s-1", 1)["seq"] == 1
    assert raised_code(lambda: long.views.session_at("s-1", 3)) == "LOG_GAP"
    assert raised_code(lambda: long.views.session_at("s-1", 2)) == "TAIL_LOST"


def test_pages_of_sessions_are_complete_and_stable(world: World) -> None:
    """Page after page gives every session once, whatever the page size, also while sessions are added."""
    names = [f"s-{n}" for n in range(700)]
    world.log.append_many([Append(name, (did("start"),)) for name in names])
    whole = [view["session"] for view in world.views.sessions()]
    assert sorted(whole) == sorted(names)

    for size in (1, 256, 699, 700, 1000):
        paged: list[str] = []
        while page := [
            view["session"] for view in world.views.sessions(after=paged[-1] if paged else None, limit=size)
        ]:
            paged += page
            if size == 1 and len(paged) == 10:
                break
        assert paged == whole[: len(paged)]
        assert len(paged) in (10, 700)

    first = [view["session"] for view in world.views.sessions(limit=350)]
    world.log.append_many([Append(f"t-{n}", (did("start"),)) for n in range(100)])
    rest = [view["session"] for view in world.views.sessions(after=first[-1])]
    assert [name for name in first + rest if name.startswith("s-")] == whole


def test_agents_are_merged_over_partitions(world: World) -> None:
    """An agent's totals are the sums over all sessions, wherever they are; pages are complete and in order."""
    world.sessions(40)
    for number in range(300):
        world.log.append(f"s-{number % 40}", did("left" if number % 2 else "joined", f"agent-{number:03}"))
    world.project()

    agents = list(world.views.agents())

    assert [agent["agent"] for agent in agents] == sorted(["ann", "bob", "eve", *(f"agent-{n:03}" for n in range(300))])
    assert world.views.agent("ann").items() >= {"events": 40, "sessions": 40, "present": 40}.items()
    assert world.views.agent("agent-007").items() >= {"events": 1, "sessions": 1, "present": 0}.items()
    assert [agent for agent in agents if agent["agent"] == "ann"] == [world.views.agent("ann")]
    paged: list[str] = []
    while page := list(world.views.agents(after=paged[-1] if paged else None, limit=70)):
        paged += [agent["agent"] for agent in page]
    assert paged == [agent["agent"] for agent in agents]


@pytest.mark.parametrize("damage", ["missing", "garbage"])
def test_totals_that_cannot_be_trusted_are_summed_for_the_reader(long: World, damage: str) -> None:
    """The reader gets the same numbers, from the session views."""
    before = list(long.views.agents())
    key = long.keyspace.of("long").agent_view("ann")
    long.redis.delete(key)
    if damage == "garbage":
        long.redis.set(key, b"garbage")

    assert list(long.views.agents()) == before
    assert long.views.agent("ann") in before


def test_a_quarantined_session_says_so(long: World) -> None:
    """It is listed with the code and the first bad seq; the others with null."""
    long.redis.xdel(long.keyspace.of("s-1").log("s-1"), "3-1")
    (left,) = long.recover()

    shown = {view["session"]: view["quarantined"] for view in long.views.sessions()}

    assert left.code == "TAIL_LOST"
    assert shown.pop("s-1") == {"code": "TAIL_LOST", "first_bad_seq": 3}
    assert set(shown.values()) == {None}
    assert long.views.session("s-1")["seq"] == 2
    assert long.views.session_at("s-1", 2)["quarantined"] == {"code": "TAIL_LOST", "first_bad_seq": 3}


def test_an_unreadable_commit_hides_nothing_before_it(world: World) -> None:
    """A session with a poison event is shown at its last good commit, at every seq up to there."""
    world.log.append("s", did("start"))
    foreign_append(world.store, "s", ".", b"\xc1")

    assert world.views.session("s")["seq"] == 1
    assert world.views.session_at("s", 1)["seq"] == 1
    assert raised_code(lambda: world.views.session_at("s", 2)) == "EVENT_UNREADABLE"


# -- reading one's own writes ----------------------------------------------------------------------------------------


def test_a_reader_with_a_receipt_waits_for_its_commit(world: World) -> None:
    """It gets a view that holds the commit, or is told that the view is behind."""
    receipt = world.log.append("s", did("broke"))

    with pytest.raises(DeadlineExceeded, match="BEHIND"):
        world.views.session("s", at_least=receipt, wait_s=0)
    world.project()

    assert world.views.session("s", at_least=receipt, wait_s=0)["state"] == "broken"
    world.log.append("s", did("test_pass"))
    world.project()
    assert world.views.session("s", at_least=receipt, wait_s=0)["seq"] == 2


def test_a_reader_with_a_receipt_of_what_is_lost_is_told(world: World) -> None:
    """Waiting for it would be for ever: the log ends before it, or holds another commit there."""
    receipt = world.log.append("s", did("broke"))
    world.project()
    beyond = structs.replace(receipt, last_seq=9)
    other = structs.replace(receipt, digest="0" * 20)

    assert raised_code(lambda: world.views.session("s", at_least=beyond)) == "TAIL_LOST"
    assert raised_code(lambda: world.views.session("s", at_least=other)) == "FORK"


def test_a_reader_with_a_receipt_of_what_is_spooled_is_told(world: World) -> None:
    """Its commit is in no log yet: it is neither lost, nor in a view that happens to stand far enough."""
    receipt = world.log.append("s", did("broke"))
    world.project()
    for spooled in (0, 1, 9):
        waiting = structs.replace(receipt, first_seq=spooled, last_seq=spooled, digest=None, durability=SPOOLED)
        assert raised_code(lambda waiting=waiting: world.views.session("s", at_least=waiting)) == "SPOOL_WAITS"  # type: ignore[misc]


def test_a_head_that_is_damaged_is_no_lost_tail(world: World) -> None:
    """The log holds the commit: a reader with its receipt gets the view."""
    receipt = world.log.append("s", did("broke"))
    world.project()
    world.store.client.set(world.store.keyspace.of("s").head("s"), "no head")

    assert world.views.session("s", at_least=receipt, wait_s=0)["seq"] == 1
