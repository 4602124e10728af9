"""A migration that dies at any step: killed itself, or one of the servers, or the way there, at every request it sends.

At that moment at most one side takes appends, whatever happened; and afterwards it is gone on with, or rolled back, to
where every acknowledged event is there once, in one place. Both sides are appended to all the while. And a durable
subscription is given every event, on whichever side, and none again that was acknowledged.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event as Flag
from threading import Lock, Thread
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import redis

from domain import Conflict, Delivery, Event, MusterError, Receipt, SessionLog
from domain.log import Connecting
from domain.log.subscribing.durable import DurableSubscriptions
from domain.log.subscribing.member import DurableSubscription
from tests.chaos.effort import FULL, seeded
from tests.chaos.migrator import migrate
from tests.chaos.proxy import Fault, Moment, Proxy, Strike
from tests.conftest import ENVIRONMENT, Servers, Store
from tests.domain.log.subscribing.deliveries import everything, rest, some
from tests.domain.log.subscribing.member_processes import is_acknowledged
from tests.waiting import wait_until
from tests.workers.migration.scene import Scene, fill
from workers.child_process import ChildProcess, start_child
from workers.embedded import EmbeddedServer
from workers.migration.record import Migrations

SESSIONS: Final = ("s-0", "s-1", "s-2")
PATIENCE_S: Final = 120
#: More requests than a migration of these sessions sends.
ENOUGH: Final = 200


class Steps:
    """The requests of a migration, to both servers, counted; at one of them something is done."""

    def __init__(self, strike_at: int | None, moment: Moment, act: Callable[[], None], *, is_sender: bool) -> None:
        self.sent = 0
        self.struck = False
        self._strike_at = strike_at
        self._strike = Strike(moment, act)
        self._is_sender = is_sender
        self._lock = Lock()

    def what_befalls(self) -> tuple[Fault, Strike | None]:
        with self._lock:
            self.sent += 1
            if self.struck or self.sent != self._strike_at:
                return Fault.NONE, None
            self.struck = True
        # Who dies before his request arrived has not sent it.
        is_lost = self._strike.moment is Moment.ARRIVING and self._is_sender
        return (Fault.REQUEST_LOST if is_lost else Fault.NONE), self._strike


class StepProxy(Proxy):
    """The way to one of the servers."""

    def __init__(self, url: str, steps: Steps) -> None:
        self._steps = steps
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        super().__init__(address.hostname, address.port)

    def _what_befalls(self, request: bytes) -> tuple[Fault, Strike | None]:
        return self._steps.what_befalls()


class Writers:
    """Producers on both sides, who append as long as they are let, and keep every receipt."""

    def __init__(self, scene: Scene) -> None:
        self.receipts: list[Receipt] = []
        self._scene = scene
        self._stopping = Flag()
        self._threads = [Thread(target=self._append, args=(store,)) for store in (scene.source, scene.target)]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _append(self, store: Store) -> None:
        connecting = Connecting(store.url, retry_for_s=0)
        while not self._stopping.is_set():
            with (
                suppress(MusterError, redis.RedisError),  # the server is away
                SessionLog.open(connecting, environment=ENVIRONMENT, namespace=store.namespace) as log,
            ):
                self._append_to(log)

    def _append_to(self, log: SessionLog) -> None:
        number = 0
        while not self._stopping.wait(0.001):
            number += 1
            session = SESSIONS[number % len(SESSIONS)]
            head = log.head(session)
            # A session that is not here yet is not begun here: only what was moved is gone on with.
            if head is not None and head.seq:
                with suppress(Conflict):
                    self.receipts.append(log.append(session, Event.of("modified", actor="ann"), expected=head.seq))


class Audit:
    """A durable subscription of the source: what its members were given, on either side, and acknowledged."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._done: list[tuple[str, int]] = []
        with scene.source.open() as log, log.subscribe_as("audit", after="beginning") as member:
            self._take(member, some(member, 7))

    def go_on(self, *, to_the_end: bool) -> None:
        """With what there is on both sides: a few events, or all."""
        for store in (self._scene.source, self._scene.target):
            log = store.open()
            if "audit" in log.drive(DurableSubscriptions(log.keyspace).names()):
                with suppress(Conflict), log.subscribe_as("audit") as member:
                    self._take(member, [one for one in [member.get(timeout_s=0.05)] if one is not None])
                    if to_the_end:
                        wait_until(lambda log=log, member=member: self._is_done(log, member))  # type: ignore[misc]

    def _is_done(self, log: SessionLog, member: DurableSubscription) -> bool:
        self._take(member, rest(member))
        return len(member.partitions) == log.keyspace.count and is_acknowledged(log, "audit")

    def _take(self, member: DurableSubscription, found: list[Delivery]) -> None:
        member.ack()
        self._done += [(one.session, one.seq) for one in found]

    def assert_complete(self, *, moved: bool) -> None:
        """Every event, once."""
        self.go_on(to_the_end=True)
        log = (self._scene.target if moved else self._scene.source).open()
        expected = [(session, seq) for session, seqs in everything(log).items() for seq in seqs]
        assert sorted(self._done) == sorted(expected)


