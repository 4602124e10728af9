"""What every log promises: one contract, held against every log there is (see conftest.py)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain import (
    Append,
    Commit,
    Conflict,
    Damaged,
    Event,
    Forked,
    Limits,
    MusterError,
    NotFound,
    Receipt,
    Refused,
)
from domain.codec import encode_body
from domain.events import BUILT_IN
from domain.log import Expected
from domain.log.contract import Position
from domain.log.forking import fork_flow, plan_flow
from domain.log.keys import DEFAULT_PARTITIONS, Keyspace
from domain.log.protocol import CALL_COMMITS, RegistryFlow, dedupe_flow
from domain.session import GATE, kind_of
from tests.domain.log.logs import (
    MakeLog,
    RunnableLog,
    asking,
    assert_chained,
    broken_off,
    disturbed,
    ids,
    new_session,
    note,
    notes,
    refused,
)

# -- where a commit lands --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected", ["any", "new", 0])
def test_a_session_begins_at_seq_1(log: RunnableLog, expected: Expected) -> None:
    """The first event of a session has seq 1, whichever way its producer expects an empty session."""
    receipt = log.append("s", note("1"), expected=expected)

    assert (receipt.session, receipt.first_seq, receipt.last_seq, receipt.appended) == ("s", 1, 1, 1)


@pytest.mark.parametrize("expected", ["any", 2])
def test_a_commit_begins_right_after_the_last(log: RunnableLog, expected: Expected) -> None:
    """The next commit goes on where the last one ended."""
    log.append("s", notes("1", "2"))

    receipt = log.append("s", notes("3", "4", "5"), expected=expected)

    assert (receipt.first_seq, receipt.last_seq, receipt.appended, receipt.duplicates) == (3, 5, 3, 0)
    assert ids(log.read("s")) == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("expected", ["new", 0, 1, 3, 1000])
def test_a_commit_expected_elsewhere_is_a_conflict(log: RunnableLog, expected: Expected) -> None:
    """A commit that expects another seq than the session's is refused, with both seqs, and nothing is written."""
    log.append("s", notes("1", "2"))
    before = log.head("s")

    error = refused(lambda: log.append("s", note("x"), expected=expected), Conflict, "SEQ_CONFLICT")

    assert error.facts["actual"] == 2
    assert error.facts["expected"] == (0 if expected == "new" else expected)
    assert log.head("s") == before
    assert ids(log.read("s")) == ["1", "2"]


def test_an_empty_session_is_a_conflict_for_who_expects_events(log: RunnableLog) -> None:
    """A session that was never appended to stands at seq 0."""
    error = refused(lambda: log.append("s", note("x"), expected=7), Conflict, "SEQ_CONFLICT")

    assert (error.facts["expected"], error.facts["actual"]) == (7, 0)
    assert log.head("s") is None


@pytest.mark.parametrize("expected", [-1, 1.5, True, "7", "old", None])
def test_an_expectation_that_is_none_is_refused(log: RunnableLog, expected: Any) -> None:
    """Only `any`, `new` and seqs can be expected."""
    refused(lambda: log.append("s", note("x"), expected=expected), Refused, "EXPECTED_INVALID")
    refused(lambda: log.append("s", note("x"), expected=0, dedupe=True), Refused, "EXPECTED_INVALID")
    assert log.head("s") is None


def test_commits_are_dense_chained_and_in_order_of_time(log: RunnableLog) -> None:
    """Whatever the sizes of commits: seqs are dense, digests follow from genesis, time does not run backwards."""

    @given(st.lists(st.integers(1, 7), max_size=8))
    @settings(max_examples=15)
    def holds(sizes: list[int]) -> None:
        session = new_session()
        receipts = [log.append(session, [note() for _ in range(size)]) for size in sizes]

        commits = list(log.read(session))
        assert [r.last_seq for r in receipts] == [c.last_seq for c in commits] == list(accumulate(sizes))
        assert [(r.digest, r.at_ms) for r in receipts] == [(c.digest, c.at_ms) for c in commits]
        assert_chained(session, commits, log.head(session))

    holds()


