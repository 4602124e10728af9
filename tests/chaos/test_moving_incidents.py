"""Real histories, moved while they go on: nothing is lost, nothing is doubled, nothing is out of its place."""

from __future__ import annotations

from domain.log import Connecting
from tests.chaos.effort import FULL
from tests.chaos.moving_incidents import histories, move, seqs_are_as_expected
from tests.conftest import ENVIRONMENT
from tests.workers.migration.conftest import either_way
from tests.workers.migration.scene import Scene
from workers.migration.ends import Address

__all__ = ["either_way"]

#: How many sessions of the file; all of them where there is time.
SESSIONS = None if FULL else 120


def test_sessions_move_while_they_are_appended_to(either_way: Scene) -> None:
    """From one kind of server to the other, into other partitions: four producers follow and append what is left, and a
    member of a durable subscription follows and is given all of it.
    """
    there, here = (
        Address(Connecting(store.url), ENVIRONMENT, store.namespace) for store in (either_way.source, either_way.target)
    )

    result = move(there, here, sessions=SESSIONS, rate=None, batch=16, subscribed=True)

    assert (result.lost, result.doubled, result.misplaced) == (0, 0, 0)
    assert (result.problems, result.failed) == (0, 0)
    assert (result.not_given, result.given_again, result.out_of_order) == (0, 0, 0)
    assert result.while_moving > 0
    assert result.downtime_ms["p50"] is not None
    assert seqs_are_as_expected(here, list(histories(SESSIONS)))