def is_open(log: SessionLog, session: str) -> bool:
    head = log.head(session)
    return head is not None and head.seq > 0 and not head.is_elsewhere


def assert_one_writer(scene: Scene) -> None:
    """No session takes appends on both sides."""
    source, target = scene.source.open(), scene.target.open()
    assert [one for one in SESSIONS if is_open(source, one) and is_open(target, one)] == []


def assert_nothing_lost(scene: Scene, receipts: list[Receipt], moved: bool) -> None:
    """Every acknowledged event is there once, where the session is open; and it is open in one place."""
    source, target = scene.source.open(), scene.target.open()
    here, there = (target, source) if moved else (source, target)
    for session in SESSIONS:
        assert is_open(here, session)
        assert not is_open(there, session)
        held = {commit.last_seq: commit.digest for commit in here.read(session)}
        ids = [event.id for commit in here.read(session) for event in commit.events]
        assert len(ids) == len(set(ids))
        lost = [one for one in receipts if one.session == session and held.get(one.last_seq) != one.digest]
        assert lost == []


def finish(scene: Scene, task: str, what: str) -> None:
    """Somebody else goes on: the dead one's lease has run out."""
    scene.target.client.delete(scene.target.keyspace.task_owner(task))
    with scene.ends() as ends:
        migrate(ends, task, what)
        if what == "move":
            work = scene.moving(ends, Migrations(ends.target.store).get(task))
            with work.phase("moved", "moved"):
                assert work.verify().problems == []


def points(total: int = ENOUGH) -> Iterator[tuple[int, Moment]]:
    """At which requests something is done; all of them where there is time."""
    if FULL:
        yield from ((number, moment) for number in range(1, total) for moment in (Moment.ARRIVING, Moment.ANSWERED))
        return
    chance = seeded()
    for low in range(1, 50, 7):
        yield chance.randrange(low, low + 7), chance.choice((Moment.ARRIVING, Moment.ANSWERED))


def begun(scene: Scene, what: str) -> tuple[str, Audit]:
    """A migration that is to be carried out; or one that was, and is to be rolled back."""
    fill(scene.source.open(), SESSIONS)
    audit = Audit(scene)
    with scene.ends() as ends:
        task = scene.begun(ends).id
        if what == "rollback":
            migrate(ends, task, "move")
            audit.go_on(to_the_end=False)
    return task, audit


