"""Backups: a consistent cut while appends go on, checked to the last byte, restored to the same digests."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from domain import Append, Conflict, Damaged, Misconfigured, MusterError, NotFound, SessionLog
from domain.codec import chain, encode_body, genesis
from domain.log import create_store
from tests.conftest import ENVIRONMENT, Servers, Store
from tests.domain.log.logs import refused
from tests.domain.log.subscribing.deliveries import everything, rest, some
from tests.foreign import any_body
from tests.projections.world import World, did, foreign_append, raised_code, run_cli
from tests.waiting import wait_until
from workers.backup import audit, reading
from workers.backup.creating import Creating
from workers.backup.folder import Manifest, finish, lines_name, packed, rows_name, unpacked
from workers.backup.restoring import Restored, Restoring
from workers.pacing import Pace, Stopped


class Target(Store):
    """A namespace without a store, to restore into."""

    def __init__(self, url: str, *, partitions: int = 4) -> None:
        super().__init__(url, partitions=partitions, create=False)


def pace(stop_after: int | None = None) -> Pace:
    """How a test lets work go on: all the way, or until so many steps are done."""
    stop = threading.Event()
    steps = [0]

    def say(_: str) -> None:
        steps[0] += 1
        if stop_after is not None and steps[0] > stop_after:
            stop.set()

    return Pace(say, verb="did", stop=stop)


def back_up(world: World, folder: Path, base: Path | None = None, stop_after: int | None = None) -> Manifest:
    return Creating(world.log, folder, base=base, pace=pace(stop_after)).run()


def restore(target: Store, folder: Path, *, until_ms: int | None = None, stop_after: int | None = None) -> Restored:
    restoring = Restoring(
        target.client,
        folder,
        environment=ENVIRONMENT,
        namespace=target.namespace,
        partitions=target.keyspace.count,
        until_ms=until_ms,
        pace=pace(stop_after),
    )
    return restoring.run()


def content(log: SessionLog) -> dict[str, list[tuple[Any, ...]]]:
    """Everything a log holds, to the byte."""
    return {
        session: [(c.first_seq, c.last_seq, c.at_ms, c.digest, c.body, c.traceparent) for c in log.read(session)]
        for session in log.sessions()
    }


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """Sessions of many kinds: short, long, of other producers, with policies, traces, one quarantined."""
    world = World(make_store(server_url, partitions=3))
    fill(world)
    return world


def fill(world: World) -> None:
    chance = random.Random(7)
    world.sessions(20)
    world.log.append("long", [did("modified") for _ in range(700)])
    for _ in range(300):
        world.log.append("long", did("tool.called"))
    world.log.append("done", [did("start"), did("completed")], traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    foreign_append(world.store, "json", "s", b'[{"type":"start","id":"1","actor":"x"}]')
    for n in range(10):
        foreign_append(world.store, f"foreign-{n}", ".", any_body(chance))
    world.log.append("strict", did("start"))
    world.log.set_policy("strict", "strict")
    with world.log.lease("leased", "agent-1") as lease:
        lease.append(did("start"))
    world.log.append("held", did("start"))
    world.projections.quarantine("held", "LOG_ALTERED", 2)


@pytest.fixture
def make_target(server_url: str) -> Iterator[Callable[..., Store]]:
    made: list[Store] = []

    def make(url: str = server_url, **options: Any) -> Store:
        made.append(Target(url, **options))
        return made[-1]

    yield make
    for target in made:
        target.close()


@pytest.mark.parametrize(("source", "to"), [("valkey", "valkey"), ("valkey", "redis7"), ("redis7", "valkey")])
def test_a_restored_store_holds_the_very_same_commits(
    servers: Servers, make_store: Callable[..., Store], make_target: Any, tmp_path: Path, source: str, to: str
) -> None:
    """On another kind of server and with another number of partitions too: seqs, times, digests, bytes, policies."""
    world = World(make_store(servers.url(source), partitions=3))
    fill(world)
    manifest = back_up(world, tmp_path / "b")
    target = make_target(servers.url(to), partitions=5)

    restored = restore(target, tmp_path / "b")

    log = target.open()
    before = content(world.log)
    assert content(log) == before
    assert (restored.sessions, restored.events) == (len(before), sum(c[-1][1] for c in before.values()))
    assert (manifest.sessions, manifest.events) == (restored.sessions, restored.events)
    heads = {session: world.log.head(session) for session in before}
    assert {session: log.head(session) for session in before} == heads
    refused(lambda: log.append("held", did("start")), Damaged, "QUARANTINED")
    assert log.append("done", did("start")).first_seq == 3
    assert target.total() == restored.events + 1


def test_durable_subscriptions_go_on_where_they_were(world: World, make_target: Any, tmp_path: Path) -> None:
    """In another number of partitions too: what was acknowledged by the cut is not given again, the rest is."""
    with world.store.open() as log:
        first = acknowledged(log, 450)
        with log.subscribe_as("others", types="tool.*", after="now") as member:
            member.ack()
        back_up(world, tmp_path / "b")
        second = acknowledged(log, 30)
    target = make_target(partitions=5)

    assert restore(target, tmp_path / "b").subscriptions == 2

    with target.open() as log:
        log.append("long", did("modified"))
        third = acknowledged(log)
        log.append("long", did("tool.called"))
        expected = sorted((session, seq) for session, seqs in everything(log).items() for seq in seqs)
        assert sorted([*first, *third, ("long", 1002)]) == expected
        assert set(second) <= set(third)
        assert acknowledged(log) == [("long", 1002)]
        assert acknowledged(log, name="others") == [("long", 1002)]


def acknowledged(log: SessionLog, count: int | None = None, name: str = "audit") -> list[tuple[str, int]]:
    """What a member is given, so many or all there is, and acknowledges."""
    wanted = "tool.*" if name == "others" else None
    with log.subscribe_as(name, types=wanted, after="beginning") as member:
        found = rest(member) if count is None else some(member, count)
        member.ack()
    return [(one.session, one.seq) for one in found]


def test_of_a_store_as_it_was_then_subscriptions_are_given_what_came_until_then(
    world: World, make_target: Any, tmp_path: Path
) -> None:
    """And nothing of it that they had acknowledged by then, or later."""
    with world.store.open() as log:
        first = acknowledged(log, 450)
        head = log.head("long")
        assert head is not None
        until = head.at_ms
        wait_until(lambda: log.append("later", did("modified")).at_ms > until)
        acknowledged(log, 100)
        back_up(world, tmp_path / "b")
    target = make_target()
    restore(target, tmp_path / "b", until_ms=until)

    with target.open() as log:
        third = acknowledged(log)
        assert not set(first) & set(third)
        assert "later" not in {session for session, _ in third}


def test_views_are_built_from_it_and_nothing_is_found(world: World, make_target: Any, tmp_path: Path) -> None:
    world.redis.delete(world.keyspace.of("held").head("held"))
    for n in range(10):
        world.redis.delete(world.keyspace.of(f"foreign-{n}").log(f"foreign-{n}"))
    clean = World(world.store)
    back_up(clean, tmp_path / "b")
    target = make_target()
    restore(target, tmp_path / "b")
    other = World(target)
    other.project()
    assert other.verify() == []
    assert other.views.session("long")["seq"] == 1000
    assert other.log.head("held") is not None


def test_who_did_what_is_restored_and_what_was_discarded_stays_so(
    make_store: Callable[..., Store], server_url: str, make_target: Any, tmp_path: Path
) -> None:
    """In other partitions, in the order of time; a discarded commit stays so, because it is borne out who did it."""
    world = World(make_store(server_url, partitions=3))
    names = [f"bad-{number}" for number in range(6)]
    for name in names:
        foreign_append(world.store, name, "..", b"\xc1\xc1")
        world.log.append(name, did("modified"))
    world.project()
    assert run_cli(world, "parked", "discard", "--code", "EVENT_UNREADABLE", "--why", "it is nonsense").code == 0
    assert run_cli(world, "read-only", "on", "--why", "a look").code == 0
    before = audited(world.store)
    back_up(world, tmp_path / "b")
    target = make_target(partitions=5)

    assert restore(target, tmp_path / "b").audited == len(before)

    other = World(target)
    other.project()
    assert other.codes() == []
    assert [commit.skipped for name in names for commit in other.log.read(name)] == [True, False] * len(names)
    assert sorted(map(str, audited(target))) == sorted(map(str, before))
    for keys in target.keyspace.partitions:
        told = [fields[b"session"].decode() for _, fields in target.client.xrange(keys.audit)]
        assert {target.keyspace.of(session) for session in told} <= {keys}
    again = audit.restore(target.client, target.keyspace, audit.entries(tmp_path / "b"), None)
    assert (again, audited(target)) == (len(before), audited(target))
    assert len(audited(target)) == len(before)


def audited(store: Store) -> list[Any]:
    """What all audit streams tell."""
    streams = [store.keyspace.audit, *(keys.audit for keys in store.keyspace.partitions)]
    client: Any = store.client
    return [fields for key in streams for _, fields in client.xrange(key)]


def test_while_producers_append_the_cut_is_what_was_acknowledged_until_then(
    world: World, make_target: Any, tmp_path: Path
) -> None:
    """Of each partition all commits up to its time, and none after; every session a prefix of what it became."""
    ended = threading.Event()
    acknowledged: list[Any] = []

    def produce(name: str) -> None:
        with world.store.open() as log:
            while not ended.is_set():
                acknowledged.append(log.append(f"{name}-{len(acknowledged) % 7}", did("tool.called")))

    producers = [threading.Thread(target=produce, args=(f"p{n}",)) for n in range(3)]
    for producer in producers:
        producer.start()
    try:
        wait_until(lambda: len(acknowledged) > 200)
        manifest = back_up(world, tmp_path / "b")
        told = len(acknowledged)
        wait_until(lambda: len(acknowledged) > told + 50)
    finally:
        ended.set()
        for producer in producers:
            producer.join()
    target = make_target(partitions=3)
    restore(target, tmp_path / "b")

    cut = {one.partition: one.at_ms for one in manifest.cuts}
    after, kept = content(world.log), content(target.open())
    expected = {
        session: [c for c in commits if c[2] <= cut[world.keyspace.partition_of(session)]]
        for session, commits in after.items()
    }
    assert kept == {session: commits for session, commits in expected.items() if commits}
    assert sum(map(len, kept.values())) < sum(map(len, after.values()))


def test_a_backup_that_goes_on_from_another_reads_only_what_came_since(
    world: World, make_target: Any, tmp_path: Path
) -> None:
    back_up(world, tmp_path / "full")
    world.log.append("long", did("tool.called"))
    world.log.append("new", did("start"))
    second = back_up(world, tmp_path / "second", tmp_path / "full")
    world.log.append("new", did("modified"))
    third = back_up(world, tmp_path / "third", tmp_path / "second")

    target = make_target()
    restore(target, tmp_path / "third")

    assert [sum(cut.commits for cut in one.cuts) for one in (second, third)] == [2, 1]
    assert content(target.open()) == content(world.log)


@pytest.mark.parametrize("events", [2, 1000, 1005])
def test_a_log_that_was_rewritten_since_the_base_is_kept_whole(
    world: World, make_target: Any, tmp_path: Path, events: int
) -> None:
    """As after a failover or `recover accept`: the base's commits of this session are no part of it any more."""
    back_up(world, tmp_path / "full")
    keys = world.keyspace.of("long")
    world.redis.delete(keys.log("long"), keys.head("long"))
    world.redis.zrem(keys.sessions, "long")
    with world.store.open() as log:
        log.append_many([Append("long", (did("tool.called"),)) for _ in range(events)])
    back_up(world, tmp_path / "second", tmp_path / "full")
    target = make_target()
    restore(target, tmp_path / "second")
    assert content(target.open()) == content(world.log)


