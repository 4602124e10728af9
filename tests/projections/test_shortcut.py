"""Law: what is built from a checkpoint equals what is built from the first event, and reads only what came after.

A checkpoint that does not verify is passed over for an older one, or for none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import pytest

from domain.codec import Commit
from domain.log.feed import Span
from domain.stretch import Stretch, one_by_one
from projections import session_view
from projections.catchup import fold_span
from projections.session_view import Folding
from tests.projections.world import World, did, folded, memory_log, notes

EVENTS: Final = 1500
LOG: Final = memory_log("s", [notes(10) for _ in range(EVENTS // 10)] + [[did("modified", "zoe")]])


def checkpoints() -> dict[int, bytes]:
    folding = Folding(session_view.initial("s"))
    folding.advance(LOG.read("s", to=EVENTS))
    assert sorted(folding.checkpoints) == [1350, 1400, 1450, 1500]
    return folding.checkpoints


class Counting:
    """A reader that counts the commits it gave."""

    def __init__(self) -> None:
        self.read_commits = 0

    def read(self, session: str, *, after: int = 0, to: int | None = None) -> Iterator[Commit]:
        for commit in LOG.read(session, after=after, to=to):
            self.read_commits += 1
            yield commit

    def read_each(self, sessions: Sequence[str]) -> Iterator[Iterator[Commit]]:
        return (self.read(session) for session in sessions)

    def stretches(self, session: str, *, after: int = 0) -> Iterator[Stretch]:
        return one_by_one(self.read(session, after=after))

    def stretches_each(self, sessions: Sequence[str]) -> Iterator[Iterator[Stretch]]:
        return (self.stretches(session) for session in sessions)


def built(kept: dict[int, bytes]) -> tuple[bytes, int]:
    """The view of the last commit's span where the stored one is missing, and how many commits were read for it."""
    log = Counting()
    outcome = fold_span(log, Span("s", EVENTS + 1, EVENTS + 1), None, LOG.read("s", after=EVENTS), lambda _: kept)
    assert outcome is not None
    assert outcome.parked is None
    assert {agent: totals.events for agent, totals in outcome.moved.items()} == {"zoe": 1}
    return outcome.view, log.read_commits


def test_what_came_before_the_checkpoint_is_not_read() -> None:
    view, read = built(checkpoints())
    assert view == session_view.encode(folded(LOG, "s"))
    assert read <= 3


def changed(stored: bytes, **fields: object) -> bytes:
    view = session_view.decode(stored)
    for name, value in fields.items():
        setattr(view, name, value)
    return session_view.encode(view)


WRONG: Final[dict[str, Callable[[bytes], bytes]]] = {
    "flipped": lambda stored: stored[:-1] + bytes([stored[-1] ^ 1]),
    "empty": lambda _: b"",
    "of another session": lambda stored: changed(stored, session="t"),
    "of another history": lambda stored: changed(stored, digest="0" * 20),
    "of another place": lambda _: checkpoints()[1400],
    "of no history": lambda stored: changed(stored, event_types={"tool.called": 7}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_checkpoint_that_does_not_verify_is_passed_over(wrong: str) -> None:
    kept = checkpoints()
    kept[1500] = WRONG[wrong](kept[1500])
    view, read = built(kept)
    assert view == session_view.encode(folded(LOG, "s"))
    assert 5 <= read <= 12, "it began at the checkpoint before"

    view, read = built({seq: WRONG[wrong](stored) if seq != 1400 else stored for seq, stored in kept.items()})
    assert view == session_view.encode(folded(LOG, "s"))


def test_recovery_takes_the_shortcut_only_where_checkpoints_were_found_right(world: World) -> None:
    """A wrong state sealed like a right one would spread: verification finds it, and the fold begins at zero."""
    for _ in range(EVENTS // 100):
        world.log.append("s", notes(100))
    world.log.append("s", did("modified", "zoe"))
    world.project()
    before = world.derived()
    keys = world.keyspace.of("s")

    world.redis.delete(keys.session_view("s"))
    assert world.recover() == []
    assert world.derived() == before

    world.redis.delete(keys.session_view("s"))
    newest = world.redis.hget(keys.checkpoints("s"), "1500")
    world.redis.hset(keys.checkpoints("s"), "1500", changed(newest, state="broken"))
    assert world.codes() == ["CHECKPOINT_DIFFERS", "VIEW_MISSING"]
    assert world.recover() == []
    assert world.derived() == before
