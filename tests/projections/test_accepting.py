"""Accepting that a damaged log lost its end: nothing is destroyed, everybody is told, and the session goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from domain import Append, Conflict, Damaged, NotFound
from projections import accepting
from projections.accepting import Accepted, accept
from projections.scrub import Scrub
from tests.conftest import Store
from tests.domain.log.logs import refused
from tests.projections import test_drift as damages
from tests.projections.test_drift import built
from tests.projections.world import World, did, folded, lying_append, run_cli

__all__ = ["built"]
WHY = "the disk of Monday, ticket 9"


def accepted(world: World, session: str = "s-1") -> Accepted:
    """Quarantined by recovery, accepted, and projected."""
    world.recover()
    done = accept(world.projections, world.log, session, who="ann", why=WHY)
    world.project()
    return done


@pytest.mark.parametrize(
    ("damage", "prefix", "given_up"),
    [
        (damages.gap, 54, 5),
        (damages.altered, 54, 6),
        (damages.tail_lost, 58, 0),
        (damages.trimmed, 0, 5),
        (damages.all_lost, 0, 0),
        (damages.written_by_hand, 60, 1),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_session_goes_on_after_what_verifies(
    built: World, damage: Callable[[World], None], prefix: int, given_up: int
) -> None:
    """Whatever the damage: the prefix, then the event that says so, then what is appended next; nothing is found."""
    damage(built)
    state = "working"

    done = accepted(built)

    assert (done.prefix, done.given_up, done.seq) == (prefix, given_up, prefix + 1)
    (event,) = next(built.store.open().read("s-1", after=prefix)).events
    assert (event.type, event.actor) == ("muster.log_repaired", "muster")
    assert event.payload()["why"] == WHY
    assert event.payload()["given_up_to"] >= prefix
    fresh = built.store.open()
    assert fresh.append("s-1", did("modified", "zoe")).first_seq == prefix + 2
    built.project()
    assert built.verify() == []
    view = built.views.session("s-1")
    assert (view["seq"], view["state"], view["quarantined"]) == (prefix + 2, state, None)
    assert "muster" not in view["agents"]
    built.assert_views_are_folds()
    assert [one for part in range(4) for one in Scrub(built.projections, built.log, part).round(10**6)] == []


def test_what_is_given_up_is_kept_aside_and_told_in_the_audit(built: World) -> None:
    """The log as it was, to the byte."""
    damages.altered(built)
    keys = built.keyspace.of("s-1")
    before = built.redis.xrange(keys.log("s-1"))

    done = accepted(built)

    assert done.aside is not None
    assert built.redis.xrange(done.aside) == before
    assert built.redis.xrange(keys.log("s-1"))[:5] == before[:5]
    (told,) = [entry for _, entry in built.redis.xrange(keys.audit) if entry[b"what"] == b"log repaired"]
    assert (told[b"who"], told[b"session"], told[b"why"]) == (b"ann", b"s-1", WHY.encode())
    assert (told[b"aside"], told[b"digest"]) == (done.aside.encode(), (done.digest or "").encode())


def test_whoever_knows_of_a_commit_that_was_given_up_is_told(built: World) -> None:
    """He is refused and the loss is named, until it is accepted for all who know: muster epoch accept."""
    receipt = built.log.append("s-1", did("modified", "zoe"))
    built.project()
    damages.gap(built)
    done = accepted(built)

    error = refused(lambda: built.log.append("s-1", did("modified", "zoe")), Damaged, "FORK")

    assert error.facts["first_bad_seq"] <= receipt.first_seq
    assert run_cli(built, "epoch", "show").code == 1
    assert run_cli(built, "epoch", "accept").code == 0
    assert built.log.append("s-1", did("modified", "zoe")).first_seq == (done.seq or 0) + 1


def test_a_quarantine_whose_log_is_whole_again_is_lifted(built: World) -> None:
    """Nothing is given up; that it was quarantined stays in the log."""
    damages.quarantined(built)
    assert built.codes() == ["QUARANTINED"]

    done = accepted(built)

    assert (done.prefix, done.given_up, done.seq, done.code) == (60, 0, 61, None)
    assert built.verify() == []


@pytest.mark.parametrize("last", ["completed", "expired", "handoff"])
def test_no_state_is_changed_by_it(built: World, last: str) -> None:
    """Not even of a session that had ended, or waits for an agent; the gate is as it was."""
    built.log.append("s-1", did(last, "zoe"))
    built.project()
    before = built.views.session("s-1")
    built.projections.quarantine("s-1", "LOG_GAP", 62)

    accepted(built)

    after = built.views.session("s-1")
    assert (after["state"], after["agents"], after["handed_off_by"]) == (
        before["state"],
        before["agents"],
        before["handed_off_by"],
    )
    head, view = built.log.head("s-1"), folded(built.log, "s-1")
    assert head is not None
    assert (head.gate, head.seq) == (view.gate, 62)
    assert built.verify() == []


def test_a_prefix_of_many_commits_is_kept_whole(built: World) -> None:
    """However many pages of the log it takes; a session that lost its place in the registry is listed again."""
    for _ in range(13):
        built.log.append_many([Append("s-2", (did("modified", "zoe"),)) for _ in range(100)])
    built.project()
    keys = built.keyspace.of("s-2")
    before = built.redis.xrange(keys.log("s-2"))
    built.redis.xdel(keys.log("s-2"), "1301-1")
    built.recover()
    built.redis.zrem(keys.sessions, "s-2")

    done = accepted(built, "s-2")

    assert (done.prefix, done.given_up) == (1300, 2)
    assert built.redis.xrange(keys.log("s-2"))[:-1] == before[:1300]
    assert built.redis.hmget(keys.hold("s-2"), "code", "first_bad_seq") == [None, None]
    assert built.verify() == []


@pytest.mark.parametrize("wrong", ["digest", "last entry", "not quarantined", "keys", "genesis"])
def test_the_function_takes_nothing_but_what_it_finds(built: World, wrong: str) -> None:
    """Whoever calls it: what does not fit the log as it stands is refused, and nothing is written."""
    if wrong != "not quarantined":
        built.projections.quarantine("s-1", "LOG_GAP", 55)
    keys, view = built.keyspace.of("s-1"), folded(built.log, "s-1", 54)
    (last,) = [entry for entry, _ in built.redis.xrevrange(keys.log("s-1"), count=1)]
    names = [keys.meta, keys.sessions, keys.feed, keys.log("s-1"), keys.head("s-1"), keys.hold("s-1")]
    names += [keys.lost, keys.audit, keys.damaged(1, "s-1")]
    if wrong == "keys":
        names[4] = keys.head("s-2")
    digest = "0" * 20 if wrong in ("digest", "genesis") else view.digest
    stands = ["59-1" if wrong == "last entry" else last, 0 if wrong == "genesis" else 54, digest, "o"]
    identity = built.log.identity
    before = built.store.snapshot()

    arguments = [identity.store, identity.epoch, "s-1", *stands, b"[]", "ann", WHY]
    try:
        (word,) = built.redis.fcall("muster_repair_1", 9, *names, *arguments)
    except redis.ResponseError as refusal:
        word = str(refusal).split()[0].encode()

    assert word == (b"ARGUMENTS_INVALID" if wrong in ("keys", "genesis") else b"MOVED")
    assert built.store.snapshot() == before


def test_only_what_is_quarantined_and_stands_still_is_accepted(built: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything else is refused before anything is written."""
    before = built.store.snapshot()
    refused(lambda: accept(built.projections, built.log, "s-2", who="ann", why=WHY), NotFound, "NOT_QUARANTINED")
    assert built.store.snapshot() == before

    damages.gap(built)
    built.recover()
    fcall = built.log.client.fcall

    def late(*arguments: Any) -> Any:
        """Somebody writes by hand between the reading and the repair."""
        monkeypatch.undo()
        last = built.redis.xrevrange(built.keyspace.of("s-1").log("s-1"), count=1)[0][0]
        built.redis.xdel(built.keyspace.of("s-1").log("s-1"), last)
        return fcall(*arguments)

    monkeypatch.setattr(built.log.client, "fcall", late)
    monkeypatch.setattr(accepting, "ATTEMPTS", 1)
    refused(lambda: accept(built.projections, built.log, "s-1", who="ann", why=WHY), Conflict, "LOG_MOVED")
    assert [one.quarantined for one in built.verify()] == [True]