def test_of_a_damaged_log_what_verifies_is_restored_and_the_session_is_quarantined(
    world: World, make_target: Any, tmp_path: Path
) -> None:
    world.redis.xdel(world.keyspace.of("long").log("long"), "710-1")
    manifest = back_up(world, tmp_path / "b")
    target = make_target()
    restored = restore(target, tmp_path / "b")
    log = target.open()
    head = log.head("long")
    assert sum(cut.damaged for cut in manifest.cuts) == 1
    assert restored.quarantined == 2
    assert head is not None
    assert (head.seq, head.quarantined) == (709, True)


def test_restored_to_a_time_every_session_is_what_it_was_then(world: World, make_target: Any, tmp_path: Path) -> None:
    times = sorted({c[2] for commits in content(world.log).values() for c in commits})
    back_up(world, tmp_path / "b")
    until = times[len(times) // 2]
    target = make_target()
    restore(target, tmp_path / "b", until_ms=until)
    kept = {s: [c for c in commits if c[2] <= until] for s, commits in content(world.log).items()}
    assert content(target.open()) == {session: commits for session, commits in kept.items() if commits}


@pytest.mark.parametrize("step", range(0, 33, 4))
def test_an_interrupted_backup_is_finished_by_the_same_command(
    world: World, make_target: Any, tmp_path: Path, step: int
) -> None:
    """Wherever it stopped; until then it is no backup."""
    with pytest.raises(Stopped):
        back_up(world, tmp_path / "b", stop_after=step)
    refused(lambda: reading.verify(tmp_path / "b", pace()), NotFound, "BACKUP_MISSING")
    back_up(world, tmp_path / "b")
    assert reading.verify(tmp_path / "b", pace()) == []
    target = make_target()
    restore(target, tmp_path / "b")
    assert content(target.open()) == content(world.log)


def test_an_interrupted_restore_is_no_store_and_is_finished_by_the_same_command(
    world: World, make_target: Any, tmp_path: Path
) -> None:
    """Nobody opens, makes or appends to it meanwhile; another restore does not take its place."""
    back_up(world, tmp_path / "b")
    world.log.append("later", did("start"))
    back_up(world, tmp_path / "other")
    target = make_target()
    verified = len(content(world.log)) - 1  # verifying comes first, and goes through each session once
    with pytest.raises(Stopped):
        restore(target, tmp_path / "b", stop_after=verified)

    assert target.client.exists(target.keyspace.of("long").sessions) or target.keys()
    refused(target.open, Misconfigured, "STORE_RESTORING")
    with pytest.raises(Misconfigured, match="STORE_RESTORING"):
        create_store(target.client, environment=ENVIRONMENT, namespace=target.namespace)
    refused(lambda: restore(target, tmp_path / "other"), Conflict, "RESTORE_DIFFERS")

    restore(target, tmp_path / "b")
    assert content(target.open()) == {s: c for s, c in content(world.log).items() if s != "later"}


class Cut(Exception):
    """The restoring process ends here."""


@pytest.mark.parametrize("step", range(1, 40, 3))
def test_a_restore_that_died_at_any_command_is_finished(
    world: World, make_target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    back_up(world, tmp_path / "b")
    target = make_target()
    sent = [0]
    original = type(target.client.connection_pool).get_connection

    def die(pool: Any, *args: Any, **options: Any) -> Any:
        sent[0] += 1
        if sent[0] > step:
            raise Cut
        return original(pool, *args, **options)

    with monkeypatch.context() as dying:
        dying.setattr(type(target.client.connection_pool), "get_connection", die)
        with suppress(Cut):
            restore(target, tmp_path / "b")
    if sent[0] > step:
        assert raised_code(target.open) in ("STORE_RESTORING", "STORE_MISSING")
        restore(target, tmp_path / "b")
    assert content(target.open()) == content(world.log)


def test_nothing_is_ever_overwritten(world: World, make_target: Any, tmp_path: Path) -> None:
    """Neither a backup nor a store nor a folder with something else in it."""
    back_up(world, tmp_path / "b")
    refused(lambda: back_up(world, tmp_path / "b"), Conflict, "BACKUP_EXISTS")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    refused(lambda: back_up(world, tmp_path / "mine"), Conflict, "BACKUP_EXISTS")
    before = world.store.snapshot()
    refused(lambda: restore(world.store, tmp_path / "b"), Conflict, "STORE_EXISTS")
    assert world.store.snapshot() == before


def test_a_base_of_another_store_is_refused(
    world: World, make_store: Callable[..., Store], server_url: str, tmp_path: Path
) -> None:
    other = World(make_store(server_url, partitions=3))
    other.log.append("s", did("start"))
    back_up(other, tmp_path / "other")
    refused(lambda: back_up(world, tmp_path / "b", tmp_path / "other"), Conflict, "BACKUP_DIFFERS")


def test_every_byte_that_flips_is_found(make_store: Callable[..., Store], server_url: str, tmp_path: Path) -> None:
    """In every file, of the base too; and files that are missing, cut short, or not ours."""
    world = World(make_store(server_url, partitions=1))
    world.log.append("s", [did("start"), did("completed")])
    back_up(world, tmp_path / "base")
    world.log.append("t", did("start"))
    back_up(world, tmp_path / "b", tmp_path / "base")
    files = [path for folder in ("base", "b") for path in sorted((tmp_path / folder).iterdir())]
    assert len(files) == 10
    for path in files:
        good = path.read_bytes()
        for at in range(len(good)):
            path.write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
            assert found_something(tmp_path / "b"), f"{path.name}, byte {at}"
        path.write_bytes(good[:-1])
        assert found_something(tmp_path / "b"), f"{path.name}, cut short"
        path.unlink()
        assert found_something(tmp_path / "b"), f"{path.name}, missing"
        path.write_bytes(good)
    assert not found_something(tmp_path / "b")
    (tmp_path / "b" / "stray").write_text("")
    assert found_something(tmp_path / "b")


def found_something(folder: Path) -> bool:
    try:
        return bool(reading.verify(folder, pace()))
    except MusterError as error:
        return error.code in ("BACKUP_DAMAGED", "BACKUP_MISSING")


def test_files_that_were_forged_with_their_checksums_are_found_by_the_digests(world: World, tmp_path: Path) -> None:
    """A commit that is missing, doubled or moved does not chain."""
    manifest = back_up(world, tmp_path / "b")
    partition = world.keyspace.partition_of("long")
    path = tmp_path / "b" / lines_name(partition)
    lines = list(unpacked(path, bytes))
    places = [place for place, line in enumerate(lines) if b'"session":"long"' in line]
    one, two = places[10], places[11]
    forged = {
        "missing": lines[:one] + lines[two:],
        "doubled": lines[:two] + lines[one:],
        "moved": [*lines[:one], lines[two], lines[one], *lines[two + 1 :]],
        "all missing": [line for line in lines if b'"session":"long"' not in line],
    }
    for how, changed in forged.items():
        with packed(path) as write:
            for line in changed:
                write(line)
        finish(tmp_path / "b", manifest)
        (problem,) = reading.verify(tmp_path / "b", pace())
        assert "long" in problem.cause, how


def test_a_session_that_is_missing_from_all_files_is_missed(world: World, tmp_path: Path) -> None:
    """Forged with checksums: the manifest says how many there were."""
    manifest = back_up(world, tmp_path / "b")
    partition = world.keyspace.partition_of("long")
    for name in (lines_name(partition), rows_name(partition)):
        lines = [line for line in unpacked(tmp_path / "b" / name, bytes) if b'"session":"long"' not in line]
        with packed(tmp_path / "b" / name) as write:
            for line in lines:
                write(line)
    finish(tmp_path / "b", manifest)
    assert len(reading.verify(tmp_path / "b", pace())) == 1


def test_nothing_can_be_written_before_a_cut_any_more(world: World, tmp_path: Path) -> None:
    """When it is taken, the server's clock has passed it."""
    creating = Creating(world.log, tmp_path / "b", base=None, pace=pace())
    for _ in range(300):
        cut = creating._cut(0)
        assert world.projections.server_ms() > cut


@pytest.mark.parametrize("what", ["an open store", "a digest that does not fit"])
def test_the_server_copies_nothing_that_should_not_be_there(world: World, make_target: Any, what: str) -> None:
    """It checks for itself, whoever asks."""
    target = world.store if what == "an open store" else make_target()
    keys = target.keyspace.of("s")
    store = world.log.identity.store
    body = encode_body([did("start")])
    at_ms = 1_700_000_000_000
    if target is not world.store:
        target.client.hset(keys.meta, "restoring", store)
        digest = "0" * 20
    else:
        digest = chain(genesis("s"), "s", 1, 1, at_ms, body)
    before = target.snapshot()
    names = (keys.meta, keys.sessions, keys.log("s"), keys.head("s"))
    try:
        reply = target.client.fcall(
            "muster_copy_1", len(names), *names, store, "s", 0, genesis("s"), "o", "-", 1, at_ms, digest, body, ""
        )
    except redis.ResponseError as error:
        reply = str(error)
    assert target.snapshot() == before
    assert "STORE_CHANGED" in reply if what == "an open store" else reply == [b"CHAIN", b"1"]


def test_under_its_own_names_it_is_the_same_store_and_whoever_lost_something_is_told(
    make_store: Callable[..., Store], server_url: str, tmp_path: Path
) -> None:
    """The server's data was destroyed after the backup: producers go on where nothing of theirs is lost."""
    store = make_store(server_url, partitions=2)
    world = World(store)
    log = store.open()
    log.append("kept", did("start"))
    log.append("cut", did("start"))
    back_up(world, tmp_path / "b")
    log.append("cut", did("modified"))
    store.client.delete(*store.keys())

    restored = restore(store, tmp_path / "b")

    assert restored.store == log.identity.store
    assert log.append("kept", did("modified")).last_seq == 2
    refused(lambda: log.append("cut", did("modified")), Damaged, "TAIL_LOST")


def test_the_command_backs_up_verifies_restores_and_drills(world: World, make_target: Any, tmp_path: Path) -> None:
    """Exit codes and rows; nothing is written where it says so."""
    folder = tmp_path / "b"
    created = run_cli(world, "backup", "create", str(folder))
    assert (created.code, created.row["sessions"]) == (0, len(content(world.log)))
    assert run_cli(world, "backup", "verify", str(folder)).code == 0
    assert run_cli(world, "backup", "restore", str(folder)).code == 6
    before = world.store.snapshot()
    assert run_cli(world, "backup", "restore", str(folder), "--dry-run").code == 0
    assert world.store.snapshot() == before
    world.store.client.delete(*world.store.keys())
    restored = run_cli(world, "backup", "restore", str(folder), "--partitions", "3")
    assert (restored.code, restored.row["events"]) == (7, created.row["events"])  # one session is quarantined
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "commits-0000.ndjson.zst").write_bytes(b"")
    damaged = run_cli(world, "backup", "verify", str(tmp_path / "copy"))
    assert damaged.code == 8
    assert run_cli(world, "backup", "verify", str(tmp_path / "none")).code == 4
    assert run_cli(world, "backup", "restore", str(folder), "--at", "noon").code == 9


def test_a_drill_restores_into_a_server_of_its_own_and_touches_nothing(
    make_store: Callable[..., Store], server_url: str, tmp_path: Path
) -> None:
    world = World(make_store(server_url, partitions=2))
    world.sessions(5)
    back_up(world, tmp_path / "b")
    before = world.store.snapshot()
    ran = run_cli(world, "backup", "restore", str(tmp_path / "b"), "--drill")
    assert (ran.code, ran.row["sessions"], ran.row["events"]) == (0, 5, 15)
    assert world.store.snapshot() == before
