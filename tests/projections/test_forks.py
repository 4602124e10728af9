"""Forks in the views: a session like any, that says where it comes from, and goes on beside its parent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from domain import Append, Damaged, Event
from domain.codec import encode_body
from domain.log.forking import plan_flow
from domain.log.protocol import CALL_COMMITS
from projections import session_view
from projections.forks import compared
from projections.queries import state_at
from tests.domain.log.logs import broken_off, refused
from tests.domain.log.subscribing.deliveries import rest, seqs
from tests.projections import test_drift as damages
from tests.projections.test_drift import built
from tests.projections.test_time_travel import real_histories
from tests.projections.world import World, did, foreign_append, notes, only, raised_code, run_cli
from workers.recovery import Recovery

__all__ = ["built"]

#: What a fork's state has of its own.
OWN = ("session", "digest", "started_at", "last_at", "forked_from")


@pytest.fixture
def parent(world: World) -> World:
    """A session `s` of five commits, handed off at its end, and projected."""
    world.log.append("s", did("start", "ann"))
    world.log.append("s", [did("modified", "ann", entities=["a.py"]), did("broke", "bob")])
    world.log.append("s", did("test_pass", "ann"))
    world.log.append("s", did("modified", "eve", entities=["b.py"]))
    world.log.append("s", did("handoff", "ann"))
    world.project()
    return world


def without(document: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}


def test_a_fork_is_shown_with_where_it_comes_from(parent: World) -> None:
    """Projected or not, its state up to the split is its parent's; from its mark on it says whose."""
    digest = parent.views.session_at("s", 4)["digest"]
    parent.log.fork("s", 4, "t")

    for _ in range(2):
        for seq in range(1, 5):
            then = parent.views.session_at("t", seq)
            assert without(then, *OWN) == without(parent.views.session_at("s", seq), *OWN)
            assert then["forked_from"] is None
        now = parent.views.session("t")
        assert now["forked_from"] == {"session": "s", "seq": 4, "digest": digest}
        assert (now["seq"], now["state"], now["last_type"]) == (5, "working", "muster.forked")
        assert "muster" not in now["agents"]
        assert parent.views.session("s")["forked_from"] is None
        parent.project()


def test_both_go_on_and_both_verify(parent: World) -> None:
    """After each went its own way, also by forks of forks, nothing is found; a rebuild gives the same views."""
    parent.log.fork("s", 6, "t")
    parent.log.append_many([Append("s", notes(60)), Append("t", (did("joined", "zoe"),)), Append("t", notes(70))])
    parent.project()
    parent.log.fork("t", 7, "u")
    parent.log.append("u", did("broke", "zoe"))
    parent.project()

    assert parent.codes() == []
    parent.assert_views_are_folds()
    before = parent.derived()
    Recovery(parent.projections, parent.log, who="test", progress=lambda _: None).rebuild(range(4))
    assert parent.derived() == before
    assert parent.views.session("u")["forked_from"]["session"] == "t"
    assert parent.views.session("s")["seq"] == 66


def test_what_each_did_since_is_told(parent: World) -> None:
    """Where they split, that the fork is a copy up to there, and the difference of each to how it stood then."""
    parent.log.fork("s", 4, "t")
    parent.log.append("t", [did("broke", "zoe"), did("left", "zoe")])

    found = compared(parent.views, parent.log, "t")

    assert (found.parent, found.seq, found.is_copy) == ("s", 4, True)
    assert (found.fork.events, found.parents.events) == (2, 2)
    forks = {change.field: (change.before, change.after) for change in found.fork.changes}
    parents = {change.field: (change.before, change.after) for change in found.parents.changes}
    assert forks["state"] == ("working", "broken")
    assert forks["agents.zoe"][1]["events"] == 2
    assert parents["state"] == ("working", "coordinating")
    assert parents["entities.b.py"] == (False, True)
    assert raised_code(lambda: compared(parent.views, parent.log, "s")) == "NOT_A_FORK"


def test_a_mark_that_lies_is_no_proof(parent: World) -> None:
    """A producer that writes a mark by hand is shown as it says, and found out by comparing; one that is no mark at all
    says nothing. Neither parks its session.
    """
    claimed = {"parent": "s", "seq": 1, "digest": parent.views.session_at("s", 1)["digest"]}
    for name, data in {"liar": claimed, "less": {"parent": "s"}, "more": {"parent": 5, "digest": [1]}}.items():
        parent.log.append(name, did("start", "ann"))
        body = [{"type": "muster.forked", "id": "1", "actor": "muster", "data": data}]
        assert foreign_append(parent.store, name, ".", json.dumps(body).encode())[0] == "APPENDED"
    parent.project()

    assert parent.codes() == []
    assert parent.views.session("liar")["forked_from"] == {**without(claimed, "parent"), "session": "s"}
    assert compared(parent.views, parent.log, "liar").is_copy is False
    assert [parent.views.session(name)["forked_from"] for name in ("less", "more")] == [None, None]