def test_a_session_keeps_its_policy(built: World) -> None:
    """What the head said beside the quarantine is said still."""
    built.log.set_policy("s-1", "strict")
    damages.gap(built)
    accepted(built)
    head = built.log.head("s-1")
    assert head is not None
    assert head.flags == "s"


def test_nobody_can_append_such_an_event_himself(built: World) -> None:
    """A foreign producer that states the kind is refused; one that lies about it parks its session."""
    assert lying_append(built.store, "s-2", did("modified"), "r")[:2] == ["REFUSED", "GATE_REFUSED"]


def test_accept_by_command(server_url: str, make_store: Callable[..., Store]) -> None:
    """With a dry run, a reason that is given, and the codes of what is refused."""
    world = World(make_store(server_url, partitions=4))
    world.sessions(12)
    world.project()
    world.redis.xdel(world.keyspace.of("s-1").log("s-1"), "2-1")
    assert run_cli(world, "recover", "accept", "s-1", "--why", WHY).code == 4
    assert run_cli(world, "recover", "apply").code == 7
    before = world.store.snapshot()
    dry = run_cli(world, "recover", "accept", "s-1", "--why", WHY, "--dry-run")
    assert (dry.code, dry.row["prefix"], dry.row["given_up"], dry.row["seq"]) == (0, 1, 1, None)
    assert world.store.snapshot() == before
    assert run_cli(world, "recover", "accept", "s-1", "--why", " ").code == 9
    assert run_cli(world, "recover", "accept", "nobody", "--why", WHY).code == 4

    done = run_cli(world, "recover", "accept", "s-1", "--why", WHY)

    assert (done.code, done.row["seq"]) == (0, 2)
    world.project()
    assert world.verify() == []
    assert run_cli(world, "recover", "accept", "s-1", "--why", WHY).code == 4
