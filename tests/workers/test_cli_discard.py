"""`muster parked discard`: a poison commit is passed over for ever, by every fold, and its session goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from domain import Conflict, Receipt
from domain.log.skips import Skip
from projections import session_view
from projections.rebuild import Rebuild
from projections.store import Parked
from tests.conftest import Store
from tests.projections.world import World, did, foreign_append, lying_append, notes, only, raised_code, run_cli

BAD = ("bad-a", "bad-b", "bad-c")
LIED = "lied"
WHY = ("--why", "the importer of July wrote it, ticket 7")


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """Twelve good sessions, three with a body nobody can read, one whose event lied about its kind; all went on since.

    `lied`: 1 to 60 notes by zoe, 61 completed, 62 and 63 modified that claimed to be `start` and a note, 64 to 123.
    """
    world = World(make_store(server_url, partitions=4))
    world.sessions(12)
    for number, name in enumerate(BAD):
        world.log.append(name, [did("modified", "ann") for _ in range(number + 1)])
        foreign_append(world.store, name, "..", b"\xc1\xc1")
        world.log.append(name, did("modified", "eve"))
    world.log.append(LIED, notes(60, "zoe"))
    world.project()
    world.log.append(LIED, did("completed", "zoe"))
    foreign_append(world.store, LIED, "s.", encoded(did("modified", "eve"), did("tool.called", "eve")))
    world.log.append(LIED, did("start", "bob"))
    world.log.append(LIED, notes(59, "bob"))
    world.project()
    return world


def encoded(*events: Any) -> bytes:
    return msgspec.msgpack.encode(events)


def skips_of(world: World, session: str) -> list[Skip]:
    stored = world.redis.hget(world.keyspace.of(session).skips, session)
    return [] if stored is None else msgspec.json.decode(stored, type=list[Skip])


def discard(world: World, *arguments: str) -> Any:
    return run_cli(world, "parked", "discard", *arguments, *WHY)


def parked_names(world: World) -> set[str]:
    return {row["session"] for row in run_cli(world, "parked", "ls").rows}


def test_a_discarded_commit_is_passed_over_and_the_session_goes_on(world: World) -> None:
    """It takes up its seqs and counts for nobody; what came after it counts; what comes next is projected as ever."""
    before = world.views.session(LIED)
    assert before["seq"] == 61

    ran = discard(world, LIED)

    assert (ran.code, ran.row) == (
        0,
        {"schema": "muster.parked-discard/1", "discarded": 1, "moving": 1, "still_parked": 0},
    )
    view = world.views.session(LIED)
    assert (view["seq"], view["state"], view["last_type"]) == (123, "working", "tool.called")
    assert view["event_types"] == {"completed": 1, "muster.skipped": 2, "start": 1, "tool.called": 119}
    assert view["digest"] == world.store.open().head(LIED).digest  # type: ignore[union-attr]
    assert "eve" not in view["agents"]
    assert session_view.adds_up(session_view.decode(world.projections.views([LIED])[0] or b""))
    assert {agent: world.views.agent(agent)["events"] for agent in ("zoe", "bob")} == {"zoe": 61, "bob": 60 + 12}
    world.log.append(LIED, did("modified", "zoe"))
    world.project()
    assert world.views.session(LIED)["seq"] == 124
    assert world.views.agent("zoe")["events"] == 62
    assert {finding.session for finding in world.verify()} == set(BAD)


def test_afterwards_nothing_is_found_and_a_rebuild_gives_the_same_bytes(world: World) -> None:
    """Verification is clean; whatever is derived may be deleted, by parts or all, and comes back with the skips."""
    assert discard(world, LIED).code == 0
    assert discard(world, "--code", "EVENT_UNREADABLE").code == 0
    assert world.verify() == []
    world.assert_views_are_folds()
    right = world.derived()
    assert world.redis.hlen(world.keyspace.of(LIED).checkpoints(LIED)) > 1

    assert run_cli(world, "projection", "rebuild").row["changed"] == 0
    assert world.derived() == right
    world.redis.delete(*right)
    world.project()
    assert world.derived() == right

    # a view alone, built again by the batch that finds it missing
    world.redis.delete(world.keyspace.of(LIED).session_view(LIED))
    assert world.views.session(LIED)["seq"] == 123
    world.log.append(LIED, did("modified", "zoe"))
    world.project()
    assert world.verify() == []
    world.assert_views_are_folds()


def test_every_seq_around_and_inside_a_skip_can_be_read(world: World) -> None:
    """Within a discarded commit the state is that before it, a seq further, and there is no digest."""
    discard(world, LIED)

    at = {seq: world.views.session_at(LIED, seq) for seq in (61, 62, 63, 64)}

    assert [view["seq"] for view in at.values()] == [61, 62, 63, 64]
    assert [view["digest"] is None for view in at.values()] == [False, True, False, False]
    assert [view["state"] for view in at.values()] == ["completed", "completed", "completed", "working"]
    assert [view["event_types"].get("muster.skipped", 0) for view in at.values()] == [0, 1, 2, 2]
    world.redis.delete(world.keyspace.of(LIED).checkpoints(LIED))
    assert world.views.session_at(LIED, 62) == at[62]


def test_a_skip_is_kept_with_who_why_and_when_and_audited(world: World) -> None:
    """In truth beside the log, and in the audit stream; a second discard finds nothing and writes nothing."""
    audit = world.keyspace.of("bad-b").audit
    discard(world, "bad-b")

    (skip,) = skips_of(world, "bad-b")
    commits = list(world.log.read("bad-b"))
    assert (skip.from_seq, skip.to_seq, skip.digest) == (3, 4, commits[1].digest)
    assert (skip.who.startswith("recovery:"), skip.why) == (True, WHY[1])
    assert abs(skip.at - world.projections.server_ms()) < 60_000
    (entry,) = [e for _, e in world.redis.xrange(audit) if e[b"what"] == b"commit discarded" and e[b"seq"] == b"3"]
    assert (entry[b"who"].decode(), entry[b"why"].decode()) == (skip.who, skip.why)
    assert (entry[b"session"], entry[b"code"], entry[b"to_seq"]) == (b"bad-b", b"EVENT_UNREADABLE", b"4")

    again = discard(world, "bad-b")
    assert (again.code, "NOT_PARKED" in again.err) == (4, True)
    assert skips_of(world, "bad-b") == [skip]


def test_a_forged_skip_is_told_from_an_operators(world: World) -> None:
    """Beside a real one in the same session: recovery takes the forged one away alone, and says so in the audit."""
    discard(world, LIED)
    assert world.verify() != []  # the three others are parked still
    before, views = world.codes(), world.derived()
    real = skips_of(world, LIED)
    commit = next(world.log.read(LIED, after=63))
    forged = Skip(commit.first_seq, commit.last_seq, commit.digest, "me", "an accident", 1)
    keys = world.keyspace.of(LIED)
    world.redis.hset(keys.skips, LIED, msgspec.json.encode([*real, forged]))
    assert world.codes() == sorted([*before, "SKIP_FORGED"])

    assert run_cli(world, "recover", "apply").code == 7

    assert skips_of(world, LIED) == real
    assert (world.codes(), world.derived()) == (before, views)
    (noted,) = [entry for _, entry in world.redis.xrange(keys.audit) if entry[b"what"] == b"forged skip removed"]
    assert (noted[b"session"], noted[b"seq"]) == (LIED.encode(), b"64")


def test_a_filter_is_counted_dry_and_discards_all_it_says(world: World) -> None:
    """By fingerprint or code, in all partitions; others stay parked."""
    same = run_cli(world, "parked", "show", "bad-a").row["fingerprint"]
    before = world.store.snapshot()

    dry = discard(world, "--fingerprint", same, "--dry-run")
    assert (dry.code, dry.out, "a commit of 3 parked sessions" in dry.err) == (0, "", True)
    assert world.store.snapshot() == before

    ran = discard(world, "--fingerprint", same)
    assert (ran.code, ran.row["discarded"], ran.row["moving"]) == (0, 3, 3)
    assert parked_names(world) == {LIED}
    assert [world.views.session(name)["seq"] for name in BAD] == [4, 5, 6]
    assert [world.views.agent("ann")["events"], world.views.agent("eve")["events"]] == [6 + 12, 3 + 12]


def test_bad_input_writes_nothing(world: World) -> None:
    """A reason is required; one wrong name among good ones stops all of them; so does a trouble that is no poison."""
    damaged = "s-1"
    world.log.append(damaged, did("modified"))
    world.redis.xdel(world.keyspace.of(damaged).log(damaged), "4-1")
    world.log.append(damaged, did("modified"))
    world.project()
    assert LIED in parked_names(world)
    assert damaged in parked_names(world)
    before = world.store.snapshot()

    assert run_cli(world, "parked", "discard", LIED).code == 2
    for why in ("", "  ", "a\nb", "x" * 1001):
        ran = run_cli(world, "parked", "discard", LIED, "--why", why)
        assert (ran.code, "USAGE" in ran.err) == (9, True)
    assert discard(world).code == 2
    slip = discard(world, LIED, "s-2")
    assert (slip.code, "NOT_PARKED" in slip.err) == (4, True)
    reason = run_cli(world, "parked", "show", damaged).row
    for meant in ((LIED, damaged), (damaged, "--dry-run"), ("--code", reason["code"])):
        ran = discard(world, *meant)
        assert (ran.code, "DISCARD_REFUSED" in ran.err, "recover apply" in ran.err) == (9, True, True)
    assert world.store.snapshot() == before


def test_a_quarantined_session_is_not_discarded(world: World) -> None:
    """A damaged log is quarantine's business: no skip is written for it, whatever its entry in the list says."""
    name = "s-1"
    world.redis.xdel(world.keyspace.of(name).log(name), "2-1")
    world.recover()
    assert world.log.head(name).quarantined  # type: ignore[union-attr]
    assert "NOT_PARKED" in discard(world, name).err
    park(world, name, Parked("EVENT_ILLEGAL", "an older worker says so", 2))

    ran = discard(world, name)

    assert (ran.code, ran.row["discarded"], ran.row["still_parked"]) == (7, 0, 1)
    assert skips_of(world, name) == []