@pytest.mark.parametrize("events", [[note("1")], [note("1", text="ü" * 50_000)], [note(str(n)) for n in range(1000)]])
def test_what_was_appended_is_read_back(log: RunnableLog, events: list[Event]) -> None:
    """Events come back as they went in, field by field, up to the limits of a commit."""
    log.append("s", events)

    (commit,) = log.read("s")
    assert commit.events == events
    assert commit.body == encode_body(events)


def test_an_event_without_an_id_gets_one(log: RunnableLog) -> None:
    """In a log every event has an id, and no two that were given by the log are equal."""
    log.append("s", [note(), note("mine"), note()])

    first, mine, last = ids(log.read("s"))
    assert mine == "mine"
    assert first
    assert last
    assert first != last


def test_the_trace_travels_with_the_commit_and_outside_the_digest(log: RunnableLog) -> None:
    """A commit carries its producer's trace context, which its digest does not cover."""
    log.append("s", note("1"), traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    log.append("s", note("2"))

    traced, plain = commits = list(log.read("s"))
    assert traced.traceparent == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert plain.traceparent is None
    assert_chained("s", commits, log.head("s"))


def test_a_position_is_found_by_time(log: RunnableLog) -> None:
    """At any time the session stood at the end of the last commit at or before it; at seq 0 before the first."""
    for number in range(70):
        log.append("s", notes(*(f"{number}.{part}" for part in range(1 + number % 3))))
    commits = list(log.read("s"))
    first, last = commits[0].at_ms, commits[-1].at_ms

    for ms in range(first - 2, last + 3, max(1, (last - first) // 40)):
        stood = [Position(commit.last_seq, commit.digest) for commit in commits if commit.at_ms <= ms]
        assert log.position_at("s", ms) == (stood[-1] if stood else Position(0))
    assert log.position_at("none", last) == Position(0)
    refused(lambda: log.position_at("not an id", last), Refused, "SESSION_INVALID")


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("session", ["", "two words", "{tag}", "s" * 201, "s\n", "ü"])
def test_a_session_that_is_no_identifier_is_refused(log: RunnableLog, session: str) -> None:
    """No method takes a session id that breaks the rule."""
    refused(lambda: log.append(session, note("1")), Refused, "SESSION_INVALID")
    refused(lambda: log.append(session, note("1"), dedupe=True), Refused, "SESSION_INVALID")
    refused(lambda: log.head(session), Refused, "SESSION_INVALID")
    refused(lambda: list(log.read(session)), Refused, "SESSION_INVALID")
    refused(lambda: list(log.read_back(session)), Refused, "SESSION_INVALID")
    (error,) = log.append_many([Append(session, notes("1"))])
    assert isinstance(error, Refused)
    assert error.code == "SESSION_INVALID"


@pytest.mark.parametrize("dedupe", [False, True])
def test_an_empty_commit_is_refused(log: RunnableLog, dedupe: bool) -> None:
    """A commit holds at least one event."""
    refused(lambda: log.append("s", [], dedupe=dedupe), Refused, "COMMIT_EMPTY")
    assert log.head("s") is None


def test_a_commit_beyond_a_limit_is_refused(make_log: MakeLog) -> None:
    """What is at a limit is appended; what is beyond it is refused, and nothing is written."""
    size = len(encode_body([note("1")])) - 1  # without the array's own byte
    log = make_log(Limits(event_bytes=size, commit_bytes=3 * size + 1, commit_events=4))

    assert log.append("s", notes("1", "2", "3")).last_seq == 3
    refused(lambda: log.append("s", notes("1", "2", "3", "4")), Refused, "COMMIT_TOO_LARGE")
    refused(lambda: log.append("s", notes("1", "2", "3", "4", "5")), Refused, "COMMIT_TOO_LARGE")
    refused(lambda: log.append("s", note("10")), Refused, "EVENT_TOO_LARGE")
    assert log.head("s") == log.heads(["s"])[0]
    assert ids(log.read("s")) == ["1", "2", "3"]


@pytest.mark.parametrize("gate", list(GATE))
def test_the_gate_takes_what_the_table_takes(log: RunnableLog, gate: str) -> None:
    """For every state of the gate and every kind of event, the log decides as the transition table says."""
    before = {
        "o": note("0"),
        "c": Event.of("completed", actor="a", id="0"),
        "e": Event.of("expired", actor="a", id="0"),
    }
    for type in [*BUILT_IN, "note.made"]:
        session = new_session()
        log.append(session, before[gate])
        event = Event.of(type, actor="a", id="1")
        after = GATE[gate].get(kind_of(type))
        if after is not None:
            log.append(session, event)
        else:
            error = refused(lambda s=session, e=event: log.append(s, e), Refused, "GATE_REFUSED")  # type: ignore[misc]
            assert (error.facts["gate"], error.facts["position"], error.facts["seq"]) == (gate, 1, 1)
        head = log.head(session)
        assert head is not None
        assert (head.seq, head.gate) == ((1, gate) if after is None else (2, after)), type


def test_a_commit_with_one_illegal_event_writes_none(log: RunnableLog) -> None:
    """The gate follows the events of a commit one by one, and refuses the commit as a whole."""
    commit = [note("1"), Event.of("completed", actor="a", id="2"), Event.of("modified", actor="a", id="3")]

    error = refused(lambda: log.append("s", commit), Refused, "GATE_REFUSED")

    assert (error.facts["position"], error.facts["gate"], error.facts["seq"]) == (3, "o", 0)
    assert log.head("s") is None
    assert list(log.sessions()) == []
    assert log.append("s", [*commit[:2], Event.of("start", actor="a", id="3"), commit[2]]).last_seq == 4


# -- once ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected", ["new", 0])
@pytest.mark.parametrize("others", [0, 1, 300])
def test_a_repeat_with_an_exact_seq_returns_the_first_receipt(
    log: RunnableLog, expected: Expected, others: int
) -> None:
    """A commit that expects a seq is recognised by its position, however many commits came after it."""
    first = log.append("s", notes("1", "2"), expected=expected)
    _follow(log, "s", others)
    before = list(log.read("s"))

    again = log.append("s", notes("1", "2"), expected=expected)

    assert _place(again) == _place(first)
    assert (again.appended, again.duplicates) == (0, 2)
    assert list(log.read("s")) == before


@pytest.mark.parametrize("others", [0, 1, 255, 256, 257, 600])
def test_a_repeat_expected_anywhere_is_found_behind_the_known_seq(log: RunnableLog, others: int) -> None:
    """A commit that may land anywhere is recognised among all those after the seq its producer knew."""
    log.append("s", note("0"))
    (first,) = log.append_many([Append("s", notes("1", "2"), known=Position(1))])
    _follow(log, "s", others)
    before = log.head("s")

    (again,) = log.append_many([Append("s", notes("1", "2"), known=Position(1))])

    assert isinstance(first, Receipt)
    assert isinstance(again, Receipt)
    assert _place(again) == _place(first)
    assert (again.appended, again.duplicates) == (0, 2)
    assert log.head("s") == before


def test_a_new_commit_lands_however_far_behind_its_producer_is(log: RunnableLog) -> None:
    """A search that finds nothing ends in an append."""
    _follow(log, "s", 600)

    (receipt,) = log.append_many([Append("s", notes("new"), known=Position(0))])

    assert isinstance(receipt, Receipt)
    assert (receipt.first_seq, receipt.appended) == (601, 1)


@pytest.mark.parametrize("expected", ["any", 0])
def test_a_repeat_is_recognised_behind_other_commits_of_the_same_call(log: RunnableLog, expected: Expected) -> None:
    """A repeat finds its commit in the log, and among the commits before it in its call, however the call begins."""
    first = log.append("s", notes("1"))
    repeat = Append("s", notes("1"), expected=expected, known=None if expected == 0 else Position(0))
    new = Append("s", notes("2"), expected=1)

    answers = log.append_many([new, repeat, new, repeat])

    assert [_place(answer) for answer in answers] == [("s", 2, 2), ("s", 1, 1), ("s", 2, 2), ("s", 1, 1)]
    assert isinstance(answers[1], Receipt)
    assert answers[1].digest == first.digest
    assert answers[2] != answers[0]  # a duplicate, and says so
    assert ids(log.read("s")) == ["1", "2"]


def test_other_events_at_the_same_place_are_a_conflict(log: RunnableLog) -> None:
    """Only the very same commit counts as a repeat."""
    log.append("s", notes("1", "2"), expected=0)

    refused(lambda: log.append("s", notes("1", "3"), expected=0), Conflict, "PART_KNOWN")
    refused(lambda: log.append("s", notes("1"), expected=0), Conflict, "PART_KNOWN")


def test_a_repeat_is_recognised_also_in_a_session_that_closed_since(log: RunnableLog) -> None:
    """Whether a commit is there already is asked before whether it would be legal now."""
    start = Event.of("modified", actor="a", id="1")
    log.append("s", start, expected=0)
    log.append("s", Event.of("completed", actor="a", id="2"))

    assert log.append("s", start, expected=0).duplicates == 1


# -- deduplication ---------------------------------------------------------------------------------------------------


def test_batch_boundaries_never_matter(log: RunnableLog) -> None:
    """Whatever batches the same events come in, and however often: each is there once, in order of its first coming."""

    @given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6)), min_size=1, max_size=8))
    @settings(max_examples=30)
    def holds(batches: list[tuple[int, int]]) -> None:
        session = new_session()
        seen: list[str] = []
        for start, size in batches:
            batch = [str(n % 10) for n in range(start, start + size)]
            fresh = [id for id in dict.fromkeys(batch) if id not in seen]
            receipt = log.append(session, notes(*batch), dedupe=True)
            seen += fresh
            assert (receipt.appended, receipt.duplicates) == (len(fresh), len(batch) - len(fresh))
            places = [seen.index(id) + 1 for id in batch]
            assert (receipt.first_seq, receipt.last_seq) == (min(places), max(places))
        assert ids(log.read(session)) == seen
        assert_chained(session, list(log.read(session)), log.head(session))

    holds()


