"""Grafting: what a damaged log lacks comes back from an archive or a backup, to the byte, where digests fit."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import redis

from domain import Append, SessionLog
from domain.codec import chain, encode_body, genesis
from domain.log.archive.place import Archive, open_archive
from domain.log.archive.segment import seal
from domain.log.contract import Head, Position
from domain.log.witness import Loss
from projections import grafting, indexing
from projections.grafting import Graft, Grafting, Unfit
from projections.scrub import Scrub
from tests.conftest import Store
from tests.domain.log.archive.conftest import KEYS, make_bucket, s3_url
from tests.foreign import any_body
from tests.projections import test_drift as damages
from tests.projections.test_drift import built
from tests.projections.world import World, did, folded, foreign_append, notes, run_cli
from tests.waiting import wait_until
from workers.backup.creating import Creating
from workers.pacing import Pace
from workers.settings import ArchiveSettings
from workers.sources import open_source

__all__ = ["built", "make_bucket", "s3_url"]
Entries = list[tuple[bytes, dict[bytes, bytes]]]
DAY_MS: Final = 86_400_000
#: What opens a bucket for other clients of S3.
AWS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url, partitions=4))


def back_up(world: World, folder: Path) -> str:
    Creating(world.log, folder, base=None, pace=Pace(lambda _: None, verb="did")).run()
    return str(folder)


def archive(world: World, folder: Path, sessions: list[str] | None = None, *, to: int | None = None) -> str:
    """Seals sessions, in segments of seven commits."""
    folder.mkdir(exist_ok=True)
    fill(world, open_archive(str(folder)), sessions, to=to)
    return str(folder)


def fill(world: World, place: Archive, sessions: list[str] | None = None, *, to: int | None = None) -> None:
    for session in sessions if sessions is not None else list(world.log.sessions()):
        commits, previous = list(world.log.read(session, to=to)), genesis(session)
        for at in range(0, len(commits), 7):
            segment = seal(world.log.identity.store, session, previous, commits[at : at + 7])
            place.put(segment.name, segment.content)
            previous = segment.facts.digest


KEEP: dict[str, Callable[[World, Path], str]] = {"archive": archive, "backup": back_up}


def entries(world: World, session: str = "s-1") -> Entries:
    found: Entries = world.redis.xrange(world.keyspace.of(session).log(session))
    return found


def packed_head(world: World, session: str = "s-1") -> bytes | None:
    found: bytes | None = world.redis.get(world.keyspace.of(session).head(session))
    return found


def asides(world: World, kind: bytes = b":damaged:") -> list[bytes]:
    """The logs that were put aside; or those that are being built."""
    names = world.store.keys()
    return [name for name in names if kind in name]


def assert_clean(world: World) -> None:
    """Nothing is found, by any way of looking, nor is anything of a graft left."""
    assert world.verify() == []
    world.project()
    assert world.verify() == []
    assert world.is_caught_up()
    world.assert_views_are_folds()
    count = world.keyspace.count
    assert [one for part in range(count) for one in Scrub(world.projections, world.log, part).round(10**6)] == []
    assert asides(world, b":graft:") == []


def first_damaged(world: World) -> None:
    """The first commit."""
    world.redis.xdel(world.keyspace.of("s-1").log("s-1"), entries(world)[0][0])


def holes(world: World) -> None:
    """Every second commit."""
    world.redis.xdel(world.keyspace.of("s-1").log("s-1"), *(entry_id for entry_id, _ in entries(world)[::2]))


def log_and_head_lost(world: World) -> None:
    damages.all_lost(world)
    damages.head_missing(world)


def tail_and_head_lost(world: World) -> None:
    damages.tail_lost(world)
    damages.head_missing(world)


def altered_and_forged(world: World) -> None:
    damages.altered(world)
    damages.written_by_hand(world)


DAMAGES = (
    damages.gap, damages.altered, damages.tail_lost, damages.trimmed, damages.all_lost, damages.no_commit_at_all,
    damages.written_by_hand, first_damaged, holes, log_and_head_lost, tail_and_head_lost, altered_and_forged,
)  # fmt: skip


@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize("is_quarantined", [False, True], ids=["found", "quarantined"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_log_is_again_what_it_was(
    built: World, tmp_path: Path, keep: str, is_quarantined: bool, damage: Callable[[World], None]
) -> None:
    """Whatever the damage, whether it was found before or not: log, head and view to the byte; what stood there
    instead is kept aside; the session takes events again.
    """
    source = KEEP[keep](built, tmp_path / "kept")
    before, head, view = entries(built), packed_head(built), built.projections.views(["s-1"])
    derived = built.derived()
    damage(built)
    if is_quarantined:
        built.recover()
    found = entries(built)

    done = run_cli(built, "recover", "apply", "--from", source)

    assert (done.code, done.row["left"], done.row["unfit"]) == (0, [], [])
    (graft,) = done.row["grafted"]
    assert (graft["session"], graft["seq"]) == ("s-1", 60)
    assert graft["commits"] == len(before) - sum(entry in before for entry in found)
    assert entries(built) == before
    assert packed_head(built) == head
    if view == built.projections.views(["s-1"]):
        assert built.derived() == derived
    strange = [entry for entry in found if entry not in before]
    assert [built.redis.xrange(key) for key in asides(built)] == ([found] if strange else [])
    assert_clean(built)
    assert built.projections.views(["s-1"]) == view
    assert built.store.open().append("s-1", did("modified", "zoe")).first_seq == 61
    assert run_cli(built, "recover", "apply", "--from", source).row["grafted"] == []


@pytest.mark.parametrize("names", [("MUSTER_ARCHIVE__KEY_ID", "MUSTER_ARCHIVE__SECRET"), AWS])
def test_a_bucket_is_a_source_too(
    built: World, make_bucket: Callable[[], str], monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    """What opens it are the keys that the settings name for the archive, or as other clients of S3 find them."""
    before, url = entries(built), make_bucket()
    for name in AWS:
        monkeypatch.delenv(name, raising=False)
    for name, value in zip(names, (KEYS.key_id, KEYS.secret), strict=True):
        monkeypatch.setenv(name, value)
    fill(built, open_archive(url, KEYS))
    damages.trimmed(built)
    planned = run_cli(built, "recover", "plan", "--from", url)
    assert (planned.code, len(planned.row["grafts"])) == (0, 1)
    done = run_cli(built, "recover", "apply", "--from", url)
    assert (done.code, len(done.row["grafted"])) == (0, 1)
    assert entries(built) == before


def test_what_was_done_is_in_the_audit(built: World, tmp_path: Path) -> None:
    source = back_up(built, tmp_path / "b")
    damages.altered(built)
    assert run_cli(built, "recover", "apply", "--from", source).code == 0
    keys = built.keyspace.of("s-1")
    (told,) = [entry for _, entry in built.redis.xrange(keys.audit) if entry[b"what"] == b"log grafted"]
    assert told[b"who"].startswith(b"recovery:")
    assert (told[b"session"], told[b"seq"]) == (b"s-1", b"60")
    assert told[b"aside"] in asides(built)
    assert told[b"why"].startswith(b"backup ")


def test_bodies_and_traces_of_foreign_producers_come_back_to_the_byte(world: World, tmp_path: Path) -> None:
    chance = random.Random(5)
    world.log.append("f", did("start"), traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    foreign_append(world.store, "f", "b", b'[ {"type":"modified","id":"1","actor":"x"} ]')
    for _ in range(20):
        foreign_append(world.store, "f", ".", any_body(chance))
    before, source = entries(world, "f"), archive(world, tmp_path / "a")
    world.redis.xdel(world.keyspace.of("f").log("f"), *(entry_id for entry_id, _ in before[:-1]))
    run_cli(world, "recover", "apply", "--from", source)
    assert entries(world, "f") == before


# -- after a restore -------------------------------------------------------------------------------------------------


def put_back(world: World, before: dict[bytes, bytes]) -> None:
    for key in world.store.snapshot():
        if key not in before:
            world.redis.delete(key)
    for key, content in before.items():
        world.redis.restore(key, 0, content, replace=True)


@pytest.mark.parametrize("keep", KEEP)
def test_a_tail_that_a_restored_server_lacks_comes_back(built: World, tmp_path: Path, keep: str) -> None:
    """Nothing is found of such a log; views, indexes and subscribers are told of what came back, as of an append."""
    before = built.store.snapshot()
    totals = built.store.total()
    built.log.append_many([Append("s-1", (did("modified", "zoe"), did("test_pass", "bob"))) for _ in range(300)])
    built.log.append("s-2", did("completed"))
    built.log.append("new", [did("start"), did("broke", "eve")])
    built.project()
    whole = {session: entries(built, session) for session in ("s-1", "s-2", "new")}
    heads = {session: packed_head(built, session) for session in whole}
    derived, source = built.derived(), KEEP[keep](built, tmp_path / "kept")
    put_back(built, before)
    assert built.verify() == []
    subscription = built.store.open().subscribe(types=["modified", "broke"])

    done = run_cli(built, "recover", "apply", "--from", source)

    assert (done.code, done.row["unfit"]) == (0, [])
    assert sorted((one["session"], one["commits"]) for one in done.row["grafted"]) == [
        ("new", 1),
        ("s-1", 300),
        ("s-2", 1),
    ]
    assert {session: entries(built, session) for session in whole} == whole
    assert {session: packed_head(built, session) for session in whole} == heads
    assert built.store.total() == totals + 603
    assert asides(built) == []
    assert_clean(built)
    assert built.derived() == derived
    told = [subscription.get(timeout_s=10) for _ in range(301)]
    subscription.close()
    assert sorted({(one.session, one.seq) for one in told if one is not None}) == [
        ("new", 2),
        *(("s-1", seq) for seq in range(61, 661, 2)),
    ]


def test_a_session_that_went_on_otherwise_is_named_and_left_alone(built: World, tmp_path: Path) -> None:
    before = built.store.snapshot()
    built.log.append("s-1", did("modified", "zoe"))
    built.log.append("s-1", did("modified", "zoe"))
    source = archive(built, tmp_path / "a")
    put_back(built, before)
    built.store.open().append("s-1", did("broke", "eve"))
    built.project()
    stands = built.store.snapshot()

    done = run_cli(built, "recover", "apply", "--from", source)

    assert (done.code, done.row["grafted"]) == (7, [])
    (unfit,) = done.row["unfit"]
    assert (unfit["session"], unfit["first_bad_seq"]) == ("s-1", 61)
    assert built.store.snapshot() == stands
    assert built.verify() == []


def test_a_report_of_what_came_back_is_taken_back(built: World, tmp_path: Path) -> None:
    """And one of what did not is kept."""
    source = back_up(built, tmp_path / "b")
    keys, head = built.keyspace.of("s-1"), built.log.head("s-1")
    assert head is not None
    for witness, digest in (("w-1", head.digest), ("w-2", "0" * 20)):
        loss = Loss("s-1", "TAIL_LOST", 55, Position(60, digest), ())
        built.redis.hset(keys.lost, f"s-1 {witness}", msgspec.json.encode(loss))
    damages.tail_lost(built)
    run_cli(built, "recover", "apply", "--from", source)
    assert built.redis.hkeys(keys.lost) == [b"s-1 w-2"]


# -- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "kept_to", "first_bad"),
    [(damages.trimmed, 54, 55), (damages.all_lost, 59, 60), (log_and_head_lost, 59, 60), (damages.gap, 54, 55)],
    ids=["the middle", "the end", "the end that only the view knows", "nothing"],
)
def test_where_a_part_is_missing_everywhere_nothing_is_written(
    built: World, tmp_path: Path, damage: Callable[[World], None], kept_to: int, first_bad: int
) -> None:
    """Half a graft would take a log for whole; the first seq that is nowhere is named."""
    source = archive(built, tmp_path / "a", to=kept_to)
    if damage is damages.trimmed:
        built.redis.xdel(built.keyspace.of("s-1").log("s-1"), "55-1", "56-1")
    damage(built)
    before = built.store.snapshot()

    planned = run_cli(built, "recover", "plan", "--from", source)

    (unfit,) = planned.row["unfit"]
    assert (unfit["session"], unfit["first_bad_seq"]) == ("s-1", first_bad)
    assert planned.row["grafts"] == []
    assert built.store.snapshot() == before
    log = entries(built)
    done = run_cli(built, "recover", "apply", "--from", source)
    assert (done.code, done.row["unfit"]) == (7, planned.row["unfit"])
    assert [one["quarantined"] for one in done.row["left"]] == [True]
    assert entries(built) == log


def test_a_source_that_is_damaged_gives_what_is_whole(built: World, tmp_path: Path) -> None:
    """Of an archive a bad segment is passed over and named; of a backup nothing is taken."""
    folder, other = archive(built, tmp_path / "a"), back_up(built, tmp_path / "b")
    sessions = sorted((tmp_path / "a").glob("*/s-1/*"))
    for path in (sessions[-1], *(tmp_path / "b").glob("commits-*")):
        path.write_bytes(path.read_bytes()[:-3] + b"\0\0\0")
    damages.all_lost(built)
    before = built.store.snapshot()
    done = run_cli(built, "recover", "plan", "--from", folder)
    assert done.row["unfit"][0]["first_bad_seq"] > 40
    assert sessions[-1].name in done.err
    assert run_cli(built, "recover", "apply", "--from", other).code == 8
    assert built.store.snapshot() == before


def test_a_source_of_another_store_is_none(
    built: World, make_store: Callable[..., Store], server_url: str, tmp_path: Path
) -> None:
    other = World(make_store(server_url, partitions=4))
    other.log.append("s-1", did("start"))
    folder, backup = archive(other, tmp_path / "a"), back_up(other, tmp_path / "b")
    damages.all_lost(built)
    before = built.store.snapshot()
    assert run_cli(built, "recover", "apply", "--from", backup).code == 6
    assert run_cli(built, "recover", "plan", "--from", folder).row["grafts"] == []
    assert run_cli(built, "recover", "apply", "--from", str(tmp_path / "nowhere")).code == 5
    assert built.store.snapshot() == before


def test_what_was_given_up_is_not_brought_back(built: World, tmp_path: Path) -> None:
    """An archive keeps segments of what an operator accepted as lost; the log that took its place is completed from
    its own.
    """
    folder = tmp_path / "a"
    archive(built, folder)
    damages.gap(built)
    built.recover()
    assert run_cli(built, "recover", "accept", "s-1", "--why", "the disk of Monday").code == 0
    built.log = built.store.open()
    for _ in range(9):
        built.log.append("s-1", did("modified", "eve"))
    built.project()
    archive(built, folder)
    before = entries(built)
    built.redis.xdel(built.keyspace.of("s-1").log("s-1"), "56-1", "57-1")

    done = run_cli(built, "recover", "apply", "--from", str(folder))

    assert (done.code, len(done.row["grafted"])) == (0, 1)
    assert entries(built) == before
    assert built.verify() == []


def test_where_two_ways_lead_on_what_they_share_comes_back(built: World, tmp_path: Path) -> None:
    """Two tails that were both lost: nobody can know which one counts. Up to where they part the log is completed."""
    folder, before = tmp_path / "a", built.store.snapshot()
    for actor in ("zoe", "eve"):
        built.log = built.store.open()
        built.log.append("s-1", did("modified", actor))
        built.log.append("s-1", did("modified", actor))
        archive(built, folder, ["s-1"])
        put_back(built, before)
    built.log = built.store.open()
    damages.gap(built)

    done = run_cli(built, "recover", "apply", "--from", str(folder))

    assert [one["seq"] for one in done.row["grafted"]] == [60]
    assert built.verify() == []
    assert run_cli(built, "recover", "plan", "--from", str(folder)).row["unfit"][0]["first_bad_seq"] == 61


def test_a_fork_that_is_not_finished_is_left_to_whoever_makes_it(built: World, tmp_path: Path) -> None:
    source = archive(built, tmp_path / "a")
    built.projections.quarantine("s-1", "FORK_UNFINISHED", 61)
    assert run_cli(built, "recover", "apply", "--from", source).row["grafted"] == []
    head = built.log.head("s-1")
    assert head is not None
    assert head.quarantined


def test_a_key_of_another_type_is_the_trouble_of_its_session(built: World, tmp_path: Path) -> None:
    source = archive(built, tmp_path / "a")
    keys = built.keyspace.of("s-1")
    built.redis.delete(keys.log("s-1"))
    built.redis.set(keys.log("s-1"), "x")
    grafting = Grafting(built.projections, built.log, source_of(built, source), who="ann")
    try:
        (unfit,) = grafting.plan({"s-1"})
        assert isinstance(unfit, Unfit)
        assert "KEY_DAMAGED" in unfit.cause
    finally:
        built.redis.delete(keys.log("s-1"))


# -- how it is done --------------------------------------------------------------------------------------------------


def source_of(world: World, where: str) -> Any:
    return open_source(where, world.log.identity.store, archive=ArchiveSettings(), say=lambda _: None)


def test_a_plan_says_what_would_be_done_and_does_nothing(built: World, tmp_path: Path) -> None:
    """And is carried out as it stands, when it is said again where from."""
    source, plan = archive(built, tmp_path / "a"), tmp_path / "plan.json"
    damages.gap(built)
    before, kept = built.store.snapshot(), entries(built)

    planned = run_cli(built, "recover", "plan", "--from", source, "--file", str(plan))
    dry = run_cli(built, "recover", "apply", "--from", source, "--dry-run")

    (graft,) = planned.row["grafts"]
    assert dry.row["grafts"] == [graft]
    assert (graft["prefix"], graft["commits"], graft["events"], graft["put_aside"]) == (54, 1, 1, 0)
    assert (
        "would complete s-1 to seq 60: 1 commits after seq 54"
        in run_cli(built, "recover", "plan", "--from", source, output="table").out
    )
    assert built.store.snapshot() == before
    assert run_cli(built, "recover", "apply", str(plan)).code == 9
    assert built.store.snapshot() == before
    assert run_cli(built, "recover", "apply", str(plan), "--from", source).code == 0
    assert len(entries(built)) == len(kept) + 1
    assert_clean(built)


def long_session(world: World) -> None:
    """Of some 1,300 commits, a few of them large: many steps."""
    for number in range(11):
        world.log.append_many([Append("long", (did("modified", "zoe"),)) for _ in range(100)])
        world.log.append("long", [did("tool.called", id=f"{number}-{n}") for n in range(30)])
        big = did("tool.called")
        world.log.append("long", [type(big).of("tool.called", actor="a", id=f"b{number}", data={"x": "y" * 200_000})])
    world.project()


class Died(BaseException):
    """The process ends here."""


def dying_at(world: World, step: int, monkeypatch: pytest.MonkeyPatch, *, before: bool) -> None:
    """The process ends right before or after so many calls of the function."""
    calls, fcall = [0], world.log.client.fcall

    def call(name: str, *arguments: Any) -> Any:
        if name != "muster_graft_1":
            return fcall(name, *arguments)
        calls[0] += 1
        if before and calls[0] == step:
            raise Died
        reply = fcall(name, *arguments)
        if not before and calls[0] == step:
            raise Died
        return reply

    monkeypatch.setattr(world.log.client, "fcall", call)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("step", [1, 2, 5, 8, 9])
def test_who_dies_in_between_leaves_the_session_as_it_was_and_the_next_goes_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, before: bool
) -> None:
    long_session(world)
    source, whole, head = archive(world, tmp_path / "a"), entries(world, "long"), packed_head(world, "long")
    world.redis.xdel(world.keyspace.of("long").log("long"), *(entry_id for entry_id, _ in whole[300:700]))
    damaged = entries(world, "long")
    with monkeypatch.context() as dying:
        dying_at(world, step, dying, before=before)
        grafting = Grafting(world.projections, world.log, source_of(world, source), who="ann")
        try:
            list(grafting.apply(["long"]))
            died = False
        except Died:
            died = True
    assert died
    assert entries(world, "long") in (damaged, whole)
    assert (entries(world, "long") == whole) == (step == 9 and not before)
    assert packed_head(world, "long") == head

    sent: list[int] = []
    grafting = Grafting(world.projections, world.log, source_of(world, source), who="ann", took=sent.append)
    list(grafting.apply(["long"]))

    if 1 < step < 9:
        assert sum(sent) < whole_events(whole), "it went on where it stood"
    assert entries(world, "long") == whole
    assert_clean(world)


def whole_events(found: Entries) -> int:
    return int(found[-1][0].partition(b"-")[0])


@pytest.mark.parametrize("comes_back", ["in time", "too late"])
def test_what_nobody_goes_on_with_lapses_and_a_log_never_does(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes_back: str
) -> None:
    """By the server's clock, a day after the last step; who comes later begins anew."""
    long_session(world)
    source, whole, keys = archive(world, tmp_path / "a"), entries(world, "long"), world.keyspace.of("long")
    world.redis.xdel(keys.log("long"), *(entry_id for entry_id, _ in whole[300:700]))
    for step in (3, 2):
        with monkeypatch.context() as dying, contextlib.suppress(Died):
            dying_at(world, step, dying, before=False)
            list(Grafting(world.projections, world.log, source_of(world, source), who="ann").apply(["long"]))
        assert DAY_MS - 60_000 < world.redis.pttl(keys.graft("long")) <= DAY_MS
        world.redis.pexpire(keys.graft("long"), DAY_MS // 2)
    if comes_back == "too late":
        world.redis.pexpire(keys.graft("long"), 1)
        wait_until(lambda: not world.redis.exists(keys.graft("long")), message="it lapses")

    sent: list[int] = []
    list(Grafting(world.projections, world.log, source_of(world, source), who="ann", took=sent.append).apply(["long"]))

    assert (sum(sent) < whole_events(whole)) == (comes_back == "in time")
    assert entries(world, "long") == whole
    assert world.redis.pttl(keys.log("long")) == -1
    assert_clean(world)


def test_what_is_built_and_does_not_fit_any_more_is_begun_anew(built: World, tmp_path: Path) -> None:
    source = archive(built, tmp_path / "a")
    keys, before = built.keyspace.of("s-1"), entries(built)
    damages.gap(built)
    for rubbish in ({"t": "1", "d": "0" * 20, "b": "x"}, {"x": "y"}, dict(before[3][1])):
        built.redis.delete(keys.graft("s-1"))
        built.redis.xadd(keys.graft("s-1"), rubbish, id=before[3][0])
        damages.gap(built)
        assert run_cli(built, "recover", "apply", "--from", source).code == 0
        assert entries(built) == before
    assert_clean(built)


def test_a_session_that_goes_on_meanwhile_loses_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hole that nobody found yet keeps no producer from appending: what comes between the steps is in the log."""
    long_session(world)
    source = archive(world, tmp_path / "a")
    world.redis.xdel(world.keyspace.of("long").log("long"), entries(world, "long")[500][0])
    producer, fcall, calls = world.store.open(), world.log.client.fcall, [0]

    def call(name: str, *arguments: Any) -> Any:
        calls[0] += 1
        if name == "muster_graft_1" and calls[0] in (1, 5, 9, 10):
            producer.append("long", did("modified", "bob"))
        return fcall(name, *arguments)

    monkeypatch.setattr(world.log.client, "fcall", call)
    (graft,) = Grafting(world.projections, world.log, source_of(world, source), who="ann").apply(["long"])
    monkeypatch.undo()

    head = world.log.head("long")
    assert isinstance(graft, Graft)
    assert head is not None
    assert (graft.seq, graft.digest) == (head.seq, head.digest)
    assert folded(world.log, "long").agents["bob"].events >= 3
    world.project()
    world.recover()
    assert_clean(world)


def test_a_session_that_never_stands_still_is_named(
    built: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = archive(built, tmp_path / "a")
    damages.gap(built)
    producer, fcall = built.store.open(), built.log.client.fcall

    def call(name: str, *arguments: Any) -> Any:
        producer.append("s-1", did("modified", "bob"))
        return fcall(name, *arguments)

    monkeypatch.setattr(built.log.client, "fcall", call)
    monkeypatch.setattr(grafting, "ATTEMPTS", 3)
    again = Grafting(built.projections, built.log, source_of(built, source), who="ann")
    (unfit,) = again.apply(["s-1"])
    assert isinstance(unfit, Unfit)
    assert asides(built) == []


def test_two_who_graft_at_a_time_make_one_log(world: World, tmp_path: Path) -> None:
    long_session(world)
    source, whole = archive(world, tmp_path / "a"), entries(world, "long")
    world.redis.xdel(world.keyspace.of("long").log("long"), *(entry_id for entry_id, _ in whole[:500]))
    failed: list[BaseException] = []

    def graft(log: SessionLog) -> None:
        try:
            list(Grafting(world.projections, log, source_of(world, source), who="ann").apply(["long"]))
        except BaseException as error:
            failed.append(error)  # it would be lost with the thread

    threads = [threading.Thread(target=graft, args=(world.store.open(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert entries(world, "long") == whole
    for left in asides(world, b":graft:"):  # of whoever came too late
        world.redis.delete(left)
    assert_clean(world)


@pytest.mark.parametrize("policy", ["strict", "leased"])
def test_a_session_keeps_its_policy(built: World, tmp_path: Path, policy: Any) -> None:
    """Also where its head is lost."""
    built.log.set_policy("s-1", policy)
    source = archive(built, tmp_path / "a")
    for damage in (damages.gap, log_and_head_lost):
        damage(built)
        assert run_cli(built, "recover", "apply", "--from", source).code == 0
        head = built.log.head("s-1")
        assert head is not None
        assert (head.policy, head.quarantined) == (policy, False)


@pytest.mark.parametrize("last", ["completed", "expired", "handoff"])
def test_the_gate_is_as_it_was(built: World, tmp_path: Path, last: str) -> None:
    built.log.append("s-1", did(last, "zoe"))
    built.project()
    source, head = archive(built, tmp_path / "a"), packed_head(built)
    log_and_head_lost(built)
    assert run_cli(built, "recover", "apply", "--from", source).code == 0
    assert packed_head(built) == head
    assert_clean(built)


@pytest.mark.parametrize("has_head", [True, False])
def test_a_log_that_begins_at_a_horizon_is_completed_from_there(built: World, tmp_path: Path, has_head: bool) -> None:
    """What is archived stays in the archive; also where the head is lost, which says so too."""
    keys, whole, source = built.keyspace.of("s-1"), entries(built), archive(built, tmp_path / "a")
    head = built.log.head("s-1")
    assert head is not None
    horizon = next(entry_id for entry_id, _ in whole if entry_id.startswith(b"54-"))
    digest = next(fields[b"d"] for entry_id, fields in whole if entry_id == horizon)
    built.redis.hset(keys.hold("s-1"), mapping={"horizon": "54", "horizon_digest": digest})
    archived = Head(head.seq, head.digest, head.gate, head.at_ms, "a")
    built.redis.set(keys.head("s-1"), f"{archived.seq} {archived.digest} {archived.gate} {archived.at_ms} a")
    built.redis.xdel(keys.log("s-1"), *(entry_id for entry_id, _ in whole if int(entry_id.split(b"-")[0]) <= 54))
    kept = entries(built)
    built.redis.xdel(keys.log("s-1"), "57-1")
    if not has_head:
        damages.head_missing(built)

    (graft,) = Grafting(built.projections, built.log, source_of(built, source), who="ann").apply(["s-1"])

    assert isinstance(graft, Graft)
    assert (graft.prefix, graft.commits, graft.seq) == (56, 1, 60)
    assert entries(built) == kept
    after = built.log.head("s-1")
    assert after == archived


# -- the function ----------------------------------------------------------------------------------------------------


def call_of(world: World) -> tuple[list[str], list[Any]]:
    """A call that completes `s-1`, of which the last two commits are lost, in one step."""
    keys, identity = world.keyspace.of("s-1"), world.log.identity
    commits = list(world.log.read("s-1"))
    names = [
        *(keys.meta, keys.sessions, keys.feed, keys.log("s-1"), keys.head("s-1"), keys.hold("s-1"), keys.lost),
        *(keys.audit, keys.damaged(1, "s-1"), keys.graft("s-1"), keys.session_index),
    ]
    damages.tail_lost(world)
    base = genesis("s-1")
    arguments: list[Any] = [
        *(identity.store, identity.epoch, "s-1", 0, base, 0, base, "over"),
        *(packed_head(world), entries(world)[-1][0], "o", 60, "ann", "why", 0),
    ]
    for commit in commits:
        count = commit.last_seq - commit.first_seq + 1
        arguments += [count, commit.at_ms, commit.digest, commit.body, ""]
    return names, arguments


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        (0, "another", "STORE_CHANGED"),
        (1, "0", "EPOCH_CHANGED"),
        (2, "s-2", "ARGUMENTS_INVALID"),
        (3, "1", "ARGUMENTS_INVALID"),
        (4, "0" * 20, "MOVED"),
        (6, "0" * 20, "MOVED"),
        (7, "away", "ARGUMENTS_INVALID"),
        (8, "", "MOVED"),
        (8, "60 00 o 1 -", "MOVED"),
        (9, "", "MOVED"),
        (9, "60-1", "MOVED"),
        (10, "z", "ARGUMENTS_INVALID"),
        (11, "x", "ARGUMENTS_INVALID"),
        (14, "1", "ARGUMENTS_INVALID"),
        (15, "2", "CHAIN"),
        (16, "1", "CHAIN"),
        (17, "0" * 20, "CHAIN"),
        (18, "x", "CHAIN"),
    ],
)
def test_the_function_takes_nothing_but_what_it_finds(built: World, place: int, value: str, word: str) -> None:
    """Whoever calls it: what does not fit is refused, and nothing is written."""
    names, arguments = call_of(built)
    arguments[place] = value
    before = built.store.snapshot()
    try:
        (found, *_) = built.redis.fcall("muster_graft_1", len(names), *names, *arguments)
    except redis.ResponseError as refusal:
        found = str(refusal).split()[0].encode()
    assert found == word.encode()
    assert built.store.snapshot() == before


def test_the_function_goes_on_from_nothing_but_what_was_built(built: World) -> None:
    """Two who build at a time, of different sources: neither goes on from the other's."""
    names, arguments = call_of(built)
    keys, base = built.keyspace.of("s-1"), genesis("s-1")
    other, body = list[Any](), encode_body([did("start")])
    digest = base
    for seq in range(1, 4):
        digest = chain(digest, "s-1", seq, 1, seq, body)
        other += [1, seq, digest, body, ""]
    building = [*arguments[:7], "", "", "", "", 0, "", "", 0, *other]
    stands = [b"3", digest.encode()]
    assert built.redis.fcall("muster_graft_1", len(names), *names, *building) == [b"BUILT", *stands]
    before = built.store.snapshot()

    mine = next(commit for commit in built.log.read("s-1") if commit.last_seq == 3)
    on = [*arguments[:5], 3, mine.digest, *arguments[7:15], *arguments[30:]]
    assert built.redis.fcall("muster_graft_1", len(names), *names, *on) == [b"MOVED", *stands]
    assert built.store.snapshot() == before
    assert built.redis.fcall("muster_graft_1", len(names), *names, *arguments)[0] == b"GRAFTED"
    assert asides(built, keys.graft("s-1").encode()) == []


def test_the_index_says_no_more_that_it_is_quarantined(built: World, tmp_path: Path) -> None:
    """In the same step: nobody has to build anything for it."""
    source, keys = archive(built, tmp_path / "a"), built.keyspace.of("s-1")
    damages.gap(built)
    built.recover()
    assert built.redis.zscore(keys.session_index, indexing.quarantined("s-1")) is not None
    list(Grafting(built.projections, built.log, source_of(built, source), who="ann").apply(["s-1"]))
    assert built.redis.zscore(keys.session_index, indexing.quarantined("s-1")) is None


def test_nobody_is_told_again_of_what_the_views_knew(built: World, tmp_path: Path) -> None:
    """Also where the head is lost: of what they did not know, the feed tells."""
    source, keys = archive(built, tmp_path / "a"), built.keyspace.of("s-1")
    total, view = built.redis.hget(keys.meta, "total"), built.projections.views(["s-1"])
    log_and_head_lost(built)
    list(Grafting(built.projections, built.log, source_of(built, source), who="ann").apply(["s-1"]))
    assert built.redis.hget(keys.meta, "total") == total
    log_and_head_lost(built)
    built.redis.delete(keys.session_view("s-1"), keys.checkpoints("s-1"))

    assert run_cli(built, "recover", "apply", "--from", source).code == 0

    assert int(built.redis.hget(keys.meta, "total")) == int(total) + 60
    assert_clean(built)
    assert built.projections.views(["s-1"]) == view


@pytest.mark.parametrize("place", range(11))
def test_the_function_takes_the_keys_of_its_session_alone(built: World, place: int) -> None:
    names, arguments = call_of(built)
    names[place] = built.keyspace.of("s-2").log("s-2")
    before = built.store.snapshot()
    with pytest.raises(redis.ResponseError, match="ARGUMENTS_INVALID"):
        built.redis.fcall("muster_graft_1", len(names), *names, *arguments)
    assert built.store.snapshot() == before


def test_the_function_leaves_a_fork_that_is_being_made_alone(built: World) -> None:
    names, arguments = call_of(built)
    built.redis.hset(built.keyspace.of("s-1").hold("s-1"), "code", "FORK_UNFINISHED")
    before = built.store.snapshot()
    assert built.redis.fcall("muster_graft_1", len(names), *names, *arguments) == [b"MOVED"]
    assert built.store.snapshot() == before


def test_the_function_puts_no_log_aside_in_the_place_of_another(built: World) -> None:
    names, arguments = call_of(built)
    built.redis.xadd(names[8], {"x": "y"})
    before = built.store.snapshot()
    with pytest.raises(redis.ResponseError, match="ARGUMENTS_INVALID"):
        built.redis.fcall("muster_graft_1", len(names), *names, *arguments)
    assert built.store.snapshot() == before


@pytest.mark.parametrize("session", ["s-2", "s-3"])
def test_the_function_makes_no_session_where_none_can_be(built: World, session: str) -> None:
    """In a partition that is not its own."""
    names, arguments = call_of(built)
    elsewhere = next(keys for keys in built.keyspace.partitions if keys is not built.keyspace.of(session))
    named = [name.partition("}")[2].replace("s-1", session) for name in names]
    names = [elsewhere.meta.removesuffix(":meta") + name for name in named]
    base, body = genesis(session), encode_body([did("start")])
    digest = chain(base, session, 1, 1, 1, body)
    stands = [0, base, 0, base, "over", "", "", "o", 0, "ann", "why", 1, 1, 10, 1, 1, digest, body, ""]
    before = built.store.snapshot()
    found = built.redis.fcall("muster_graft_1", len(names), *names, *arguments[:2], session, *stands)
    assert found[:2] == [b"REFUSED", b"PARTITION_WRONG"]
    assert built.store.snapshot() == before


def test_the_function_never_takes_away_what_was_acknowledged(built: World) -> None:
    """What the head says must be in what takes the log's place."""
    names, arguments = call_of(built)
    before = built.store.snapshot()
    assert built.redis.fcall("muster_graft_1", len(names), *names, *arguments[:-5]) == [b"FORK", b"60"]
    assert built.store.snapshot() == before
    assert built.redis.fcall("muster_graft_1", len(names), *names, *arguments)[0] == b"GRAFTED"
    assert built.verify() == []
    assert built.log.append("s-1", notes(1)).first_seq == 61
