"""A commit that kills whoever folds it parks its session, and all others go on. With real workers that really die."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec import structs

from domain.errors import Conflict
from projections import catchup
from projections.careful import ATTEMPTS, CarefulReader
from projections.catchup import Batch
from projections.lease import Leases, held_for_recovery
from projections.store import Parked
from tests.conftest import Store
from tests.projections.world import World, did, only, raised_code, run_cli
from tests.waiting import wait_until
from workers.child_process import start_child
from workers.following import STUCK_EXIT
from workers.partitions import HeldPartitions
from workers.process import Projector
from workers.supervisor import Supervisor

KILLER, SEQ = "killer", 5


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """Twelve sessions in two partitions, all projected; then new commits in all, one of which is deadly."""
    world = World(make_store(server_url, partitions=2))
    names = [*world.sessions(12), KILLER]
    world.log.append(KILLER, [did("modified", "ann"), did("modified", "eve"), did("modified", "bob")])
    world.project()
    for name in names:
        for _ in range(3):
            world.log.append(name, did("modified", "zoe"))
    return world


@contextmanager
def mortal_workers(world: World, cause: Path, number: int = 1, how: str = "exit") -> Iterator[list[str]]:
    """Workers kept alive by a supervisor, which die of the deadly commit as long as the cause is there."""
    cause.touch()
    environ = {**world.environ(lease_ttl_ms=500, beat_ms=60), "MORTAL_FILE": str(cause)}
    command = [sys.executable, "-m", "tests.workers.mortal", KILLER, str(SEQ), how]
    said: list[str] = []
    slots = {f"mortal-{slot}": lambda: start_child(command, env=environ) for slot in range(number)}
    # Every death is taken for an accident: how long a supervisor waits after a row of them is its own tests' concern.
    supervisor = Supervisor(slots, log=said.append, settled_after_s=0)
    supervisor.start()
    try:
        yield said
    finally:
        supervisor.stop(timeout_s=20)


def reason_of(world: World) -> Parked | None:
    (reason,) = world.projections.parked(world.keyspace.partition_of(KILLER), [KILLER])
    return reason


def owner(world: World) -> dict[bytes, bytes]:
    """What is noted about the holders of the killer's partition."""
    fields: dict[bytes, bytes] = world.redis.hgetall(world.keyspace.of(KILLER).owner("sessions"))
    return {name: value for name, value in fields.items() if name == b"crashes" or name.startswith(b"try:")}


@pytest.mark.parametrize(
    ("lost", "how"), [("nothing", "exit"), ("the view", "exit"), ("everything derived", "exit"), ("nothing", "raise")]
)
def test_the_killer_is_parked_and_all_others_go_on(world: World, tmp_path: Path, lost: str, how: str) -> None:
    """Whatever the worker was doing when it died: a batch, a view built again, a partition built again.

    So does a batch that fails time and again, with what no fold should raise.
    """
    keys = world.keyspace.of(KILLER)
    if lost == "the view":
        world.redis.delete(keys.session_view(KILLER))
    elif lost == "everything derived":
        world.redis.delete(*world.derived())
    with mortal_workers(world, tmp_path / "cause", how=how) as said:
        wait_until(lambda: reason_of(world) is not None, timeout_s=60, message="the killer is parked")
        world.wait_until_caught_up()
        wait_until(lambda: not owner(world), message="the notes are cleared")
        deaths = len(said)
        # who lives on works as ever, also in the killer's partition, and the killer stays where it is
        for name in (*(f"s-{number}" for number in range(12)), KILLER):
            world.log.append(name, did("modified", "zoe"))
        world.wait_until_caught_up()
        assert len(said) == deaths

    reason = reason_of(world)
    assert reason is not None
    assert (reason.code, reason.first_bad_seq, reason.attempts) == ("WORKER_KILLED", SEQ, ATTEMPTS)
    assert f"seq {SEQ}" in reason.cause
    assert {view["session"]: view["seq"] for view in world.views.sessions()} == {
        **{f"s-{number}": 7 for number in range(12)},
        KILLER: SEQ - 1,
    }
    assert world.views.agent("zoe")["events"] == 12 * 4 + 1
    assert only(world.verify(), "WORKER_KILLED").session == KILLER

    # nobody but a retry folds it again
    world.recover()
    assert run_cli(world, "projection", "rebuild").row["changed"] == 0
    assert reason_of(world) == reason

    assert run_cli(world, "parked", "retry", KILLER).code == 0
    assert world.verify() == []
    world.assert_views_are_folds()
    world.log.append(KILLER, did("modified"))
    world.project()
    assert world.views.session(KILLER)["seq"] == 8