def test_an_id_stands_for_one_event(log: RunnableLog) -> None:
    """The same id with other content is refused, whether the first is in the log or in the same batch."""
    log.append("s", note("1", text="a"), dedupe=True)

    error = refused(lambda: log.append("s", [note("2"), note("1", text="b")], dedupe=True), Refused, "ID_REUSED")
    refused(lambda: log.append("s", [note("3"), note("3", text="b")], dedupe=True), Refused, "ID_REUSED")

    assert error.facts["id"] == "1"
    assert ids(log.read("s")) == ["1"]


def test_the_order_of_keys_makes_no_other_event(log: RunnableLog) -> None:
    """Two events whose data differ in nothing but the order of keys are the same event."""
    log.append("s", note("1", a=1, b={"c": 2, "d": 3}), dedupe=True)

    receipt = log.append("s", note("1", b={"d": 3, "c": 2}, a=1), dedupe=True)

    assert receipt.duplicates == 1


def test_an_event_without_an_id_cannot_be_deduplicated(log: RunnableLog) -> None:
    """Where repeats are to be recognised, an event needs an id."""
    refused(lambda: log.append("s", [note("1"), note()], dedupe=True), Refused, "ID_INVALID")
    assert log.head("s") is None


def test_a_deduplicated_append_decides_again_when_others_are_quicker(make_log: MakeLog) -> None:
    """Events that another producer appends between the reading and the writing are left out too."""
    log, other = make_log(), make_log()
    log.append("s", note("1"))

    flow = dedupe_flow(Append("s", tuple(notes("1", "2", "3", "4"))))
    receipt = log.run(disturbed(flow, lambda: other.append("s", notes("3", "x"))))

    assert (receipt.first_seq, receipt.last_seq, receipt.appended, receipt.duplicates) == (1, 5, 2, 2)
    assert ids(log.read("s")) == ["1", "3", "x", "2", "4"]


