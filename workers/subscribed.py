"""How far durable subscriptions are behind what was appended."""

from __future__ import annotations

from typing import Any

from domain.log import SessionLog
from domain.log.protocol import StandingRequest
from domain.log.subscribing.durable import Durable


def standing(log: SessionLog) -> list[int]:
    """The running totals of all partitions."""

    def flow() -> Any:
        answers = yield [StandingRequest(partition) for partition in range(log.keyspace.count)]
        return [answer.total for answer in answers]

    totals: list[int] = log.run(flow())
    return totals


def behind(found: Durable, partition: int, totals: list[int]) -> int | None:
    """How many events of a partition are not acknowledged yet; None where the place is known by its time alone."""
    place = found.places[partition]
    if place is None or place.total < 0 or place.catching is not None:
        return None
    return max(0, totals[partition] - place.total)
