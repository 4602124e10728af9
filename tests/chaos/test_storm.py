"""Subscribers under a storm: each event once and in order, and nothing of a subscription is left when it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from domain import AsyncSessionLog, Delivery
from tests.chaos.effort import FULL, seeded
from tests.chaos.resources import held
from tests.chaos.storm import storm
from tests.conftest import Store
from tests.domain.log.logs import note
from tests.waiting import wait_until


def test_through_a_storm_each_event_comes_once_and_in_order(tmp_path: Path) -> None:
    """An hour's worth of events at twenty a second where MUSTER_CHAOS=full, a minute's in the gate."""
    found = storm(tmp_path, 72_000 if FULL else 1_000, seeded().randrange(1 << 30))

    assert found.complaints() == []
    assert found.cuts > 10


def test_thousands_of_subscriptions_share_a_few_connections(store: Store) -> None:
    """All are told what is theirs; closed, they leave nothing behind."""
    count, sessions = (10_000, 500) if FULL else (2_000, 100)
    before = held()
    most, given = asyncio.run(_many(store.open_async, count, sessions))

    assert sorted(given) == sorted(
        (number, f"many-{number % sessions}", seq) for number in range(count) for seq in (1, 2)
    )
    assert most <= before.sockets + 40
    wait_until(lambda: held() == before, message="nothing is left running or open")


async def _many(
    opened: Callable[[], Coroutine[Any, Any, AsyncSessionLog]], count: int, sessions: int
) -> tuple[int, list[tuple[int, str, int]]]:
    given: list[tuple[int, str, int]] = []
    most = 0

    async def take(log: AsyncSessionLog, number: int) -> None:
        async with log.subscribe(f"many-{number % sessions}", after=0) as subscription:
            for _ in range(2):
                delivery: Delivery | None = await subscription.get(timeout_s=60)
                assert delivery is not None
                given.append((number, delivery.session, delivery.seq))

    async with await opened() as log:
        tasks = [asyncio.create_task(take(log, number)) for number in range(count)]
        for _ in range(2):
            await asyncio.sleep(0.2)
            for number in range(sessions):
                await log.append(f"many-{number}", note())
                if number % 20 == 0:
                    most = max(most, held().sockets)
        await asyncio.gather(*tasks)
    return most, given