# -- many at once ----------------------------------------------------------------------------------------------------


def test_each_append_of_many_has_its_own_answer(log: RunnableLog) -> None:
    """One commit's trouble stays its own: the others of the call are appended."""
    log.append("closed", Event.of("completed", actor="a", id="0"))
    answers = log.append_many(
        [
            Append("a", notes("1", "2")),
            Append("b", notes("1"), expected=5),
            Append("closed", (Event.of("broke", actor="a", id="1"),)),
            Append("no session", notes("1")),
            Append("c", ()),
            Append("d", notes("1"), expected="new"),
            Append("a", notes("3"), expected=2),
        ]
    )

    codes = [getattr(answer, "code", "appended") for answer in answers]
    assert codes == [
        "appended",
        "SEQ_CONFLICT",
        "GATE_REFUSED",
        "SESSION_INVALID",
        "COMMIT_EMPTY",
        "appended",
        "appended",
    ]
    assert ids(log.read("a")) == ["1", "2", "3"]
    assert [head.seq if head else 0 for head in log.heads(["a", "b", "closed", "c", "d"])] == [3, 0, 1, 0, 1]


def test_nothing_appended_is_nothing_answered(log: RunnableLog) -> None:
    """No appends give no receipts."""
    assert log.append_many([]) == []
    assert log.heads([]) == []