def test_a_killer_can_be_discarded(world: World, tmp_path: Path) -> None:
    """Its commit is passed over without being folded by anybody, workers included."""
    cause = tmp_path / "cause"
    with mortal_workers(world, cause) as said:
        wait_until(lambda: reason_of(world) is not None, timeout_s=40)
        world.wait_until_caught_up()
        deaths = len(said)
        assert run_cli(world, "parked", "discard", KILLER, "--why", "it kills").code == 0
        world.redis.delete(world.keyspace.of(KILLER).session_view(KILLER))
        world.log.append(KILLER, did("modified", "zoe"))
        world.wait_until_caught_up()
        assert len(said) == deaths

    assert world.views.session(KILLER)["event_types"] == {"modified": 6, "muster.skipped": 1}
    assert world.verify() == []
    world.assert_views_are_folds()


def test_a_cause_that_goes_away_leaves_no_trace(world: World, tmp_path: Path) -> None:
    """Workers that died of something else for a while: the careful batch succeeds, and the normal way returns."""
    cause = tmp_path / "cause"
    with mortal_workers(world, cause):
        wait_until(lambda: any(name.startswith(b"try:") for name in owner(world)), timeout_s=60)
        cause.unlink()
        world.wait_until_caught_up()
        wait_until(lambda: not owner(world), message="the notes are cleared")

    assert reason_of(world) is None
    assert world.verify() == []
    world.assert_views_are_folds()


def test_a_batch_that_never_returns_ends_its_process(world: World, tmp_path: Path) -> None:
    """As hard as a kill: the leases run out, and whoever takes over counts a death. Its lease was renewed till then."""
    cause = tmp_path / "cause"
    cause.touch()
    environ = {**world.environ(lease_ttl_ms=600_000, batch_deadline_s=1.0), "MORTAL_FILE": str(cause)}
    command = [sys.executable, "-m", "tests.workers.mortal", KILLER, str(SEQ), "hang"]
    child = start_child(command, env=environ)
    try:
        assert child.wait(timeout=60) == STUCK_EXIT
    finally:
        child.kill()
    partition = world.keyspace.partition_of(KILLER)
    holder = world.leases.owners()[partition]
    assert holder is not None

    expire(world, partition)
    claimed(world, "next", partition)

    assert as_holder(world, "other").crashes(partition) == 1
    assert reason_of(world) is None


def test_a_batch_that_gets_further_is_not_stuck() -> None:
    """The deadline is between one session and the next, not of a whole batch; and of batches in flight only."""
    partitions = HeldPartitions()
    for partition in (1, 2):
        partitions.adopt(partition, "token")
    held = partitions.ready()
    for partition in (1, 2):
        assert partitions.overdue(-1.0) == []
        assert partitions.hand_out(partition, "token")
        held[partition].moved_at -= 100
        assert partitions.overdue(60) == [partition]
        partitions.goes_on(partition)
        assert partitions.overdue(60) == []
        held[partition].moved_at -= 100
        partitions.finished(partition, "token", 7)
    assert partitions.overdue(60) == []


def test_a_batch_says_of_every_session_that_it_goes_on(world: World) -> None:
    """Of a batch of the feed, and of a partition that is built again from nothing."""
    partition = world.keyspace.partition_of(KILLER)
    moved: list[int] = []
    projector = Projector(world.projections, world.log, "a", goes_on=moved.append)
    token = claimed(world, "a", partition)
    batch = world.next_batch(partition, token)
    assert batch is not None
    projector.project(batch)
    assert moved == [partition] * len(batch.spans)

    moved.clear()
    world.redis.delete(world.keyspace.partitions[partition].cursor("sessions", 2))
    projector.project(Batch(partition, token, None, None, []))
    assert len(moved) > len(batch.spans)


# -- what is counted -------------------------------------------------------------------------------------------------


def as_holder(world: World, name: str) -> Leases:
    return Leases(world.log.client, world.keyspace, name)


