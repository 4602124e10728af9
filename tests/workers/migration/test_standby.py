"""A standby is equal to its source, readable and closed; where both were written it says so; it can take over."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from domain import Conflict, Damaged, Head, SessionLog, Unavailable
from domain.log import AsyncSessionLog, Connecting, create_store
from domain.log.epoch import Epochs
from domain.log.keys import Keyspace
from tests.chaos.proxy import Proxy, proxied
from tests.conftest import ENVIRONMENT, Servers, Store
from tests.domain.log.logs import Blocking
from tests.domain.log.subscribing.deliveries import everything, rest, some
from tests.domain.log.subscribing.member_processes import is_acknowledged
from tests.projections.world import World
from tests.waiting import wait_until
from tests.workers.migration.scene import Scene, fill, history, note, refused
from workers.child_process import start_child
from workers.cli import main
from workers.migration.record import Migration, Migrations
from workers.migration.syncing import Policy, Synced, Syncing, lag_of
from workers.pacing import Pace

Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def scene(servers: Servers, make_store: Callable[..., Store]) -> Scene:
    """A store and its standby: on two servers, under the same names."""
    source = make_store(servers.url("valkey"), partitions=3)
    standby = make_store(servers.url("redis7"), partitions=5, create=False)
    standby.namespace = source.namespace
    standby.keyspace = Keyspace(ENVIRONMENT, source.namespace, 5)
    create_store(standby.client, environment=ENVIRONMENT, namespace=source.namespace, partitions=5)
    return Scene(source, standby)


def sync(scene: Scene, *, policy: Policy = "manual") -> tuple[Synced, Migration]:
    """One round, of the standby that is there already or of a new one."""
    with scene.ends() as ends:
        migrations = Migrations(ends.target.store)
        migration = next(iter(migrations.all()), None) or scene.begun(ends, kind="sync")
        work = scene.moving(ends, migration)
        with work.phase("syncing", "in sync"):
            syncing = Syncing(
                ends, migration, by=work._token, who="ann", policy=policy,
                pace=Pace(lambda _: None, verb=""), say=lambda _: None,
            )  # fmt: skip
            return syncing.round(), migration


def logs(log: SessionLog) -> dict[str, Any]:
    return {session: history(log, session) for session in log.sessions()}


def test_a_standby_is_equal_readable_and_closed(either_way: Scene) -> None:
    """To the byte; its workers build the same views; and it takes no appends, but says where they go."""
    there, here = World(either_way.source), World(either_way.target)
    there.sessions(10)
    there.log.set_policy("s-1", "strict")
    there.project()

    done, _ = sync(either_way)
    here.project()

    assert (done.sessions, done.events, done.conflicts) == (10, 30, 0)
    assert logs(here.log) == logs(there.log)
    names = [f"s-{number}" for number in range(10)]
    assert here.projections.views(names) == there.projections.views(names)
    assert here.codes() == []
    with pytest.raises(Unavailable, match="SESSION_ARRIVING"):
        here.log.append("s-1", note())


def test_each_round_brings_what_is_new(scene: Scene) -> None:
    """Of the sessions that the feed tells of; of all, where the feed does not reach back."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["a", "b", "c"])
    sync(scene)
    log.append("b", [note(), note()])
    fill(log, ["new"])

    assert sync(scene)[0] == Synced(sessions=2, events=8)
    assert sync(scene)[0] == Synced()
    log.append("a", note())
    for keys in scene.source.keyspace.partitions:
        scene.source.client.xtrim(keys.feed, maxlen=0)
    assert sync(scene)[0].events == 1
    assert logs(target) == logs(log)


def test_the_lag_is_told_in_events_and_seconds(scene: Scene) -> None:
    """By the source's own numbers: none after a round, and as old as the oldest event that waits."""
    log = scene.source.open()
    fill(log, ["a", "b"])
    _, migration = sync(scene)
    with scene.ends() as ends:
        assert lag_of(ends, migration.id).events == 0
        log.append("a", [note(), note()])
        head = log.head("a")
        assert head is not None
        before = ends.source.now_ms()

        behind = lag_of(ends, migration.id)

        assert behind.events == 2
        assert (before - head.at_ms) / 1000 <= behind.seconds <= (ends.source.now_ms() - head.at_ms) / 1000