def test_a_copy_that_names_another_digest_is_no_copy(parent: World) -> None:
    """The same events alone prove nothing: what the parent held there has the digest that the mark names."""
    (begun,) = next(parent.log.read("s")).events
    for name, digest in {"true": parent.views.session_at("s", 1)["digest"], "false": "0" * 20}.items():
        parent.log.append(name, begun)
        data = {"parent": "s", "seq": 1, "digest": digest}
        body = [{"type": "muster.forked", "id": "1", "actor": "muster", "data": data}]
        foreign_append(parent.store, name, ".", json.dumps(body).encode())

    assert compared(parent.views, parent.log, "true").is_copy is True
    assert compared(parent.views, parent.log, "false").is_copy is False
    assert run_cli(parent, "session", "diff", "false", "--parent").code == 1


def test_a_fork_that_was_broken_off_is_no_whole_session(world: World) -> None:
    """Until it is finished it is listed as quarantined, and found as such; then it is a session like any."""
    commits = [(did("modified", "ann", entities=[f"f{n}"]),) for n in range(CALL_COMMITS + 5)]
    world.log.append_many([Append("s", commit) for commit in commits])
    broken_off(world.log, world.log.run(plan_flow("s", CALL_COMMITS + 3, "t")))
    world.project()

    shown = world.views.session("t")
    assert shown["quarantined"] == {"code": "FORK_UNFINISHED", "first_bad_seq": CALL_COMMITS + 1}
    assert (shown["seq"], shown["forked_from"]) == (CALL_COMMITS, None)
    assert only(world.verify(), "QUARANTINED").session == "t"
    world.recover()
    assert world.views.session("t")["quarantined"] is not None

    assert run_cli(world, "session", "fork", "s", "--at", str(CALL_COMMITS + 3), "--as", "t").row["created"] is True
    world.log.append("t", did("broke", "zoe"))
    world.project()
    shown = world.views.session("t")
    assert (shown["quarantined"], shown["seq"], shown["state"]) == (None, CALL_COMMITS + 5, "broken")
    assert world.codes() == []


def test_a_fork_that_nobody_will_finish_can_be_given_up(world: World) -> None:
    """As any quarantined session: it goes on after what was copied, and is no fork."""
    world.log.append_many([Append("s", (did("modified", "ann"),)) for _ in range(CALL_COMMITS + 5)])
    broken_off(world.log, world.log.run(plan_flow("s", CALL_COMMITS + 3, "t")))

    assert run_cli(world, "recover", "accept", "t", "--why", "changed my mind").code == 0

    assert world.log.append("t", did("left", "ann")).last_seq == CALL_COMMITS + 2
    world.project()
    assert (world.views.session("t")["forked_from"], world.codes()) == (None, [])
    assert raised_code(lambda: world.log.fork("s", CALL_COMMITS + 3, "t")) == "SESSION_TAKEN"


def test_a_discarded_commit_is_discarded_in_the_fork_too(world: World) -> None:
    """What an operator passed over stays passed over, and verification knows who said so."""
    world.log.append("s", did("start", "ann"))
    assert foreign_append(world.store, "s", ".", b"no body")[0] == "APPENDED"
    world.project()
    recovery = Recovery(world.projections, world.log, who="recovery:ann", progress=lambda _: None)
    assert recovery.discard({world.keyspace.partition_of("s"): ["s"]}, why="a bug")
    world.log.append("s", did("broke", "bob"))
    world.project()

    world.log.fork("s", 3, "t", who="ann")
    world.log.append("t", did("left", "bob"))
    world.project()

    assert world.views.session("t")["event_types"]["muster.skipped"] == 1
    assert world.codes() == []
    assert compared(world.views, world.log, "t").is_copy