def expire(world: World, partition: int) -> None:
    """As if the time of the lease were over."""
    world.redis.hset(world.keyspace.partitions[partition].owner("sessions"), "deadline", 1)


def claimed(world: World, name: str, partition: int) -> str:
    token = as_holder(world, name).claim(partition, ttl_ms=60_000)
    assert token is not None
    return token


def test_only_a_lease_that_ran_out_counts_as_a_death(world: World) -> None:
    """Not one that was given back, taken by force while it lived, or taken again by who had it."""
    leases = as_holder(world, "other")
    claimed(world, "a", 0)
    expire(world, 0)
    claimed(world, "a", 0)
    assert leases.crashes(0) == 0
    with held_for_recovery(as_holder(world, "recovery:x"), 0):
        assert leases.crashes(0) == 0
    claimed(world, "b", 0)
    assert leases.crashes(0) == 0

    for number, name in enumerate("cd", 1):
        expire(world, 0)
        claimed(world, name, 0)
        assert leases.crashes(0) == number
    leases.release(0, claimed(world, "d", 0))
    claimed(world, "f", 0)
    assert leases.crashes(0) == 0


def test_a_step_that_moves_the_cursor_forgets_the_dead(world: World) -> None:
    """Getting further is what counts; a step that leaves the cursor where it is proves nothing."""
    partition = world.keyspace.partition_of(KILLER)
    for name in "ab":
        claimed(world, name, partition)
        expire(world, partition)
    token = claimed(world, "c", partition)
    world.projections.begin(partition, token, "1 s", done="")
    at = world.projections.cursor(partition).position

    world.projections.step(partition, token=token, cursor_from=at, cursor_to=None, operations=[])
    assert owner(world).keys() == {b"crashes", b"try:1 s"}
    batch = world.next_batch(partition, token)
    assert batch is not None
    world.apply(batch)
    assert owner(world) == {}


def test_a_commit_is_counted_once_a_holder_and_anew_for_another(world: World) -> None:
    """Attempts are of one commit, by one holder after another; done is done; who lost the lease notes nothing."""
    partition = world.keyspace.partition_of(KILLER)

    def begin(token: str, commit: str, *, done: str = "") -> int:
        return world.projections.begin(partition, token, commit, done=done)

    first = claimed(world, "a", partition)
    assert [begin(first, "3 s"), begin(first, "3 s")] == [1, 1]
    expire(world, partition)
    second = claimed(world, "b", partition)
    assert raised_code(lambda: begin(first, "3 s")) == "LEASE_TAKEN"
    assert begin(second, "2 s") == 1
    assert [begin(second, "3 s", done="2 s"), begin(second, "3 s")] == [2, 2]
    assert begin(second, "1 t", done="3 s") == 1
    assert owner(world).keys() == {b"crashes", b"try:1 t"}
    assert begin(second, "", done="1 t") == 1
    assert owner(world).keys() == {b"crashes"}


def test_a_commit_is_noted_while_it_is_folded_and_no_longer(world: World) -> None:
    """One note at a time; none when a session is read to its end, so that nobody is blamed for what comes then."""
    partition = world.keyspace.partition_of(KILLER)
    reader = CarefulReader(world.projections, world.log, partition, claimed(world, "a", partition))

    noted = [list(owner(world)) for _ in reader.read(KILLER, after=4)]

    assert noted == [[b"try:5 killer"], [b"try:6 killer"]]
    assert owner(world) == {}


def test_a_careful_batch_is_a_batch(world: World) -> None:
    """It writes the same bytes, and leaves no notes; an illegal commit parks its session as ever."""
    other = World(world.store)
    partition = world.keyspace.partition_of(KILLER)
    token = claimed(world, "a", partition)
    expire(world, partition)
    token = claimed(world, "b", partition)
    batch = world.next_batch(partition, token)
    assert batch is not None
    catchup.apply(other.projections, other.log, structs.replace(batch, careful=True))
    assert owner(world) == {}
    world.leases.claim(partition, ttl_ms=1, force=True)
    world.project()

    assert world.verify() == []
    world.assert_views_are_folds()
    reader = CarefulReader(world.projections, world.log, partition, token)
    with pytest.raises(Conflict):
        list(reader.read(KILLER))