def apart(scene: Scene) -> None:
    """Session `s` has the same two commits on both sides, then others; session `same` is on both, and behind here."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["s", "same"], commits=2)
    scene.moved()
    with scene.ends() as ends:  # as after a failover whose old side came back
        for end in (ends.source, ends.target):
            for session in ("s", "same"):
                keys = end.keyspace.of(session)
                packed: Any = end.log.client.get(keys.head(session))
                end.log.client.set(keys.head(session), packed.decode().replace(" m", " -"))
                end.log.client.delete(keys.hold(session))
        end.log.client.delete(ends.target.keyspace.migrations)
    log.append("same", note())
    log.append("s", [note("ann"), note("ann")])
    target.append("s", note("eve"))


def test_a_session_written_on_both_sides_is_named_and_left_alone(scene: Scene) -> None:
    """With the first seq that differs; the other one, which only lags, is brought on."""
    apart(scene)
    log, target = scene.source.open(), scene.target.open()
    before = history(target, "s")

    done, migration = sync(scene)

    moves = scene.moves(migration)
    assert (done.conflicts, moves["s"].state, moves["s"].seq, moves["same"].state) == (1, "conflict", 5, "synced")
    assert "they differ from seq 5 on" in (moves["s"].error or "")
    assert history(target, "s") == before
    assert history(target, "same") == history(log, "same")
    assert sync(scene)[0].conflicts == 1, "it is not forgotten"


@pytest.mark.parametrize("policy", ["source", "target", "keep-both"])
def test_a_policy_settles_what_was_written_on_both_sides(scene: Scene, policy: Policy) -> None:
    """One side's history counts; the other's is put aside or kept as a fork, and never just gone."""
    apart(scene)
    log, here = scene.source.open(), World(scene.target)
    here.project()
    theirs = history(here.log, "s")

    done, _ = sync(scene, policy=policy)
    here.project()

    assert done.conflicts == 0
    aside = [key for key in scene.target.keys() if b":damaged:" in key]  # noqa: SIM118
    if policy == "target":
        assert history(here.log, "s") == theirs
        assert aside == []
    else:
        assert history(here.log, "s") == history(log, "s")
        assert scene.target.client.xlen(aside[0].decode()) == len(theirs)
    if policy == "keep-both":
        kept = [commit.body for commit in here.log.read("s@5")]
        assert kept[: len(theirs)] == [commit.body for commit in theirs]
    assert here.codes() == []


def test_a_standby_is_kept_through_outages(scene: Scene) -> None:
    """By one command that goes on until it is told to end; then it says that nobody is at it."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["a"])
    with proxied(scene.source.url) as way:
        muster = Path(sys.executable).parent / "muster"
        flags = ["--from", way.url, "--to", scene.target.url, "--every", "0.02"]
        for side in ("from", "to"):
            flags += [f"--{side}-environment", ENVIRONMENT, f"--{side}-namespace", scene.source.namespace]
        environ = {"PATH": "/usr/bin:/bin", "MUSTER_REDIS__RETRY_FOR_S": "0"}
        child = start_child([muster, "migrate", "sync", *flags], env=environ)
        try:
            wait_until(lambda: target.head("a") == as_held(log.head("a")), message="it is equal")
            with way.cut():
                refused_before = way.refused
                log.append("a", note())
                wait_until(lambda: way.refused > refused_before, message="it tried while the source was away")
            wait_until(lambda: target.head("a") == as_held(log.head("a")), message="it goes on by itself")
        finally:
            child.send_signal(signal.SIGINT)
            assert child.wait(30) == 130
    with scene.ends() as ends:
        (migration,) = Migrations(ends.target.store).all()
    assert (migration.state, migration.is_stuck) == ("syncing", True)


def as_held(head: Head | None) -> Head | None:
    """A head as a standby has it."""
    return None if head is None else structs.replace(head, flags="m")


