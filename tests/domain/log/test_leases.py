"""Who may append: policies, leases with a fencing token, and handing a session off. The same on every log."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from domain import Append, Conflict, Damaged, Event, Refused
from domain.log.contract import Position
from tests.domain.log.logs import MakeLog, RunnableLog, assert_chained, ids, note, notes, refused
from tests.waiting import wait_until


def by(agent: str, id: str = "") -> Event:
    """An event of an agent's without any effect on the state."""
    return Event.of("note.made", actor=agent, id=id)


def over(log: RunnableLog, session: str, agent: str) -> None:
    """Takes a lease for so short that it is over when this returns, and leaves its token with the log."""
    log.lease(session, agent, 1)
    time.sleep(0.05)
    for _ in range(5):
        log.set_policy(session, "leased")  # a clock that ticks when it is read, ticks


# -- policies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True])
def test_a_strict_session_takes_exact_seqs_only(log: RunnableLog, begun: bool) -> None:
    """An append that may land anywhere is refused; one that says where it belongs, and a deduplicated one, are not."""
    if begun:
        log.append("s", note("0"))
    log.set_policy("s", "strict")
    seq = int(begun)

    error = refused(lambda: log.append("s", note("1")), Refused, "EXPECTED_REQUIRED")

    assert error.facts["actual"] == seq
    assert log.append("s", note("1"), expected=seq).last_seq == seq + 1
    assert log.append("s", notes("1", "2"), dedupe=True).last_seq == seq + 2
    head = log.head("s")
    assert head is not None
    assert head.policy == "strict"
    log.set_policy("s", "any")
    assert log.append("s", note("3")).last_seq == seq + 3


def test_a_session_with_a_policy_and_no_event_is_no_session_yet(log: RunnableLog) -> None:
    """It is listed when its first event is there."""
    log.set_policy("s", "strict")

    assert list(log.sessions()) == []
    assert log.append("s", note("1"), expected="new").first_seq == 1
    assert list(log.sessions()) == ["s"]


def test_an_unknown_policy_is_refused(log: RunnableLog) -> None:
    """A policy is one of three words."""
    refused(lambda: log.set_policy("s", "exclusive"), Refused, "FIELD_INVALID")  # type: ignore[arg-type]
    assert log.head("s") is None


# -- leases ----------------------------------------------------------------------------------------------------------


def test_only_the_holder_of_a_lease_appends(make_log: MakeLog) -> None:
    """Other agents are refused, through the same log and through another; a strict order is kept all the while."""
    log, other = make_log(), make_log()
    with log.lease("s", "a") as lease:
        assert lease.append(by("a", "1")).last_seq == 1
        assert log.append("s", by("a", "2")).last_seq == 2
        assert log.append("s", [by("a", "2"), by("a", "3")], dedupe=True).last_seq == 3
        refused(lambda: log.append("s", by("b", "4")), Refused, "LEASE_REQUIRED")
        refused(lambda: other.append("s", by("a", "4")), Refused, "LEASE_REQUIRED")
        held = refused(lambda: other.lease("s", "b"), Conflict, "LEASE_HELD")
        assert held.facts["holder"] == "a"
        assert held.facts["left_ms"] > 0
        refused(lambda: other.set_policy("s", "any"), Conflict, "LEASE_HELD")

    refused(lambda: log.append("s", by("a", "4")), Refused, "LEASE_REQUIRED")
    with other.lease("s", "b"):
        assert other.append("s", by("b", "4")).last_seq == 4
    other.set_policy("s", "any")
    assert log.append("s", by("c", "5")).last_seq == 5
    assert_chained("s", list(log.read("s")), log.head("s"))


def test_a_lease_may_be_taken_before_the_first_event(log: RunnableLog) -> None:
    """Then the session begins with an event of the holder's."""
    with log.lease("s", "a") as lease:
        assert list(log.sessions()) == []
        assert lease.append(by("a", "1"), expected="new").first_seq == 1


def test_a_holder_that_was_paused_past_its_deadline_is_refused(make_log: MakeLog) -> None:
    """Whether somebody else took the lease meanwhile or not; and what it appended before is still recognised."""
    log, other = make_log(), make_log()
    with log.lease("s", "a") as lease:
        first = lease.append(by("a", "1"), expected=0)
    over(log, "s", "a")

    refused(lambda: log.append("s", by("a", "2")), Conflict, "LEASE_LOST")
    with other.lease("s", "b"):
        other.append("s", by("b", "2"))
        lost = refused(lambda: log.append("s", by("a", "3")), Conflict, "LEASE_LOST")
        assert lost.facts["holder"] == "b"
        assert log.append("s", by("a", "1"), expected=0).digest == first.digest

    assert ids(log.read("s")) == ["1", "2"]


