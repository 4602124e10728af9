"""The laws of a history, each broken once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec import structs

from domain import Commit, Damaged, Event, Session
from domain.codec import chain, decode_body, encode_body, genesis
from domain.invariants import broken_law, fold, is_chained, is_dense, is_in_order, is_legal
from tests.domain.log.logs import note, notes, refused

Commits = list[Commit]


def history(*bodies: bytes, counts: list[int] | None = None) -> Commits:
    """A true history of commits with these bodies."""
    commits: Commits = []
    seq, digest = 0, genesis("s")
    for index, body in enumerate(bodies):
        count = counts[index] if counts else len(decode_body(body))
        at_ms = 1000 + index
        digest = chain(digest, "s", seq + 1, count, at_ms, body)
        commits.append(Commit("s", seq + 1, seq + count, at_ms, digest, body))
        seq += count
    return commits


def good() -> Commits:
    """Four commits of 2, 1, 3 and 1 events, none of which breaks a law."""
    return history(
        encode_body(notes("1", "2")),
        encode_body([note("3")]),
        encode_body(notes("4", "5", "6")),
        encode_body([note("7")]),
    )


def first_broken(commits: Commits) -> tuple[Damaged | None, Session]:
    """The first law that is broken, and the session as it stood before."""
    session = Session("s", digest=genesis("s"))
    for commit in commits:
        law = broken_law(session, commit)
        if law is not None:
            with pytest.raises(Damaged) as raised:
                fold(session, commit)
            assert raised.value.code == law.code
            return law, session
        fold(session, commit)
    return None, session


def test_a_true_history_breaks_no_law() -> None:
    """A history as the log writes it is folded to its end, and the session carries its seq, digest and times."""
    commits = good()

    law, session = first_broken(commits)

    assert law is None
    assert (session.seq, session.digest, session.started_at, session.last_at) == (7, commits[-1].digest, 1000, 1003)


def altered_body(commits: Commits) -> Commits:
    commits[2] = structs.replace(commits[2], body=commits[2].body.replace(b"5", b"9"))
    return commits


def altered_time(commits: Commits) -> Commits:
    commits[2] = structs.replace(commits[2], at_ms=commits[2].at_ms + 1)
    return commits


def altered_digest(commits: Commits) -> Commits:
    commits[2] = structs.replace(commits[2], digest="0" * 20)
    return commits


def cut_out(commits: Commits) -> Commits:
    del commits[2]
    return commits


def swapped(commits: Commits) -> Commits:
    commits[2], commits[3] = commits[3], commits[2]
    return commits


def repeated(commits: Commits) -> Commits:
    commits.insert(2, commits[1])
    return commits


def renumbered(commits: Commits) -> Commits:
    del commits[2]
    commits[2] = structs.replace(commits[2], first_seq=4, last_seq=4)
    return commits


def empty(commits: Commits) -> Commits:
    commits[2] = structs.replace(commits[2], last_seq=3)
    return commits


def back_in_time(commits: Commits) -> Commits:
    earlier = commits[2].at_ms - 100
    digest = chain(commits[1].digest, "s", 4, 3, earlier, commits[2].body)
    commits[2] = structs.replace(commits[2], at_ms=earlier, digest=digest)
    return commits


def illegal(_: Commits) -> Commits:
    completed, broke = Event.of("completed", actor="a", id="3"), Event.of("broke", actor="a", id="6")
    return history(encode_body(notes("1", "2")), encode_body([completed]), encode_body([note("4"), broke]))


def unreadable(_: Commits) -> Commits:
    return history(encode_body(notes("1", "2")), encode_body([note("3")]), b"\x91\x01", counts=[2, 1, 1])


def miscounted(_: Commits) -> Commits:
    return history(*[encode_body(notes("1", "2"))] * 3, counts=[2, 1, 2])


@pytest.mark.parametrize(
    ("break_it", "code", "seq", "stands"),
    [
        (cut_out, "LOG_GAP", 4, 3),
        (swapped, "LOG_GAP", 4, 3),
        (repeated, "LOG_GAP", 4, 3),
        (empty, "LOG_GAP", 4, 3),
        (altered_body, "LOG_ALTERED", 4, 3),
        (altered_time, "LOG_ALTERED", 4, 3),
        (altered_digest, "LOG_ALTERED", 4, 3),
        (renumbered, "LOG_ALTERED", 4, 3),
        (back_in_time, "LOG_ALTERED", 4, 3),
        (illegal, "EVENT_ILLEGAL", 4, 3),
        (unreadable, "EVENT_UNREADABLE", 4, 3),
        (miscounted, "EVENT_UNREADABLE", 3, 2),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_law_is_named_where_it_is_broken(
    break_it: Callable[[Commits], Commits], code: str, seq: int, stands: int
) -> None:
    """Each kind of damage has its code and the first bad seq, and the session stands at the last good commit."""
    law, session = first_broken(break_it(good()))

    assert law is not None
    assert law.code == code
    assert session.seq == stands
    if code != "EVENT_UNREADABLE" or "seq" in law.facts:
        assert law.facts["seq"] == seq


def test_each_law_is_one_predicate() -> None:
    """A predicate says no to its own breach and yes to a true successor."""
    commits = good()
    first, second = commits[0], commits[1]

    assert is_dense(2, second)
    assert not is_dense(1, second)
    assert not is_dense(2, structs.replace(second, last_seq=2))
    assert is_chained(first.digest, second)
    assert not is_chained(genesis("s"), second)
    assert is_in_order(second.at_ms, second)
    assert not is_in_order(second.at_ms + 1, second)
    assert is_legal("c", second)
    assert not is_legal("e", second)


def test_a_commit_of_another_session_does_not_fit() -> None:
    """A commit that was moved to another session is found, because its digest covers the session's id."""
    moved = structs.replace(good()[0], session="t")

    refused(lambda: fold(Session("t", digest=genesis("t")), moved), Damaged, "LOG_ALTERED")