# -- failing over ----------------------------------------------------------------------------------------------------


@pytest.fixture
def way(scene: Scene) -> Iterator[Proxy]:
    """The only way to the source."""
    with proxied(scene.source.url) as proxy:
        yield proxy


@pytest.fixture
def run(scene: Scene, way: Proxy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("MUSTER_ENVIRONMENT", ENVIRONMENT)
    monkeypatch.setenv("MUSTER_REDIS__RETRY_FOR_S", "0")
    ends = ["--to", scene.target.url, "--to-namespace", scene.target.namespace, "-o", "json"]
    source = ["--from", way.url, "--from-namespace", scene.source.namespace]

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        more = ends if arguments[0] == "failover" else [*ends, *source]
        code = main([*arguments, *more])
        out, err = capsys.readouterr()
        print(err)
        return code, json.loads(out.splitlines()[-1]) if out else {}

    return run


def test_a_planned_failover_loses_nothing(scene: Scene, run: Run) -> None:
    """The old side answers: it is closed first, the rest is brought, the standby goes on at the next seq."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["a", "b", "strict"])
    log.set_policy("strict", "strict")
    second = history(log, "strict")[1]
    skip = f'[{{"from_seq":3,"to_seq":4,"digest":"{second.digest}","who":"ann","why":"it is bad","at":1}}]'
    scene.source.client.hset(scene.source.keyspace.of("strict").skips, "strict", skip)
    assert run("migrate", "sync", "--once")[0] == 0
    assert run("migrate", "verify")[1]["problems"] == []
    log.append("b", note())

    code, told = run("failover")

    assert (code, told["fenced"], told["opened"], told["closed"], told["missing"]) == (0, True, 3, 3, [])
    assert told["epoch"] == 2
    with refused("MOVED_TO"):
        log.append("b", note())
    assert [target.append(one, note()).first_seq for one in ("a", "b")] == [7, 8]
    with refused("EXPECTED_REQUIRED"):
        target.append("strict", note())
    assert [commit.skipped for commit in target.read("strict")] == [False, True, False]


def test_a_dead_side_is_replaced_and_closed_when_it_is_back(scene: Scene, run: Run, way: Proxy) -> None:
    """What had not arrived is listed with its seqs once the old side answers; until then the status says unfenced."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["a", "b", "c"])
    run("migrate", "sync", "--once")
    log.append("b", [note(), note()])

    with way.cut():
        code, told = run("failover")
        assert (code, told["fenced"], told["opened"]) == (1, False, 3)
        code, told = run("migrate", "status")
        assert (code, told["state"], told["source_answers"]) == (1, "unfenced", False)
    assert [target.append(one, note()).first_seq for one in ("a", "b", "c")] == [7, 7, 7]

    code, told = run("failover")

    assert (code, told["fenced"], told["closed"]) == (7, True, 3)
    assert told["missing"] == [{"session": "b", "from_seq": 7, "to_seq": 8}]
    for session in ("a", "b", "c"):
        with refused("MOVED_TO"):
            log.append(session, note())


def test_producers_go_to_the_standby_by_themselves(run: Run, scene: Scene, way: Proxy) -> None:
    """Blocking and asyncio: once their server does not answer and the standby replaces it, with pending ids."""
    fill(scene.source.open(), ["a"])
    run("migrate", "sync", "--once")
    options: dict[str, Any] = {"environment": ENVIRONMENT, "namespace": scene.source.namespace}
    standby = Connecting(scene.target.url)
    with SessionLog.open(Connecting(way.url, retry_for_s=0), moved=[standby], **options) as producer:
        first = producer.append("a", note(id="mine"))
        run("migrate", "sync", "--once")
        connecting = Connecting(way.url, retry_for_s=0)
        other = Blocking(lambda: AsyncSessionLog.open(connecting, moved=[standby], **options))
        with way.cut():
            for log in (producer, other):
                with refused("UNREACHABLE"):
                    log.append("a", note())  # nobody replaces it yet
            run("failover")
            after = producer.append("a", note())
            again = producer.append("a", note(id="mine"), known=6)
            third = other.append("a", note()).first_seq
        other.close()

    assert (first.first_seq, after.first_seq, again.first_seq, again.appended, third) == (7, 8, 7, 0, 9)


def test_what_a_producer_knows_to_be_lost_is_named_on_the_standby(scene: Scene, run: Run, way: Proxy) -> None:
    """A commit that was acknowledged and had not arrived: its producer is told, and the operator reads of it."""
    fill(scene.source.open(), ["a"])
    run("migrate", "sync", "--once")
    options: dict[str, Any] = {"environment": ENVIRONMENT, "namespace": scene.source.namespace}
    with SessionLog.open(Connecting(way.url, retry_for_s=0), moved=[scene.target.url], **options) as producer:
        receipt = producer.append("a", note())
        with way.cut():
            run("failover")
            with pytest.raises(Damaged) as raised:
                producer.append("a", note())

    assert (raised.value.code, raised.value.facts["first_bad_seq"]) == ("TAIL_LOST", receipt.first_seq)
    (report,) = Epochs(scene.target.open()).reports()
    assert (report.loss.session, report.loss.first_bad_seq) == ("a", 7)


# -- subscriptions ---------------------------------------------------------------------------------------------------


def acknowledged(log: SessionLog, count: int | None = None) -> list[tuple[str, int]]:
    """What a member is given, so many or all there is, and acknowledges."""
    with log.subscribe_as("audit", after="beginning") as member:
        found = rest(member) if count is None else some(member, count)
        member.ack()
    return [(one.session, one.seq) for one in found]


def all_of(log: SessionLog) -> list[tuple[str, int]]:
    return sorted((session, seq) for session, seqs in everything(log).items() for seq in seqs)


def test_subscriptions_go_on_at_the_standby_where_they_were(scene: Scene, run: Run) -> None:
    """The old side answers: what was acknowledged there to the last, is not given again; what was not, is."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["a", "b", "c", "d"])
    first = acknowledged(log, 7)
    run("migrate", "sync", "--once")
    fill(log, ["e"])
    second = acknowledged(log, 5)

    assert run("failover")[0] == 0

    target.append("a", note())
    third = acknowledged(target)
    assert sorted([*first, *second, *third]) == all_of(target)
    with refused("MOVED_TO"):
        acknowledged(log)


def test_subscriptions_go_on_where_a_dead_side_was_seen_last(scene: Scene, run: Run, way: Proxy) -> None:
    """What was acknowledged after the last round may come again; nothing that arrived is left out."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["a", "b", "c", "d"])
    first = acknowledged(log, 7)
    run("migrate", "sync", "--once")
    fill(log, ["lost"])
    second = acknowledged(log, 5)

    with way.cut():
        run("failover")
    target.append("a", note())

    third = acknowledged(target)
    assert sorted([*first, *third]) == all_of(target)
    assert {one for one in second if one[0] != "lost"} <= set(third)
    assert run("failover")[0] == 7
    with refused("MOVED_TO"):
        acknowledged(log)


def test_members_go_to_the_standby_by_themselves(run: Run, scene: Scene, way: Proxy) -> None:
    """Once their server does not answer, and the standby replaces it."""
    fill(scene.source.open(), ["a", "b"])
    target = scene.target.open()
    options: dict[str, Any] = {"environment": ENVIRONMENT, "namespace": scene.source.namespace}
    connecting = Connecting(way.url, retry_for_s=0)
    with (
        SessionLog.open(connecting, moved=[Connecting(scene.target.url)], **options) as log,
        log.subscribe_as("audit", after="beginning", ttl_ms=1000) as member,
    ):
        first = [(one.session, one.seq) for one in some(member, 5)]
        member.ack()
        run("migrate", "sync", "--once")
        with way.cut():
            run("failover")
            target.append("a", note())
            second: set[tuple[str, int]] = set()
            while not is_acknowledged(target, "audit"):
                if (one := member.get(timeout_s=0.1)) is not None:
                    second.add((one.session, one.seq))
                with suppress(Conflict, Unavailable):
                    member.ack()
        assert sorted([*first, *second]) == all_of(target)
