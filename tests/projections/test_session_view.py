"""The session view: a function of the log alone, however the log is cut into batches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import Event, MemoryLog
from domain.agent import Totals, contributions, merge
from domain.codec import Commit
from domain.log.feed import Span
from domain.log.keys import Keyspace
from projections import session_view
from projections.catchup import fold_span, from_log
from projections.session_view import CHECKPOINTS_KEPT, Folding, is_checkpoint
from projections.store import write_checkpoints
from tests.projections.world import did, folded, histories, memory_log, notes

KEYS = Keyspace("test", "none", 1).partitions[0]


def batches_of(commits: list[Commit], sizes: list[int]) -> list[list[Commit]]:
    """The commits in order, cut into batches of these sizes, again and again."""
    batches: list[list[Commit]] = []
    rest = list(commits)
    while rest:
        size = sizes[len(batches) % len(sizes)]
        batches.append(rest[:size])
        del rest[:size]
    return batches


class Stored:
    """What workers keep of one session, built batch by batch."""

    def __init__(self, log: MemoryLog) -> None:
        self.log = log
        self.view: bytes | None = None
        self.checkpoints: dict[int, bytes] = {}
        self.totals: dict[str, Totals] = {}

    def apply(self, batch: list[Commit]) -> None:
        outcome = fold_span(self.log, Span("s", batch[0].first_seq, batch[-1].last_seq), self.view, batch)
        assert outcome is not None
        assert outcome.parked is None
        self.view = outcome.view
        merge(self.totals, outcome.moved)
        for operation in write_checkpoints(KEYS, "s", outcome.checkpoints, list(self.checkpoints)):
            if operation.command == "HDEL":
                for seq in operation.arguments:
                    del self.checkpoints[seq]
            else:
                pairs = operation.arguments
                self.checkpoints |= dict(zip(pairs[::2], pairs[1::2], strict=True))


@given(commits=histories(), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_however_the_log_is_cut_into_batches_the_view_is_the_same(commits: list[list[Event]], sizes: list[int]) -> None:
    """View, checkpoints and totals built batch by batch are those of a fold from the beginning, to the byte."""
    log = memory_log("s", commits)
    stored = Stored(log)

    for batch in batches_of(list(log.read("s")), sizes):
        stored.apply(batch)

    whole = Folding(session_view.initial("s"))
    whole.advance(log.read("s"))
    assert stored.view == session_view.encode(whole.view)
    assert stored.checkpoints == whole.checkpoints
    assert stored.totals == contributions(whole.view)


@given(commits=histories(), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), loss=st.integers(0))
def test_a_rebuild_on_the_way_changes_nothing(commits: list[list[Event]], sizes: list[int], loss: int) -> None:
    """A view that is lost between two batches and built again leads to the same view, checkpoints and totals."""
    log = memory_log("s", commits)
    stored = Stored(log)
    batches = batches_of(list(log.read("s")), sizes)

    for number, batch in enumerate(batches):
        if number == loss % len(batches):
            stored.view, stored.checkpoints = None, {}
        stored.apply(batch)

    whole = from_log(log, "s", folded(log, "s").seq)[0]
    assert stored.view == session_view.encode(whole.view)
    assert stored.totals == contributions(whole.view)
    if loss % len(batches) == 0:
        assert stored.checkpoints == whole.checkpoints


@given(commits=histories())
def test_every_checkpoint_is_the_fold_at_its_place(commits: list[list[Event]]) -> None:
    """A checkpoint's bytes are those of the view right after its seq; the newest four that were due are kept."""
    log = memory_log("s", commits)
    due = [commit.last_seq for commit in log.read("s") if is_checkpoint(commit)]

    folding = Folding(session_view.initial("s"))
    folding.advance(log.read("s"))

    assert sorted(folding.checkpoints) == due[-CHECKPOINTS_KEPT:]
    for seq, stored in folding.checkpoints.items():
        assert stored == session_view.encode(folded(log, "s", seq))


@pytest.mark.parametrize(
    ("sizes", "places"),
    [
        ([49], []),
        ([50], [50]),
        ([49, 1], [50]),
        ([49, 2], [51]),
        ([51, 48, 1], [51, 100]),
        ([120], [120]),
        ([50, 50, 50, 50, 50, 49], [100, 150, 200, 250]),
    ],
)
def test_a_checkpoint_stands_where_a_commit_crosses_a_multiple_of_50(sizes: list[int], places: list[int]) -> None:
    """At the end of that commit, never inside it, and once however many multiples it crosses."""
    log = memory_log("s", [notes(size) for size in sizes])

    assert sorted(from_log(log, "s", sum(sizes))[0].checkpoints) == places


@pytest.mark.parametrize("type", ["broke", "handoff", "completed"])
def test_a_checkpoint_stands_where_something_turned(type: str) -> None:
    """At the end of a commit that holds broke, handoff or completed; other events make none."""
    log = memory_log("s", [[did("start")], [did("joined"), did(type), did("tool.called")], [did("left")]])

    assert list(from_log(log, "s", 5)[0].checkpoints) == [4]


def test_a_view_depends_on_nothing_but_the_log() -> None:
    """Two logs with the same commits at the same server times give the same bytes; another time gives others."""
    commits = [[did("start", entities=["b", "a"])], list(notes(60, "bob"))]

    first, second = (folded(memory_log("s", commits), "s") for _ in range(2))

    assert session_view.encode(first) == session_view.encode(second)
    assert session_view.document(first)["started_at"] == "2023-11-14T22:13:20.000Z"
    assert session_view.document(session_view.initial("s"))["started_at"] is None