def park(world: World, session: str, reason: Parked) -> None:
    world.redis.hset(world.keyspace.of(session).parked("sessions"), session, msgspec.json.encode(reason))


def test_what_breaks_no_law_any_more_is_not_discarded(world: World) -> None:
    """The reason that is stored is not believed: a session whose log is whole moves on with all its commits."""
    park(world, "s-3", Parked("EVENT_ILLEGAL", "an older worker says so", 2))

    ran = discard(world, "s-3")

    assert (ran.code, ran.row["discarded"], ran.row["moving"]) == (0, 0, 1)
    assert skips_of(world, "s-3") == []
    assert world.views.session("s-3")["event_types"] == {"modified": 3}


def test_one_command_discards_one_commit_a_session(world: World) -> None:
    """A session that meets another bad commit is parked there, and says so; its operator decides again."""
    lying_append(world.store, "bad-a", did("completed"), ".")
    lying_append(world.store, "bad-a", did("modified"), ".")
    world.project()

    ran = discard(world, "bad-a")
    assert (ran.code, ran.row["discarded"], ran.row["moving"], ran.row["still_parked"]) == (7, 1, 0, 1)
    assert only([f for f in world.verify() if f.session == "bad-a"], "EVENT_ILLEGAL").first_bad_seq == 6
    assert discard(world, "bad-a").code == 0
    assert [(skip.from_seq, skip.to_seq) for skip in skips_of(world, "bad-a")] == [(2, 3), (6, 6)]
    assert world.views.session("bad-a")["seq"] == 6


