"""A session that idles is warned, then expires; whatever comes, or whoever is there, keeps it open; nothing is lost."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import pytest

from domain import Append, Event
from domain.codec import chain, encode_body, genesis
from domain.log.keys import Keyspace
from tests.conftest import ENVIRONMENT, Store
from tests.projections.world import World, did, foreign_append, run_cli
from tests.waiting import wait_until
from workers.child_process import start_child
from workers.expiry import Expiry
from workers.leasing import living_workers
from workers.patience import Patience
from workers.settings import SessionSettings
from workers.vigil import Vigil

MINUTE = 60_000


class Watching:
    """A process that has sessions expire, on a store whose clock it says itself: so many minutes from now."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.vigil = Vigil()
        self._expiry = Expiry(world.log, world.projections, idle_s=1800, grace_s=180)
        self._began = world.projections.server_ms()

    def look(self, minutes: float, *, watched: bool = True) -> tuple[int, int]:
        """Warns and ends what is due then; the views follow. Without `watched`, the process has just begun."""
        now = self._began + int(minutes * MINUTE)
        partitions = range(self.world.keyspace.count)
        self.vigil.since = dict.fromkeys(partitions, now - 3_600_000 if watched else now)
        done = self._expiry.look(now, self.vigil)
        self.world.project()
        return done


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    world = World(make_store(server_url, partitions=2))
    world.log.append("s", [did("start", "ann"), did("modified", "ann")])
    world.project()
    return world


def said(world: World, session: str = "s") -> list[tuple[str, str]]:
    return [(event.type, event.actor) for commit in world.log.read(session) for event in commit.events]


def test_who_idles_is_warned_then_expires_and_a_start_reopens(world: World) -> None:
    """Half an hour, then three minutes; each said once; views, indexes and the second reading say the same."""
    watching = Watching(world)
    before = world.views.session("s")
    assert watching.look(29) == (0, 0)
    assert watching.look(30.1) == (1, 0)
    assert watching.look(31) == (0, 0)
    shown = world.views.session("s")
    assert (shown["state"], shown["expires_at"] is not None) == ("working", True)
    assert watching.look(33) == (0, 0)
    assert watching.look(33.2) == (0, 1)
    assert watching.look(99) == (0, 0)

    assert said(world)[2:] == [("muster.expiring", "muster"), ("expired", "muster")]
    assert world.views.session("s")["state"] == "expired"
    assert world.views.session("s")["agents"] == before["agents"]
    assert world.verify() == []
    world.log.append("s", did("start", "ann"))
    world.project()
    assert (world.views.session("s")["state"], world.views.session("s")["expires_at"]) == ("working", None)
    assert world.verify() == []


def test_whatever_comes_after_the_warning_keeps_it_open(world: World) -> None:
    """Also what the views do not know yet."""
    watching = Watching(world)
    assert watching.look(31) == (1, 0)
    world.log.append("s", did("tool.called", "ann"))
    assert watching.look(40) == (0, 0)
    assert world.views.session("s")["expires_at"] is None
    assert said(world)[2:] == [("muster.expiring", "muster"), ("tool.called", "ann")]


@pytest.mark.parametrize("policy", ["strict", "leased"])
def test_what_muster_states_needs_nobodys_leave(world: World, policy: Any) -> None:
    world.log.set_policy("s", policy)
    watching = Watching(world)
    assert (watching.look(31), watching.look(35)) == ((1, 0), (0, 1))


def test_a_session_idles_as_long_as_it_says(world: World) -> None:
    """By its last `extended`, counted from whatever came last."""
    world.log.append("s", Event.of("extended", actor="ann", data={"ttl_s": 7200}))
    world.project()
    watching = Watching(world)
    assert world.views.session("s")["ttl_s"] == 7200
    assert watching.look(119) == (0, 0)
    world.redis.zadd(world.keyspace.of("s").until_index, {"s": 1})  # a damaged index only proposes
    assert watching.look(31) == (0, 0)
    assert (watching.look(120.1), watching.look(124)) == ((1, 0), (0, 1))