def test_commits_of_one_session_keep_their_order(log: RunnableLog) -> None:
    """Commits of one session land in the order given, whatever each expects, also across several calls."""

    @given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=2 * CALL_COMMITS + 40))
    @settings(max_examples=8)
    def holds(plan: list[tuple[int, bool]]) -> None:
        names = [new_session() for _ in range(3)]
        seqs = dict.fromkeys(names, 0)
        appends = []
        for number, (index, exact) in enumerate(plan):
            session = names[index]
            appends.append(Append(session, notes(str(number)), expected=seqs[session] if exact else "any"))
            seqs[session] += 1

        answers = log.append_many(appends)

        assert [type(answer) for answer in answers] == [Receipt] * len(plan)
        for index, session in enumerate(names):
            assert ids(log.read(session)) == [str(n) for n, (i, _) in enumerate(plan) if i == index]
            assert_chained(session, list(log.read(session)), log.head(session))

    holds()


def test_a_commit_sees_those_before_it_in_the_same_call(log: RunnableLog) -> None:
    """Seqs and the gate count what comes earlier in the call; a commit after a refused one is judged without it."""
    completed, broke = Event.of("completed", actor="a", id="2"), Event.of("broke", actor="a", id="3")

    answers = log.append_many(
        [
            Append("s", notes("1")),
            Append("s", (completed,), expected=1),
            Append("s", (broke,)),
            Append("s", notes("4"), expected=3),
            Append("s", (Event.of("start", actor="a", id="5"),), expected=2),
            Append("s", (broke,)),
        ]
    )

    codes = [getattr(answer, "code", "appended") for answer in answers]
    assert codes == ["appended", "appended", "GATE_REFUSED", "SEQ_CONFLICT", "appended", "appended"]
    assert ids(log.read("s")) == ["1", "2", "5", "3"]


# -- reading ---------------------------------------------------------------------------------------------------------


def test_every_range_reads_as_the_model_says(log: RunnableLog) -> None:
    """Reading forward gives the commits with events in (after, to], reading back those with events before `before`."""

    @given(st.lists(st.integers(1, 3), max_size=4))
    @settings(max_examples=8)
    def holds(sizes: list[int]) -> None:
        session = new_session()
        for size in sizes:
            log.append(session, [note() for _ in range(size)])
        model = list(log.read(session))
        seqs = range(sum(sizes) + 3)

        for after in [-1, *seqs]:
            assert list(log.read(session, after=after)) == [c for c in model if c.last_seq > after]
            for to in [-1, *seqs]:
                found = list(log.read(session, after=after, to=to))
                wanted = [c for c in model if c.last_seq > after and c.first_seq <= to] if to > after else []
                assert found == wanted, (sizes, after, to)
        for before in [-1, *seqs]:
            found = list(log.read_back(session, before=before))
            assert found == [c for c in reversed(model) if c.first_seq < before], (sizes, before)
        assert list(log.read_back(session)) == model[::-1]

    holds()


def test_a_long_session_is_read_page_by_page(log: RunnableLog) -> None:
    """No commit is missing or repeated where pages meet, forward, backward and in the middle."""
    count = 2500
    _follow(log, "s", count)

    assert_chained("s", list(log.read("s")), log.head("s"))
    assert [c.last_seq for c in log.read("s")] == list(range(1, count + 1))
    assert [c.last_seq for c in log.read_back("s")] == list(range(count, 0, -1))
    assert [c.last_seq for c in log.read("s", after=100, to=1700)] == list(range(101, 1701))
    assert [c.last_seq for c in log.read_back("s", before=1500)] == list(range(1499, 0, -1))