def test_every_append_moves_the_deadline_and_so_does_renewing(make_log: MakeLog) -> None:
    """A holder that gives signs of life keeps its lease; one that lost it cannot renew it."""
    log, other = make_log(), make_log()
    lease = log.lease("s", "a", 60_000)
    other.set_policy("s", "leased")

    def left() -> int:
        return int(str(refused(lambda: other.lease("s", "b"), Conflict, "LEASE_HELD").facts["left_ms"]))

    def is_moved(sign: Callable[[], object]) -> bool:
        sign()
        return left() > 59_980

    signs: list[Callable[[], object]] = [lambda: lease.append(by("a")), lease.renew]
    for sign in signs:
        wait_until(lambda: left() < 59_980, message="time goes on")
        wait_until(lambda sign=sign: is_moved(sign), message="the deadline is moved")  # type: ignore[misc]
    lease.release()

    with other.lease("s", "b"):
        refused(lease.renew, Conflict, "LEASE_LOST")
        lease.release()  # of what is lost nothing is given back
        assert other.append("s", by("b")).appended == 1


def test_an_agent_takes_its_own_lease_over_and_the_older_holder_is_fenced(make_log: MakeLog) -> None:
    """An agent that was started again need not wait for itself; what still runs under its name writes nothing more."""
    old, new = make_log(), make_log()
    old.lease("s", "a")
    old.append("s", by("a", "1"))

    with new.lease("s", "a"):
        refused(lambda: old.append("s", by("a", "2")), Conflict, "LEASE_LOST")
        assert new.append("s", by("a", "3")).last_seq == 2


@pytest.mark.parametrize("ttl_ms", [0, -1])
def test_a_lease_needs_time(log: RunnableLog, ttl_ms: int) -> None:
    """A lease that is over before it begins is refused."""
    refused(lambda: log.lease("s", "a", ttl_ms), Refused, "FIELD_INVALID")


def test_a_token_of_a_session_that_is_leased_no_more_is_refused(make_log: MakeLog) -> None:
    """Its holder believes in a right that is over; others append freely."""
    log, other = make_log(), make_log()
    over(log, "s", "a")
    other.set_policy("s", "any")

    refused(lambda: log.append("s", by("a", "1")), Conflict, "LEASE_LOST")
    assert other.append("s", by("b", "2")).last_seq == 1


def test_events_of_several_agents_carry_no_token(log: RunnableLog) -> None:
    """The holder's right is not lent to who writes with it."""
    with log.lease("s", "a"):
        refused(lambda: log.append("s", [by("a", "1"), by("b", "2")]), Refused, "LEASE_REQUIRED")


def test_a_lease_that_was_taken_again_outlives_the_older_one(log: RunnableLog) -> None:
    """Giving back the older one of the same agent gives back nothing."""
    older = log.lease("s", "a")
    with log.lease("s", "a"):
        older.release()
        assert log.append("s", by("a", "1")).last_seq == 1


def test_a_lease_that_was_given_back_is_not_renewed(log: RunnableLog) -> None:
    """Its token is worth nothing from then on."""
    lease = log.lease("s", "a")
    lease.release()

    refused(lease.renew, Conflict, "LEASE_LOST")


# -- handing off -----------------------------------------------------------------------------------------------------


def test_a_handoff_passes_event_and_lease_in_one_step(make_log: MakeLog) -> None:
    """From then on the giver is refused, nobody else gets the lease, and the taker gets it at once."""
    giver, taker = make_log(), make_log()
    lease = giver.lease("s", "a")
    lease.append(by("a", "1"))

    receipt = lease.handoff("b", data={"tags": ["half done"]}, event_id="2")

    (commit,) = giver.read("s", after=1)
    assert (commit.events[0].type, commit.events[0].payload()["to"]) == ("handoff", "b")
    assert receipt.last_seq == 2
    refused(lambda: lease.append(by("a", "3")), Conflict, "LEASE_LOST")
    refused(lambda: taker.lease("s", "c"), Conflict, "LEASE_HELD")
    lease.release()
    refused(lambda: taker.lease("s", "c"), Conflict, "LEASE_HELD")
    with taker.lease("s", "b"):
        assert taker.append("s", by("b", "3")).last_seq == 3