def test_a_session_in_which_an_agent_gives_signs_of_life_does_not_idle(world: World) -> None:
    watching = Watching(world)
    world.log.heartbeat("s", "ann", silent_after_s=86_400)
    assert watching.look(31) == (0, 0)
    world.log.heartbeat("s", "ann", silent_after_s=0)
    assert watching.look(31) == (1, 0)
    world.log.heartbeat("s", "ann", silent_after_s=86_400)
    assert watching.look(35) == (0, 0)


@pytest.mark.parametrize("last", ["completed", "expired"])
def test_what_has_ended_does_not_end_again(world: World, last: str) -> None:
    world.log.append("s", did(last, "ann"))
    world.project()
    assert Watching(world).look(10_000) == (0, 0)
    assert world.verify() == []


def test_who_was_not_watched_is_warned_and_does_not_expire_before_the_grace(world: World) -> None:
    """The server was away for an hour, its clock jumped, or the process has just begun."""
    watching = Watching(world)
    assert watching.look(31) == (1, 0)
    assert watching.look(1000, watched=False) == (0, 0)
    assert watching.look(1001) == (0, 1)


def test_where_many_would_end_at_once_none_does_until_an_operator_says_so(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Few may: a store of three sessions is no alarm. What is warned is not braked."""
    for number in range(30):
        world.log.append(f"many-{number}", did("start", "ann"))
    world.project()
    watching = Watching(world)
    assert watching.look(31) == (31, 0)
    with caplog.at_level(logging.ERROR):
        assert watching.look(35) == (0, 0)
        assert watching.look(36) == (0, 0)
    assert len([record for record in caplog.records if "would expire at once" in record.message]) == 1

    assert run_cli(world, "session", "expire").row["expired"] == 0  # by the server's own clock nothing is due
    for keys in world.keyspace.partitions:
        for session in world.redis.zrange(keys.expiring_index, 0, -1):
            world.redis.zadd(keys.expiring_index, {session: 1})
    planned = run_cli(world, "session", "expire", "--dry-run")
    assert (planned.row["due"], planned.row["expired"]) == (31, 0)
    assert run_cli(world, "session", "expire").row == {"schema": "muster.expiry/1", "due": 31, "expired": 31}


def test_workers_warn_who_idles(server_url: str, make_store: Callable[..., Store]) -> None:
    """With real workers, on a session whose last event came an hour ago."""
    store = make_store(server_url, partitions=1)
    world = World(store)
    hour_ago = world.projections.server_ms() - 3_600_000
    copy_into(world, "old", hour_ago)
    world.log.append("new", did("start", "ann"))
    with world.workers(1):
        wait_until(lambda: said(world, "old")[1:], message="the old one is warned")
    assert said(world, "old") == [("start", "ann"), ("muster.expiring", "muster")]
    assert said(world, "new") == [("start", "ann")]


def test_a_wrong_setting_of_one_host_ends_no_session_that_another_would_wait_for(
    server_url: str, make_store: Callable[..., Store]
) -> None:
    """Whichever of them holds the partition; and where one is told that none expires, none does. Alone it goes by its
    own.
    """
    store = make_store(server_url, partitions=2)
    world = World(store)
    now = world.projections.server_ms()
    for partition in range(2):
        for session, ago_ms in (("hours", 3_600_000), ("minutes", 600_000)):
            copy_into(world, named(world, session, partition), now - ago_ms)
    hasty, patient = {"MUSTER_SESSIONS__IDLE_S": "60"}, {"MUSTER_SESSIONS__IDLE_S": "1800"}
    with started(world, patient), started(world, hasty):
        for partition in range(2):
            wait_until(partial(is_warned, world, "hours", partition), message="what idles for all of them is warned")
        assert [is_warned(world, "minutes", partition) for partition in range(2)] == [False, False]
    with started(world, hasty):
        for partition in range(2):
            wait_until(partial(is_warned, world, "minutes", partition), message="by its own word it is warned")


def test_the_most_patient_word_holds() -> None:
    own = Patience(60, 180)
    others = [{"idle_s": "1800", "grace_s": "60"}, {"host": "of an older release"}, {"idle_s": "x", "grace_s": ""}]
    assert own.with_that_of(others) == Patience(1800, 180)
    assert own.with_that_of([*others, Patience.of(SessionSettings(expire=False)).told]).idle_s == math.inf


def is_warned(world: World, prefix: str, partition: int) -> bool:
    return len(said(world, named(world, prefix, partition))) > 1


def named(world: World, prefix: str, partition: int) -> str:
    """A session of a partition."""
    names = (f"{prefix}-{number}" for number in count())
    return next(name for name in names if world.keyspace.partition_of(name) == partition)


@contextmanager
def started(world: World, settings: dict[str, str]) -> Iterator[None]:
    """A worker process with settings of its own, from when it gives signs of life on."""
    before = len(living_workers(world.redis, world.keyspace))
    environ = world.environ(lease_ttl_ms=60_000, beat_ms=500)  # nobody overlooks the other for being slow
    child = start_child([sys.executable, "-m", "workers.process"], env=environ | settings)
    try:
        wait_until(lambda: len(living_workers(world.redis, world.keyspace)) > before, message="the worker lives")
        yield
    finally:
        child.terminate()
        child.wait()


def copy_into(world: World, session: str, at_ms: int) -> None:
    """A session with one commit of another time, as a restored store has."""
    keys = Keyspace(ENVIRONMENT, world.store.namespace, world.keyspace.count).of(session)
    body = encode_body([did("start", "ann")])
    digest = chain(genesis(session), session, 1, 1, at_ms, body)
    world.redis.xadd(keys.log(session), {"t": at_ms, "d": digest, "b": body}, id="1-1")
    world.redis.set(keys.head(session), f"1 {digest} o {at_ms} -")
    world.redis.zadd(keys.sessions, {session: 0})
    world.redis.hincrby(keys.meta, "total", 1)


def test_a_warning_in_a_commit_of_a_foreign_producer_is_read_alike_by_both_readings(world: World) -> None:
    """What came before the warning does not lift it, what comes after it does: event by event, also within a commit."""
    warning = b'{"type":"muster.expiring","id":"w","actor":"muster","data":{"expires_at_ms":4102444800000}}'
    other = b'{"type":"tool.called","id":"t","actor":"ann"}'
    foreign_append(world.store, "before", "..", b"[" + other + b"," + warning + b"]")
    foreign_append(world.store, "after", "..", b"[" + warning + b"," + other + b"]")
    world.project()
    told = {session: world.views.session(session)["expires_at"] for session in ("before", "after")}
    assert told == {"before": "2100-01-01T00:00:00.000Z", "after": None}
    assert world.verify() == []


def test_a_session_that_was_moved_does_not_expire_where_it_was(world: World) -> None:
    """Nothing is stated of it, it counts for nothing, and it holds up none that idles here: however many were moved."""
    names = sorted((f"m-{number}" for number in range(600)), key=world.keyspace.partition_of)
    world.log.append_many([Append(name, (did("start", "ann"),)) for name in names])
    world.project()
    for name in names:
        keys, identity = world.keyspace.of(name), world.log.identity
        seal = [identity.store, identity.epoch, name, "task", "by", "to", "redis://there:1/0 prod:main 7"]
        keys_of = [keys.meta, keys.log(name), keys.head(name), keys.hold(name)]
        assert world.redis.fcall("muster_seal_1", 4, *keys_of, *seal)[0] == b"SEALED"
    world.log.append("late", did("start", "ann"))
    world.project()
    watching = Watching(world)

    assert watching.look(31) == (2, 0)
    assert watching.look(35) == (0, 2)

    assert [said(world, name)[-1][0] for name in ("s", "late")] == ["expired", "expired"]
    assert {said(world, name)[-1][0] for name in names} == {"start"}
