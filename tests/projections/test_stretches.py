"""A stretch is what its commits are: folding many at a stroke finds and gives what folding them one by one does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from domain import Damaged, Event
from domain.codec import Commit, chain, genesis
from domain.invariants import lawful
from domain.log.protocol import parse_entry, parse_stretch
from domain.stretch import Stretch
from projections import session_view
from projections.drift import Reading
from projections.second_reading import SecondReading
from projections.session_view import Folding
from tests.projections.world import histories, memory_log

#: What may be wrong with a commit, as a function of it.
DAMAGES: Final[dict[str, Callable[[Commit], Commit]]] = {
    "other bytes": lambda commit: structs.replace(commit, body=commit.body[:-1] + b"?"),
    "another digest": lambda commit: structs.replace(commit, digest="0" * 20),
    "a digest of another length": lambda commit: structs.replace(commit, digest=commit.digest + "00"),
    "no digest": lambda commit: structs.replace(commit, digest=""),
    "another time": lambda commit: structs.replace(commit, at_ms=commit.at_ms + 1),
    "another place": lambda commit: structs.replace(
        commit, first_seq=commit.first_seq + 1, last_seq=commit.last_seq + 1
    ),
    "no events by its place": lambda commit: structs.replace(commit, first_seq=commit.last_seq + 1),
    "discarded": lambda commit: structs.replace(commit, skipped=True),
}
#: Bodies that carry the digest of what they are, and are not what a producer's library writes.
BODIES: Final = {
    "an illegal event": [Event("modified", "i", "ann")],
    "an unknown type": [Event("later", "i", "ann")],
    "no type": [Event("No Type", "i", "ann")],
    "no actor": [Event("tool.called", "i", "no actor")],
    "a shape of later": [Event("modified", "i", "ann", shape=2)],
    "two events": [Event("tool.called", "i", "ann"), Event("tool.called", "j", "ann")],
}


def outcome(commits: Iterable[Commit | Stretch]) -> tuple[bytes, dict[int, bytes], str | None]:
    """View and checkpoints after a fold, and which law ended it."""
    folding, law = Folding(session_view.initial("s")), None
    try:
        folding.advance(commits)
    except Damaged as broken:
        law = broken.code
    return session_view.encode(folding.view), folding.checkpoints, law


def cut(commits: list[Commit], size: int) -> list[Stretch]:
    """The commits in stretches of so many."""
    return [Stretch.of("s", commits[at : at + size]) for at in range(0, len(commits), size)]


def with_body(commits: list[Commit], at: int, body: bytes) -> list[Commit]:
    """The commits with another body in one of them, as if it had been appended like that: one event each."""
    made, seq, digest = [], 0, genesis("s")
    for number, commit in enumerate(commits):
        used, count = (body, 1) if number == at else (commit.body, commit.last_seq - commit.first_seq + 1)
        digest = chain(digest, "s", seq + 1, count, commit.at_ms, used)
        made.append(Commit("s", seq + 1, seq + count, commit.at_ms, digest, used))
        seq += count
    return made


@given(commits=histories(), size=st.integers(1, 40))
def test_a_stretch_is_folded_as_its_commits_are(commits: list[list[Event]], size: int) -> None:
    """However a log is cut into stretches, view and checkpoints are those of a fold commit by commit, to the byte."""
    read = list(memory_log("s", commits).read("s"))

    assert outcome(cut(read, size)) == outcome(read)


@given(commits=histories(), size=st.integers(2, 40), at=st.integers(0), damage=st.sampled_from(sorted(DAMAGES)))
def test_damage_in_a_stretch_is_found_where_it_is(commits: list[list[Event]], size: int, at: int, damage: str) -> None:
    """A commit that is not as it was appended ends the fold of a stretch where it ends the fold of the commits."""
    read = list(memory_log("s", commits).read("s"))
    read[at % len(read)] = DAMAGES[damage](read[at % len(read)])

    assert outcome(cut(read, size)) == outcome(read)


@given(commits=histories(), size=st.integers(2, 40), at=st.integers(0), what=st.sampled_from(sorted(BODIES)))
def test_what_no_library_writes_is_found_where_it_is(commits: list[list[Event]], size: int, at: int, what: str) -> None:
    """So does a commit that is as it was appended, by a producer that broke the rules."""
    plain = list(memory_log("s", commits).read("s"))
    read = with_body(plain, at % len(plain), msgspec.msgpack.encode(BODIES[what]))

    assert outcome(cut(read, size)) == outcome(read)


@given(commits=histories(), size=st.integers(2, 40), at=st.integers(0), stops=st.lists(st.integers(0, 60), max_size=3))
def test_the_second_reading_stands_where_the_fold_stands(
    commits: list[list[Event]], size: int, at: int, stops: list[int]
) -> None:
    """Whether it stops on the way or a commit is damaged: what was folded was read a second time, and no more."""
    read = list(memory_log("s", commits).read("s"))
    read[at % len(read)] = DAMAGES["other bytes"](read[at % len(read)])
    folding, second = Folding(session_view.initial("s")), SecondReading("s")
    reading = Reading(iter(cut(read, size)), second)

    for stop in sorted({*stops, read[-1].last_seq}):
        try:
            folding.advance(reading.to(stop))
        except Damaged:
            reading.folded(folding.view.seq)
            break

    assert second.broken is None
    assert (second.told()["seq"], second.told()["digest"]) == (folding.view.seq, folding.view.digest)
    assert list(second.checkpoints) == list(folding.checkpoints)


def test_a_true_stretch_is_taken_at_a_stroke() -> None:
    """Else all of the above would hold, and nothing be won."""
    log = memory_log("s", [[Event.of("start", actor="ann")], [Event.of("tool.called", actor="ann")] * 3])

    assert lawful(session_view.initial("s"), Stretch.of("s", list(log.read("s")))) is not None


PLAIN: Final = (b"7-2", [b"t", b"1000", b"d", b"ab" * 10, b"b", b"\x90"])


@pytest.mark.parametrize(
    "entry",
    [
        (b"8-1", [b"t", b"1001", b"d", b"cd" * 10, b"b", b"\x91"]),
        (b"8-1", [b"t", b"1001", b"d", b"cd" * 10, b"b", b"\x91", b"c", b"00-trace"]),
        (b"8-1", [b"t", b"007", b"d", b"cd" * 10, b"b", b"\x91"]),
        (b"8-1", [b"t", b"", b"d", b"cd" * 10, b"b", b"\x91"]),
        (b"8-1", [b"t", b"1,2", b"d", b"cd" * 10, b"b", b"\x91"]),
        (b"8-1", [b"t", b"-5", b"d", b"cd" * 10, b"b", b"\x91"]),
        (b"8-1", [b"b", b"\x91", b"t", b"1001", b"d", b"cd" * 10]),
        (b"8-1", [b"t", b"1001", b"d", b"\xff\xfe", b"b", b"\x91"]),
        (b"8-1", [b"t", b"1001"]),
        (b"8-1", [b"x", b"y", b"d", b"cd" * 10, b"b", b"\x91"]),
        (b"8-1", []),
    ],
)
def test_entries_become_the_same_commits_together_and_alone(entry: tuple[bytes, list[bytes]]) -> None:
    """Whatever stands in a stream: a page of entries holds the commits that its entries are one by one."""
    for page in ([entry], [PLAIN, entry], [entry, entry]):
        assert list(parse_stretch("s", page)) == [parse_entry("s", one) for one in page]