def test_a_handoff_that_is_refused_passes_nothing(make_log: MakeLog) -> None:
    """The giver keeps its lease when the session takes no such event."""
    log = make_log()
    lease = log.lease("s", "a")
    lease.append(Event.of("completed", actor="a", id="1"))

    refused(lambda: lease.handoff("b"), Refused, "GATE_REFUSED")

    assert lease.append(by("a", "2")).last_seq == 2


def test_without_a_lease_a_handoff_is_an_event(log: RunnableLog) -> None:
    """A session that anybody may append to has nothing to pass on."""
    assert log.handoff("s", "a", "b").last_seq == 1
    assert log.append("s", by("c")).last_seq == 2


def test_after_a_handoff_in_one_call_the_giver_is_refused_at_once(make_log: MakeLog) -> None:
    """The check of a later commit sees the earlier ones of the same call."""
    log = make_log()
    log.lease("s", "a")
    handoff = Event.of("handoff", actor="a", id="1", data={"to": "b"})

    first, second = log.append_many([Append("s", (handoff,), heir="b"), Append("s", (by("a", "2"),))])

    assert getattr(first, "last_seq", None) == 1
    assert getattr(second, "code", None) == "LEASE_LOST"


# -- what is known ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected", ["any", "new"])
def test_a_part_that_is_known_is_a_conflict_that_names_it(make_log: MakeLog, expected: str) -> None:
    """A commit of which some events stand in another commit is neither a repeat nor new."""
    log = make_log()
    log.append("s", note("0"), expected="new")
    log.append("s", notes("1", "2"))
    before = list(log.read("s"))
    known = Position(1) if expected == "any" else None

    error = refused(
        lambda: log.append("s", notes("0" if expected == "new" else "7", "2", "3"), expected=expected, known=known),  # type: ignore[arg-type]
        Conflict,
        "PART_KNOWN",
    )

    assert error.facts["known"] == ({"2": 3} if expected == "any" else {"0": 1, "2": 3})
    assert list(log.read("s")) == before


def test_an_id_in_other_events_data_is_no_part(log: RunnableLog) -> None:
    """What only looks like a known part is appended."""
    log.append("s", note("0"))
    log.append("s", note("1", text="id-2"))

    assert log.append("s", note("id-2"), known=1).last_seq == 3


@pytest.mark.parametrize("length", [31, 32, 200])
def test_a_part_is_found_by_ids_of_any_length(log: RunnableLog, length: int) -> None:
    """Short and long ids are packed differently."""
    log.append("s", note("0"))
    log.append("s", notes("x" * length, "2"))

    refused(lambda: log.append("s", notes("x" * length, "3"), known=1), Conflict, "PART_KNOWN")


def test_a_producer_that_was_started_again_names_its_last_receipt(make_log: MakeLog) -> None:
    """Then its repeats are recognised, however much others appended meanwhile."""
    first = make_log().append("s", note("1"))
    written = make_log().append("s", note("2"), known=first)
    make_log().append("s", note("other"))

    again = make_log().append("s", note("2"), known=first)

    assert (again.last_seq, again.duplicates) == (written.last_seq, 1)


def test_a_receipt_of_another_session_is_refused(log: RunnableLog) -> None:
    """It says nothing of this one, and would look like a loss."""
    receipt = log.append("t", note("1"))

    refused(lambda: log.append("s", note("2"), known=receipt), Refused, "EXPECTED_INVALID")
    assert log.head("s") is None


@pytest.mark.parametrize("expected", ["any", 3])
def test_what_was_acknowledged_and_is_not_there_is_an_error(make_log: MakeLog, expected: object) -> None:
    """A log that ends before what its producer was told, or holds something else there, takes nothing from it."""
    log = make_log()
    for id in ("1", "2", "3"):
        log.append("s", note(id))
    elsewhere = Position(2, "0" * 20)

    fork = refused(lambda: make_log().append("s", note("4"), expected=expected, known=elsewhere), Damaged, "FORK")  # type: ignore[arg-type]
    beyond = Position(5, "0" * 20)
    tail = refused(lambda: make_log().append("s", note("4"), expected=expected, known=beyond), Damaged, "TAIL_LOST")  # type: ignore[arg-type]
    none = refused(lambda: make_log().append("t", note("4"), known=beyond), Damaged, "TAIL_LOST")

    assert (fork.facts["first_bad_seq"], tail.facts["first_bad_seq"], none.facts["first_bad_seq"]) == (2, 4, 1)
    assert ids(log.read("s")) == ["1", "2", "3"]
    assert log.head("t") is None