def test_large_commits_are_read_page_by_page(log: RunnableLog) -> None:
    """Pages follow the size of commits: small ones, then large ones, then small ones again, and none is missing."""
    sizes = [10] * 200 + [200_000] * 40 + [10] * 200
    for at in range(0, len(sizes), 40):
        log.append_many([Append("s", (note(text="x" * size),)) for size in sizes[at : at + 40]])

    assert_chained("s", list(log.read("s")), log.head("s"))
    assert [len(c.body) > 200_000 for c in log.read("s")] == [size == 200_000 for size in sizes]
    assert list(log.read_back("s")) == list(log.read("s"))[::-1]


def test_many_sessions_are_read_as_each_by_itself(log: RunnableLog) -> None:
    """Reading sessions together gives what reading them one by one gives, long, short and unknown ones alike."""
    lengths = [0, 1, 3, 40, 300, 2, 300, 0, 1, 1, 1, 600, 5]
    names = [new_session() for _ in lengths]
    for name, length in zip(names, lengths, strict=True):
        _follow(log, name, length)

    together = [list(commits) for commits in log.read_each(names)]

    assert [len(commits) for commits in together] == lengths
    assert together == [list(log.read(name)) for name in names]
    assert list(log.read_each([])) == []


def test_a_reader_goes_on_where_it_stopped(log: RunnableLog) -> None:
    """A reader that stops early costs nothing but its place, which is the seq of its last event."""
    _follow(log, "s", 300)
    reading = log.read("s")
    first = [next(reading) for _ in range(5)]

    rest = list(log.read("s", after=first[-1].last_seq))

    assert first + rest == list(log.read("s"))


def test_an_unknown_session_reads_as_empty(log: RunnableLog) -> None:
    """Before its first event, a session has no head and no commits."""
    assert log.head("s") is None
    assert list(log.read("s")) == []
    assert list(log.read_back("s", before=9)) == []


def test_a_body_that_cannot_be_decoded_raises_when_it_is_decoded(log: RunnableLog) -> None:
    """Reading gives commits as they are stored; only looking at the events of a broken one is an error."""
    log.append("s", note("1"))
    (commit,) = log.read("s")
    broken = Commit("s", 1, 2, commit.at_ms, commit.digest, commit.body)

    error = refused(lambda: broken.events, Damaged, "EVENT_UNREADABLE")

    assert error.facts["seq"] == 1


# -- enumerating -----------------------------------------------------------------------------------------------------


def test_every_session_is_enumerated_once(log: RunnableLog) -> None:
    """Enumerating gives every session, in the same order each time, whole or in parts."""
    names = [new_session() for _ in range(300)]
    log.append_many([Append(name, notes("1")) for name in names])

    everything = list(log.sessions())

    assert sorted(everything) == sorted(names)
    assert list(log.sessions()) == everything
    assert list(log.sessions(limit=7)) == everything[:7]
    assert list(log.sessions(limit=0)) == []
    assert list(log.sessions(limit=10_000)) == everything
    for at in (0, 1, 150, 299):
        assert list(log.sessions(after=everything[at])) == everything[at + 1 :]
        assert list(log.sessions(after=everything[at], limit=5)) == everything[at + 1 :][:5]
    by_pages: list[str] = []
    while page := list(log.sessions(after=by_pages[-1] if by_pages else None, limit=37)):
        by_pages += page
    assert by_pages == everything


@pytest.mark.parametrize("page", [1, 3, 1000])
def test_pages_of_the_registry_meet_without_a_seam(log: RunnableLog, page: int) -> None:
    """No session is missing or repeated where the pages of a partition meet."""
    names = [new_session() for _ in range(200)]
    log.append_many([Append(name, notes("1")) for name in names])

    reading, found = RegistryFlow(Keyspace("any", "any", DEFAULT_PARTITIONS), None, page), list[str]()
    while more := log.run(reading.next_page()):
        found += more

    assert found == list(log.sessions())


def test_sessions_that_come_meanwhile_disturb_no_enumeration(log: RunnableLog) -> None:
    """What was there when an enumeration began is in it exactly once, whatever is added meanwhile."""
    names = [new_session() for _ in range(100)]
    log.append_many([Append(name, notes("1")) for name in names])

    found: list[str] = []
    for name in log.sessions():
        found.append(name)
        if len(found) <= 100:
            log.append(new_session(), note("1"))

    assert len(found) == len(set(found))
    assert set(names) <= set(found)


