"""`muster parked`: sessions that wait at their last good commit are listed, grouped, shown and tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec
import pytest

from projections import store as store_module
from projections.parking import fingerprint
from projections.store import Parked
from tests.conftest import Store
from tests.projections.world import World, did, foreign_append, lying_append, run_cli

UNREADABLE = ("bad-a", "bad-b")
ILLEGAL = "lied"
#: Another reason than there is, met seven times.
OTHERWISE = msgspec.json.encode(Parked("EVENT_ILLEGAL", "it was something else", 1, "0123456789ab", 7))


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A store with twelve good sessions, two with a body nobody can read, and one whose event lied about its kind."""
    world = World(make_store(server_url, partitions=4))
    world.sessions(12)
    for number, name in enumerate(UNREADABLE):
        world.log.append(name, [did("modified") for _ in range(number + 1)])
        foreign_append(world.store, name, ".", b"\xc1\xc1")
    world.log.append(ILLEGAL, did("completed"))
    lying_append(world.store, ILLEGAL, did("modified"), ".")
    world.project()
    return world


def park_by_hand(
    world: World, session: str, cause: str = "an older worker could not read it", first_bad_seq: int = 4
) -> None:
    """As an older worker would have: with the fields it knew."""
    reason = {"code": "EVENT_UNREADABLE", "cause": cause, "first_bad_seq": first_bad_seq}
    world.redis.hset(world.keyspace.of(session).parked("sessions"), session, msgspec.json.encode(reason))


def reason_of(world: World, session: str) -> Parked | None:
    (reason,) = world.projections.parked(world.keyspace.partition_of(session), [session])
    return reason


def test_the_same_trouble_has_one_fingerprint_in_any_session(world: World) -> None:
    """What differs from session to session is left out of it: ids, seqs and hex; another trouble is another one."""
    rows = {row["session"]: row for row in run_cli(world, "parked", "ls").rows}

    assert rows.keys() == {*UNREADABLE, ILLEGAL}
    assert rows["bad-a"]["first_bad_seq"] != rows["bad-b"]["first_bad_seq"]
    assert rows["bad-a"]["fingerprint"] == rows["bad-b"]["fingerprint"] != rows[ILLEGAL]["fingerprint"]
    same = {
        fingerprint("LOG_GAP", f"the log of session {name} ends at seq {seq}, not at {digest}: event {id}", name)
        for name, seq, digest, id in (
            ("s", 1, "00ff00ff", "550e8400-e29b-41d4-a716-446655440000"),
            ("order-17", 256, "deadbeef", "11111111-cafe-beef-dead-abcdefabcdef"),
            ("a.b", 3, "7", "4"),
        )
    }
    assert len(same) == 1
    assert len(same.pop()) == 12
    assert len({fingerprint(code, cause, "s") for code in ("A", "B") for cause in ("x", "y")}) == 4