@pytest.mark.parametrize("what", ["move", "rollback"])
def test_a_killed_migrator_leaves_one_writer_and_is_gone_on_with(
    servers: Servers, make_store: Callable[..., Store], what: str
) -> None:
    """Killed with -9 at every request: another process goes on, or brings everything back."""
    for number, (at, moment) in enumerate(points()):
        scene = Scene(make_store(servers.url("valkey"), partitions=2), make_store(servers.url("redis7"), partitions=3))
        task, audit = begun(scene, what)
        dying: Future[ChildProcess] = Future()

        def kill(dying: Future[ChildProcess] = dying) -> None:
            dying.result().kill()
            dying.result().wait()

        steps = Steps(at, moment, kill, is_sender=True)
        with ways(scene, steps) as (source_url, target_url), Writers(scene) as writers:
            arguments = [source_url, scene.source.namespace, target_url, scene.target.namespace, task, what]
            child = start_child([sys.executable, "-m", "tests.chaos.migrator", ENVIRONMENT, *arguments])
            dying.set_result(child)
            try:
                code = child.wait(PATIENCE_S)
            finally:
                child.kill()
                child.wait()
            assert_one_writer(scene)
        assert code == (-9 if steps.struck else 0)
        audit.go_on(to_the_end=False)
        finally_ = "rollback" if steps.struck and number % 2 else what
        if steps.struck:
            finish(scene, task, finally_)
        assert_nothing_lost(scene, writers.receipts, moved=finally_ == "move")
        audit.assert_complete(moved=finally_ == "move")
        if not steps.struck:
            break


@contextmanager
def ways(scene: Scene, steps: Steps) -> Iterator[tuple[str, str]]:
    """The ways to both servers, past which requests are counted."""
    with ExitStack() as closing:
        found = []
        for store in (scene.source, scene.target):
            proxy = StepProxy(store.url, steps)
            closing.callback(proxy.close)
            found.append(proxy.url)
        yield found[0], found[1]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[dict[str, EmbeddedServer]]:
    """Two servers that may be killed at any moment: what they answered is on disk."""
    with ExitStack() as stopping:
        made = {}
        for side, kind in (("source", "redis7"), ("target", "valkey")):
            made[side] = stopping.enter_context(Servers.make(kind, tmp_path / side, appendfsync="always"))
        yield made


@pytest.mark.parametrize("what", ["move", "rollback"])
@pytest.mark.parametrize("dies", ["source", "target", "the way there"])
def test_a_server_or_the_way_there_that_dies_leaves_one_writer(
    pair: dict[str, EmbeddedServer], make_store: Callable[..., Store], dies: str, what: str
) -> None:
    """Killed with -9, or cut off, at every request: the migration ends with an error, and is gone on with later."""
    for number, (at, moment) in enumerate(points()):
        scene = Scene(make_store(pair["source"].url, partitions=2), make_store(pair["target"].url, partitions=3))
        task, audit = begun(scene, what)
        cuts: list[Any] = []

        def strike(cuts: list[Any] = cuts) -> None:
            if dies in pair:
                pair[dies].kill()
            for proxy in cuts:
                proxy._is_cut = True
                proxy.break_connections()

        steps = Steps(at, moment, strike, is_sender=dies not in pair)
        with Writers(scene) as writers, ExitStack() as closing:
            proxies = [StepProxy(store.url, steps) for store in (scene.source, scene.target)]
            for proxy in proxies:
                closing.callback(proxy.close)
            cuts += proxies if dies not in pair else []
            try:
                with scene.ends(source_url=proxies[0].url, target_url=proxies[1].url, retry_for_s=0) as ends:
                    migrate(ends, task, what)
            except (MusterError, redis.RedisError):
                assert steps.struck
            if dies in pair:
                pair[dies].restart()
            assert_one_writer(scene)
        audit.go_on(to_the_end=False)
        finally_ = "rollback" if steps.struck and number % 2 else what
        if steps.struck:
            state = migration_state(scene, task)
            if state != "rolled back":
                finish(scene, task, finally_ if state != "moved" else "move")
            finally_ = "move" if state == "moved" else finally_
        assert_nothing_lost(scene, writers.receipts, moved=finally_ == "move")
        audit.assert_complete(moved=finally_ == "move")
        if not steps.struck:
            break


def migration_state(scene: Scene, task: str) -> str:
    with scene.ends() as ends:
        return Migrations(ends.target.store).get(task).state