def _follow(log: RunnableLog, session: str, count: int) -> None:
    """Appends so many commits of one event each."""
    for at in range(0, count, 500):
        answers = log.append_many([Append(session, (note(),)) for _ in range(at, min(at + 500, count))])
        assert all(isinstance(answer, Receipt) for answer in answers)


def _place(answer: object) -> tuple[str, int, int]:
    assert isinstance(answer, Receipt), answer
    return answer.session, answer.first_seq, answer.last_seq


# -- forks -----------------------------------------------------------------------------------------------------------


def long_session(log: RunnableLog, commits: int) -> list[Commit]:
    """A session `s` of so many commits, of one to three events each."""
    known = None
    for number in range(commits):
        known = log.append("s", notes(*(f"{number}.{part}" for part in range(1 + number % 3))), known=known)
    return list(log.read("s"))


def copied(commits: Sequence[Commit]) -> list[tuple[Any, ...]]:
    """What a fork has in common with its parent."""
    return [(commit.first_seq, commit.last_seq, commit.body, commit.traceparent, commit.skipped) for commit in commits]


def test_a_fork_is_a_copy_that_says_where_it_comes_from(log: RunnableLog) -> None:
    """Same seqs, ids, bodies, traces; digests and times of its own; after it the mark, and both go on by themselves."""
    log.append("s", notes("1", "2"))
    log.append("s", note("3"), traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    log.append("s", Event.of("completed", actor="a", id="4"))
    log.append("s", Event.of("start", actor="a", id="5"))
    parent = list(log.read("s"))

    forked = log.fork("s", 4, "t")

    *copy, mark = log.read("t")
    assert copied(copy) == copied(parent[:3])
    assert (mark.first_seq, mark.last_seq, mark.digest) == (5, 5, forked.receipt.digest)
    ((type, actor, data),) = [(event.type, event.actor, event.payload()) for event in mark.events]
    assert (type, actor) == ("muster.forked", "muster")
    assert data == {"parent": "s", "seq": 4, "digest": parent[2].digest}
    assert (forked.session, forked.parent, forked.seq, forked.digest) == ("t", "s", 4, parent[2].digest)
    assert forked.is_new
    head = log.head("t")
    assert head is not None
    assert (head.gate, head.flags) == ("c", "-")
    assert_chained("t", [*copy, mark], head)
    assert list(log.read("s")) == parent
    refused(lambda: log.append("t", Event.of("modified", actor="a")), Refused, "GATE_REFUSED")
    assert log.append("t", Event.of("start", actor="a"), known=forked.receipt).last_seq == 6
    assert log.append("s", note("6")).last_seq == 6
    assert "t" in list(log.sessions())


def test_the_same_fork_is_made_once(log: RunnableLog) -> None:
    """Asked for again, also after it went on, it is found; its name without one is always the same."""
    long_session(log, 10)
    first = log.fork("s", 3)
    log.append("s@3", note("more"))
    before = list(log.read("s@3"))

    again = log.fork("s", 3, "s@3")

    assert (first.is_new, again.is_new) == (True, False)
    assert (again.receipt.position, again.digest) == (first.receipt.position, first.digest)
    assert list(log.read("s@3")) == before
    refused(lambda: log.fork("s", 1, "s@3"), Conflict, "SESSION_TAKEN")


def test_a_fork_of_a_fork_holds_both_marks(log: RunnableLog) -> None:
    """The beginning it copies may hold a mark itself."""
    long_session(log, 10)
    log.fork("s", 3, "t")
    log.append("t", note("of-t"))

    log.fork("t", 5, "u")

    types = [event.type for commit in log.read("u") for event in commit.events]
    assert [at for at, type in enumerate(types, 1) if type == "muster.forked"] == [4, 6]
    assert ids(log.read("u"))[4] == "of-t"


def test_a_long_session_is_forked_in_steps_and_no_half_of_it_is_taken_for_whole(make_log: MakeLog) -> None:
    """A maker that dies leaves a session that says so and takes no appends; the same fork asked for again finishes it,
    from where it stands, whichever log it is asked of.
    """
    log = make_log()
    parent = long_session(log, 2 * CALL_COMMITS + 10)
    at = parent[-3].last_seq
    plan = log.run(plan_flow("s", at, "t"))
    assert (plan.commits, plan.copied, plan.done) == (len(parent) - 2, 0, None)

    for steps in (1, 2):
        broken_off(log, plan)
        head = log.head("t")
        assert head is not None
        assert (head.quarantined, head.seq) == (True, parent[steps * CALL_COMMITS - 1].last_seq)
        assert copied(list(log.read("t"))) == copied(parent[: steps * CALL_COMMITS])
        error = refused(lambda: log.append("t", note("x")), Damaged, "QUARANTINED")
        assert error.facts["reason"] == "FORK_UNFINISHED"
        refused(lambda: log.fork("s", parent[5].last_seq, "t"), Conflict, "SESSION_TAKEN")
        refused(lambda: log.fork("s", parent[-1].last_seq, "t"), Conflict, "SESSION_TAKEN")
    assert log.run(plan_flow("s", at, "t")).copied == parent[2 * CALL_COMMITS - 1].last_seq

    forked = make_log().fork("s", at, "t")

    *copy, _ = log.read("t")
    assert copied(copy) == copied(parent[:-2])
    assert forked.is_new
    assert log.append("t", note("x"), expected=at + 1).last_seq == at + 2
    assert_chained("t", list(log.read("t")), log.head("t"))


def test_two_who_make_the_same_fork_make_one(make_log: MakeLog) -> None:
    """Their steps may come one after another in any way: each commit is copied once, and both are told of one fork."""
    log = make_log()
    parent = long_session(log, 3 * CALL_COMMITS)
    at = parent[-1].last_seq
    plan = log.run(plan_flow("s", at, "t"))
    flows = [fork_flow(plan, "mark-1", ""), fork_flow(plan, "mark-2", "")]
    waiting = [next(flow) for flow in flows]
    told: list[Forked] = []

    turn = 0
    while flows:
        turn = (turn + 1) % len(flows)
        try:
            waiting[turn] = flows[turn].send(log.run(asking(waiting[turn])))
        except StopIteration as done:
            told.append(done.value)
            del flows[turn], waiting[turn]

    assert copied(list(log.read("t"))[:-1]) == copied(parent)
    assert told[0].receipt.position == told[1].receipt.position
    assert sorted(one.is_new for one in told) == [False, True]


@pytest.mark.parametrize(
    ("parent", "at", "name", "error", "code"),
    [
        ("s", 2, None, Refused, "FORK_REFUSED"),
        ("s", 3, "s", Refused, "FORK_REFUSED"),
        ("s", 0, None, NotFound, "SEQ_UNKNOWN"),
        ("s", 9, None, NotFound, "SEQ_UNKNOWN"),
        ("none", 1, None, NotFound, "SESSION_UNKNOWN"),
        ("policied", 1, None, NotFound, "SESSION_UNKNOWN"),
        ("not an id", 1, None, Refused, "SESSION_INVALID"),
        ("s", 3, "not an id", Refused, "SESSION_INVALID"),
        ("s" * 200, 1, None, Refused, "SESSION_INVALID"),
        ("s", 3, "other", Conflict, "SESSION_TAKEN"),
        ("s", 3, "longer", Conflict, "SESSION_TAKEN"),
    ],
)
def test_what_cannot_be_forked_is_said_and_nothing_is_written(
    log: RunnableLog, parent: str, at: int, name: str | None, error: type[MusterError], code: str
) -> None:
    """Inside a commit, into itself, of a seq or session that is not there, into another session."""
    log.append("s", note("1"))
    log.append("s", notes("2", "3"))
    log.append("other", note("1"))
    log.append("longer", [note() for _ in range(9)])
    log.set_policy("policied", "strict")
    names = ("s", "other", "longer", "none", "s@2", "s@3", "s@0", "s@9")
    before = [log.head(session) for session in names]

    refused(lambda: log.fork(parent, at, name), error, code)

    assert [log.head(session) for session in names] == before


def test_a_fork_keeps_the_policy_that_its_session_was_given_before(log: RunnableLog) -> None:
    """A policy said before the first event holds for what comes after the fork."""
    long_session(log, 3)
    log.set_policy("t", "strict")

    forked = log.fork("s", 1, "t")

    refused(lambda: log.append("t", note("x")), Refused, "EXPECTED_REQUIRED")
    assert log.append("t", note("x"), expected=forked.receipt.last_seq).appended == 1