def test_ls_says_why_and_is_narrowed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By fingerprint, code and partition; however many pages there are."""
    monkeypatch.setattr(store_module, "MEMBER_PAGE", 1)
    rows = {row["session"]: row for row in run_cli(world, "parked", "ls").rows}
    bad = rows["bad-a"]

    assert {**bad, "cause": ""} == {
        "schema": "muster.parked/1",
        "session": "bad-a",
        "partition": world.keyspace.partition_of("bad-a"),
        "code": "EVENT_UNREADABLE",
        "fingerprint": bad["fingerprint"],
        "first_bad_seq": 2,
        "attempts": 1,
        "cause": "",
    }
    assert "cannot be decoded" in bad["cause"]

    def listed(*options: str) -> set[str]:
        return {row["session"] for row in run_cli(world, "parked", "ls", *options).rows}

    assert listed("--code", "EVENT_ILLEGAL") == {ILLEGAL}
    assert listed("--fingerprint", bad["fingerprint"]) == set(UNREADABLE)
    assert listed("--fingerprint", bad["fingerprint"], "--code", "EVENT_ILLEGAL") == set()
    for partition in range(4):
        here = {name for name, row in rows.items() if row["partition"] == partition}
        assert listed("--partition", str(partition)) == here
    assert run_cli(world, "parked", "ls", "--partition", "4").code == 9


def test_many_parked_sessions_are_each_listed_once(world: World) -> None:
    """Beyond what the server keeps in one piece, so that it is read page by page."""
    names = {f"old-{number}" for number in range(3000)}
    with world.redis.pipeline() as pipe:
        for name in names:
            reason = Parked("EVENT_UNREADABLE", f"session {name} is old", 1)
            pipe.hset(world.keyspace.of(name).parked("sessions"), name, msgspec.json.encode(reason))
        pipe.execute()

    listed = [row["session"] for row in run_cli(world, "parked", "ls").rows]
    groups = run_cli(world, "parked", "ls", "--by-fingerprint").rows

    assert len(listed) == len(set(listed))
    assert set(listed) == names | {*UNREADABLE, ILLEGAL}
    assert [group["sessions"] for group in groups] == [3000, 2, 1]


def test_groups_have_one_row_a_trouble(world: World) -> None:
    """The most frequent first, with an example."""
    first, second = run_cli(world, "parked", "ls", "--by-fingerprint").rows

    assert (first["schema"], first["code"], first["sessions"]) == ("muster.parked-group/1", "EVENT_UNREADABLE", 2)
    assert (first["example"], second["example"], second["sessions"]) == ("bad-a", ILLEGAL, 1)
    assert first["cause"] == run_cli(world, "parked", "show", "bad-a").row["cause"]


def test_show_shows_one_and_says_if_it_is_not_parked(world: World) -> None:
    (listed,) = run_cli(world, "parked", "ls", "--code", "EVENT_ILLEGAL").rows

    assert run_cli(world, "parked", "show", ILLEGAL).row == listed
    for name in ("s-1", "nobody"):
        ran = run_cli(world, "parked", "show", name)
        assert (ran.code, ran.out) == (4, "")
        assert "NOT_PARKED" in ran.err


def test_a_dry_run_and_a_slip_touch_nothing(world: World) -> None:
    """It says how many there are; one wrong name among good ones stops all of them; so does naming none."""
    before = world.store.snapshot()

    dry = run_cli(world, "parked", "retry", "--all", "--dry-run")
    slip = run_cli(world, "parked", "retry", "bad-a", "s-1")

    assert (dry.code, dry.out, "3 parked sessions" in dry.err) == (0, "", True)
    assert (slip.code, "NOT_PARKED" in slip.err) == (4, True)
    assert run_cli(world, "parked", "retry").code == 2
    assert run_cli(world, "parked", "retry", "bad-a", "--all").code == 2
    assert world.store.snapshot() == before


def test_what_is_still_bad_stays_parked_and_is_counted(world: World) -> None:
    """Exit 7 and one attempt more, for those that were meant alone."""
    views = world.derived()
    same = run_cli(world, "parked", "show", "bad-a").row["fingerprint"]

    ran = run_cli(world, "parked", "retry", "--fingerprint", same)
    assert (ran.code, ran.row) == (7, {"schema": "muster.parked-retry/1", "tried": 2, "moving": 0, "still_parked": 2})
    assert {row["session"]: row["attempts"] for row in run_cli(world, "parked", "ls").rows} == {
        **dict.fromkeys(UNREADABLE, 2),
        ILLEGAL: 1,
    }
    assert run_cli(world, "parked", "retry", "bad-a", "bad-a").row["tried"] == 1
    assert run_cli(world, "parked", "retry", "--code", "EVENT_ILLEGAL").row["still_parked"] == 1
    assert {row["session"]: row["attempts"] for row in run_cli(world, "parked", "ls").rows} == {
        "bad-a": 3,
        "bad-b": 2,
        ILLEGAL: 2,
    }
    assert world.derived() == views


def test_attempts_are_no_drift_and_outlive_a_rebuild(world: World) -> None:
    """The validator and an ordinary rebuild take the trouble for the same one, and write nothing for it."""
    findings = world.codes()
    reason = reason_of(world, "bad-b")
    assert reason is not None
    park_by_hand(world, "bad-b", reason.cause, reason.first_bad_seq)  # without a fingerprint
    run_cli(world, "parked", "retry", "bad-a")
    stored = [world.redis.hgetall(keys.parked("sessions")) for keys in world.keyspace.partitions]

    assert world.codes() == findings
    assert run_cli(world, "projection", "rebuild").row["changed"] == 0

    assert [world.redis.hgetall(keys.parked("sessions")) for keys in world.keyspace.partitions] == stored
    assert world.codes() == findings
    # a rebuild that finds another reason writes that one, and keeps the count
    world.redis.hset(world.keyspace.of("bad-a").parked("sessions"), "bad-a", OTHERWISE)
    run_cli(world, "projection", "rebuild")
    after = reason_of(world, "bad-a")
    assert after is not None
    assert (after.code, after.first_bad_seq, after.attempts) == ("EVENT_UNREADABLE", 2, 7)
    assert world.codes() == findings


def test_a_session_whose_cause_is_gone_moves_again(world: World) -> None:
    """Its view is the fold of all it missed, totals are exact, and what is appended next is projected as ever."""
    for name in ("s-1", "s-2"):
        park_by_hand(world, name)
    for name in ("s-1", "s-2", "s-3"):
        world.log.append(name, [did("modified", "zoe"), did("tool.called", "ann")])
    world.project()
    assert [world.views.session(name)["seq"] for name in ("s-1", "s-3")] == [3, 5]
    assert reason_of(world, "s-1") != reason_of(world, "bad-a")

    ran = run_cli(world, "parked", "retry", "s-1")

    assert (ran.code, ran.row["moving"], ran.row["still_parked"]) == (0, 1, 0)
    assert reason_of(world, "s-1") is None
    assert reason_of(world, "s-2") is not None
    assert world.views.session("s-1")["seq"] == 5
    ran = run_cli(world, "parked", "retry", "--all")
    assert (ran.code, ran.row["tried"], ran.row["moving"], ran.row["still_parked"]) == (7, 4, 1, 3)
    world.log.append("s-1", did("modified", "zoe"))
    world.project()
    assert world.views.session("s-1")["seq"] == 6
    assert world.views.agent("zoe")["events"] == 4
    assert {finding.session for finding in world.verify()} == {*UNREADABLE, ILLEGAL}


def test_after_a_retry_everything_is_the_fold(server_url: str, make_store: Callable[..., Store]) -> None:
    """In a store where nothing else is wrong, verification finds nothing; commits not projected yet are not skipped."""
    world = World(make_store(server_url, partitions=4))
    names = world.sessions(12)
    world.project()
    park_by_hand(world, "s-1")
    for name in names:
        world.log.append(name, did("modified", "zoe"))
    world.project()
    for name in names:
        world.log.append(name, did("modified", "eve"))

    assert run_cli(world, "parked", "retry", "--all").code == 0
    world.project()

    assert world.verify() == []
    world.assert_views_are_folds()


def test_others_go_on_while_one_is_tried(world: World) -> None:
    """Workers project all partitions while an operator retries again and again."""
    park_by_hand(world, "s-1")
    with world.workers(1) as children:
        world.wait_until_shared(children)
        assert run_cli(world, "parked", "retry", "s-1").code == 0
        for _ in range(3):
            world.log.append("s-1", did("modified"))
            world.log.append("s-2", did("modified"))
            assert run_cli(world, "parked", "retry", "--all").code == 7
        world.wait_until_caught_up()

    assert [world.views.session(name)["seq"] for name in ("s-1", "s-2")] == [6, 6]
    assert {finding.session for finding in world.verify()} == {*UNREADABLE, ILLEGAL}


def test_an_entry_that_cannot_be_read_is_shown_and_mended(world: World) -> None:
    """It hides nobody else, parks as before, and gives way to the right reason, or to none."""
    for name in ("bad-a", "s-1"):
        world.redis.hset(world.keyspace.of(name).parked("sessions"), name, b"{\xff")

    rows = {row["session"]: row for row in run_cli(world, "parked", "ls").rows}
    assert rows.keys() == {*UNREADABLE, ILLEGAL, "s-1"}
    assert (rows["s-1"]["code"], rows["s-1"]["first_bad_seq"]) == ("KEY_DAMAGED", 0)
    assert run_cli(world, "parked", "show", "bad-a").row == rows["bad-a"]
    found = {finding.session: finding.code for finding in world.verify()}
    assert found == {**dict.fromkeys(UNREADABLE, "EVENT_UNREADABLE"), ILLEGAL: "EVENT_ILLEGAL", "s-1": "SESSION_PARKED"}
    refused = run_cli(world, "parked", "discard", "bad-a", "--why", "x")
    assert (refused.code, "DISCARD_REFUSED" in refused.err) == (9, True)

    ran = run_cli(world, "parked", "retry", "--code", "KEY_DAMAGED")

    assert (ran.row["moving"], ran.row["still_parked"]) == (1, 1)
    reason = reason_of(world, "bad-a")
    assert reason is not None
    assert (reason.code, reason.first_bad_seq) == ("EVENT_UNREADABLE", 2)
    assert reason_of(world, "s-1") is None


def test_every_retry_is_audited(world: World) -> None:
    """Who tried which session again, and what came of it, also where no view was replaced."""
    park_by_hand(world, "s-1")

    run_cli(world, "parked", "retry", "s-1", "bad-a")

    told = {}
    for keys in world.keyspace.partitions:
        for _, entry in world.redis.xrange(keys.audit):
            if entry[b"what"] == b"parked session tried again":
                assert entry[b"who"].startswith(b"recovery:")
                told[entry[b"session"]] = entry[b"why"]
    assert told == {b"s-1": b"rebuild", b"bad-a": b"EVENT_UNREADABLE"}


def test_a_session_is_told_of_once_though_the_server_repeats_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hash that shrinks while it is read is told of twice in part: what was read already is left out."""
    monkeypatch.setattr(store_module, "MEMBER_PAGE", 100)
    partition, names = 0, [f"old-{number}" for number in range(8192)]
    key = world.keyspace.partitions[partition].parked("sessions")
    reason = msgspec.json.encode(Parked("EVENT_UNREADABLE", "it is old", 1))
    world.redis.hset(key, mapping=dict.fromkeys(names, reason))

    def shrunk_after(pages: Iterable[Iterable[str]]) -> list[str]:
        """What is told when all but those told of first are deleted in the middle."""
        world.redis.hset(key, mapping=dict.fromkeys(names, reason))
        told: list[str] = []
        for number, page in enumerate(pages):
            told += page
            if number == 2:
                world.redis.hdel(key, *(set(names) - set(told)))
                for name in told * 30:  # the server shrinks it step by step, with every access
                    world.redis.hget(key, name)
        return told

    def raw() -> Iterator[list[str]]:
        cursor = None
        while cursor != 0:
            cursor, page = world.redis.hscan(key, cursor or 0, count=store_module.MEMBER_PAGE)
            yield [name.decode() for name in page]

    repeated = shrunk_after(raw())
    told = shrunk_after(world.projections.parked_pages(partition))

    assert len(repeated) > len(set(repeated)), "the server did not repeat anything, so this proves nothing"
    assert len(told) == len(set(told))