def test_a_skip_that_does_not_fit_is_not_honoured(world: World) -> None:
    """Another digest or seq names no commit here: it is folded, and breaks its law again."""
    (commit,) = world.log.read(LIED, after=61, to=63)
    digests = ((63, "0" * 20), (62, commit.digest), (64, commit.digest))
    skips = [Skip(62, seq, digest, "ann", "a slip", 1) for seq, digest in digests]
    world.redis.hset(world.keyspace.of(LIED).skips, LIED, msgspec.json.encode(skips))

    assert run_cli(world, "parked", "retry", LIED).code == 7

    assert world.views.session(LIED)["seq"] == 61
    forged, *_ = [found for found in world.verify() if found.session == LIED]
    assert (forged.code, forged.first_bad_seq) == ("SKIP_FORGED", 62)
    world.recover()
    assert only([found for found in world.verify() if found.session == LIED], "EVENT_ILLEGAL").first_bad_seq == 62


def test_a_skipped_commit_must_be_as_it_was_appended(world: World) -> None:
    """Chain and density are checked through a skip: a log that is altered there is damaged, and found."""
    discard(world, LIED)
    discard(world, "bad-b")
    log = world.keyspace.of(LIED).log(LIED)
    entries = world.redis.xrange(log)
    world.redis.delete(log)
    for name, fields in entries:
        world.redis.xadd(log, {**fields, **({b"b": b"\xc1"} if name == b"63-2" else {})}, id=name)
    world.redis.xdel(world.keyspace.of("bad-b").log("bad-b"), "4-2")

    found = {finding.session: (finding.code, finding.first_bad_seq) for finding in world.verify()}

    assert found[LIED] == ("LOG_ALTERED", 62)
    assert found["bad-b"] == ("LOG_GAP", 3)