@pytest.mark.parametrize("damage", [damages.gap, damages.altered], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("is_known", [False, True])
def test_only_what_verifies_can_be_forked(built: World, damage: Any, is_known: bool) -> None:
    """Of a damaged session, quarantined or not yet, the prefix that verifies; beyond it nothing is written."""
    damage(built)
    if is_known:
        built.recover()

    error = refused(
        lambda: built.log.fork("s-1", 60, "t"), Damaged, "LOG_GAP" if damage is damages.gap else "LOG_ALTERED"
    )

    assert error.facts["verified_seq"] == 54
    assert built.log.head("t") is None
    ran = run_cli(built, "session", "fork", "s-1", "--at", "54", "--as", "t")
    assert (ran.code, ran.row["parent_quarantined"], "is quarantined" in ran.err) == (0, is_known, is_known)
    assert built.views.session("t")["quarantined"] is None
    state, _ = state_at(built.log, session_view.initial("t"), 54)
    assert state.event_types == built.views.session_at("s-1", 54)["event_types"]


def test_real_sessions_are_forked_and_go_on(world: World) -> None:
    """Of every twentieth real session a fork in its middle: both go on with what the session really did, and verify."""
    told = dict(list(real_histories("rules").items())[::20]) | real_histories("coding_agents")
    for session, events in told.items():
        for event in events:
            world.log.append(session, event)
    world.project()
    now = {session: world.views.session(session) for session in told}
    for session, events in told.items():
        forked = world.log.fork(session, len(events) // 2, f"{session}-fork")
        for event in events[len(events) // 2 :]:
            world.log.append(forked.session, event)
        if now[session]["state"] not in ("completed", "expired"):
            world.log.append(session, did("broke", "zoe"))
    world.project()

    assert world.codes() == []
    for session in told:
        fork = world.views.session(f"{session}-fork")
        for name in ("state", "entities", "first_actor", "last_type", "handed_off_by"):
            assert fork[name] == now[session][name], session
        assert without(fork["event_types"], "muster.forked") == now[session]["event_types"]
        assert compared(world.views, world.log, f"{session}-fork").is_copy


def test_the_command_forks_compares_and_leaves_a_note(parent: World) -> None:
    """`session fork` with a dry run before it, the same again, and `session diff --parent`; the audit stream knows."""
    dry = run_cli(parent, "session", "fork", "s", "--at", "4", "--dry-run")
    assert (dry.code, dry.out) == (0, "")
    assert "would copy 4 of 4 events (3 commits" in dry.err
    assert parent.log.head("s@4") is None

    made = run_cli(parent, "session", "fork", "s", "--at", "4")
    again = run_cli(parent, "session", "fork", "s", "--at", "4")
    parent.log.append("s@4", did("broke", "zoe"))

    assert (made.row["created"], again.row["created"]) == (True, False)
    assert made.row["forked_from"] == again.row["forked_from"] == {
        "session": "s", "seq": 4, "digest": parent.views.session_at("s", 4)["digest"],
    }  # fmt: skip
    assert "copies 0 of 4 events" in again.err
    audit = parent.redis.xrange(parent.keyspace.of("s@4").audit)
    assert [entry[b"what"] for _, entry in audit] == [b"session forked"]
    row = run_cli(parent, "session", "diff", "s@4", "--parent").row
    assert (row["schema"], row["parent"], row["is_copy"]) == ("muster.fork-comparison/1", "s", True)
    assert {"schema": "muster.change/1", "field": "state", "before": "working", "after": "broken"} in row["fork"][
        "changes"
    ]
    table = run_cli(parent, "session", "diff", "s@4", "--parent", output="table")
    assert "s@4 split from s after seq 4; up to there it is a copy of it" in table.out
    for arguments, code in {
        ("fork", "s", "--at", "2"): 9,
        ("fork", "s", "--at", "9"): 4,
        ("fork", "none", "--at", "1"): 4,
        ("fork", "s", "--at", "1", "--as", "s@4"): 6,
        ("fork", "s"): 2,
        ("diff", "s", "--parent"): 4,
        ("diff", "s@4", "--parent", "--to", "3"): 9,
    }.items():
        ran = run_cli(parent, "session", *arguments)
        assert (ran.code, ran.out) == (code, ""), arguments


def test_a_time_says_where_to_fork(parent: World) -> None:
    """`--at` takes a time too: the last commit at or before it, which is always the end of one."""
    last = parent.views.session("s")["last_at"]

    assert run_cli(parent, "session", "fork", "s", "--at", last, "--as", "t").row["forked_from"]["seq"] == 6


def test_a_mark_is_kept_in_an_expired_session(world: World) -> None:
    """A fork of an expired session is an expired session, which verifies, and is opened again by a start."""
    world.log.append("s", [did("start", "ann"), did("expired", "muster-tick")])
    world.log.fork("s", 2, "t")
    world.project()

    assert (world.views.session("t")["state"], world.codes()) == ("expired", [])
    assert world.log.append("t", Event.of("start", actor="bob")).last_seq == 4
    assert len(encode_body(list(world.log.read("t"))[1].events)) > 0


@pytest.mark.parametrize("is_trimmed", [False, True])
def test_subscribers_are_told_of_a_fork_as_of_any_session(world: World, is_trimmed: bool) -> None:
    """Every seq once and in order, by the feed or, where it does not reach back, by registry and logs."""
    world.log.append_many([Append("s", (did("modified", "ann"),)) for _ in range(CALL_COMMITS + 20)])
    with world.log.subscribe(after="now") as subscription:
        assert subscription.get(timeout_s=0) is None
        world.log.append("s", did("broke", "ann"))
        for name in ("t", "u"):
            world.log.fork("s", CALL_COMMITS + 10, name)
        world.log.append("t", did("left", "ann"))
        if is_trimmed:
            for keys in world.keyspace.partitions:
                world.redis.xtrim(keys.feed, maxlen=0)
        told = seqs(rest(subscription))

    assert told == {
        "s": [CALL_COMMITS + 21],
        "t": list(range(1, CALL_COMMITS + 13)),
        "u": list(range(1, CALL_COMMITS + 12)),
    }