def test_the_head_stands_where_the_fold_does(world: World) -> None:
    """The gate follows the fold: what a discarded event claimed to do does not open or close a session."""
    name = "s-5"
    world.log.append(name, did("completed"))
    lying_append(world.store, name, did("modified"), "s")
    assert world.log.head(name).gate == "o"  # type: ignore[union-attr]
    world.project()

    assert discard(world, name).code == 0

    assert world.log.head(name).gate == "c"  # type: ignore[union-attr]
    assert raised_code(lambda: world.log.append(name, did("modified"))) == "GATE_REFUSED"
    world.log.append(name, did("start"))
    world.project()
    assert world.views.session(name)["state"] == "working"
    assert [f for f in world.verify() if f.session == name] == []


def test_a_discard_that_is_cut_off_is_completed_by_the_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the skip and the view, or with the lease lost there: one commit a command is discarded, and once."""
    lying_append(world.store, "bad-a", did("completed"), ".")
    lying_append(world.store, "bad-a", did("modified"), ".")
    sessions, cuts = Rebuild.sessions, iter([True])

    def cut_off(self: Rebuild, names: list[str]) -> Any:
        if next(cuts, False):
            raise Conflict("LEASE_TAKEN", "the lease was taken")
        return sessions(self, names)

    monkeypatch.setattr(Rebuild, "sessions", cut_off)
    ran = discard(world, "bad-a")
    assert (ran.row["discarded"], ran.row["still_parked"]) == (1, 1)
    assert [skip.from_seq for skip in skips_of(world, "bad-a")] == [2]

    cuts = iter([True, True])
    monkeypatch.setattr("workers.recovery.BUSY_WAIT_S", -1.0)
    assert discard(world, "bad-b").code == 6
    assert len(skips_of(world, "bad-b")) == 1
    assert "bad-b" in parked_names(world)
    cuts = iter(())
    assert discard(world, "bad-b").row == {
        "schema": "muster.parked-discard/1",
        "discarded": 0,
        "moving": 1,
        "still_parked": 0,
    }
    assert len(skips_of(world, "bad-b")) == 1


def test_workers_and_appends_go_on_while_commits_are_discarded(world: World) -> None:
    """Live workers honour the skip from the next batch on; the session is appended to all the while."""
    with world.workers(1) as children:
        world.wait_until_shared(children)
        for name in (*BAD, LIED):
            assert discard(world, name).code == 0
            assert isinstance(world.log.append(name, did("modified", "eve")), Receipt)
        world.wait_until_caught_up()

    assert world.verify() == []
    world.assert_views_are_folds()


def test_a_batch_honours_a_skip_of_what_it_brings(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A store that was restored may tell of the commit again after its skip: it is never parked then.

    A view that is there is moved on as ever, and not built again.
    """
    commits = []
    for name in ("s-1", "s-2"):
        foreign_append(world.store, name, ".", b"\xc1")
        commits.append(next(world.log.read(name, after=3)))
        skip = [Skip(4, 4, commits[-1].digest, "ann", "a bug", 1)]
        world.redis.hset(world.keyspace.of(name).skips, name, msgspec.json.encode(skip))
    world.redis.delete(world.keyspace.of("s-2").session_view("s-2"))

    world.project()

    assert parked_names(world) == {*BAD, LIED}
    assert [world.views.session(name)["event_types"]["muster.skipped"] for name in ("s-1", "s-2")] == [1, 1]
    assert [record.args for record in caplog.records] == [("s-2",)]
