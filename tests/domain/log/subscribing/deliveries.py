"""What tests of subscriptions append, and how they take and count what is delivered."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from domain import Append, Delivery
from tests.domain.log.logs import RunnableLog, note


def fleet(log: RunnableLog, seed: int, commits: int = 60, sessions: int = 9) -> None:
    """Commits of one to four events to a few sessions, some of them together in one call."""
    chance = random.Random(seed)
    names = [f"fleet-{seed}-{number}" for number in range(sessions)]
    while commits > 0:
        count = chance.choice((1, 1, 1, 5))
        log.append_many(
            [
                Append(chance.choice(names), tuple(note() for _ in range(chance.randint(1, 4))))
                for _ in range(min(count, commits))
            ]
        )
        commits -= count


def everything(log: RunnableLog) -> dict[str, list[int]]:
    """The seqs of all sessions."""
    return {session: list(range(1, (log.head(session) or _NONE).seq + 1)) for session in log.sessions()}


class _None:
    seq = 0


_NONE = _None()


def seqs(deliveries: Iterable[Delivery]) -> dict[str, list[int]]:
    """The seqs that were delivered, by session, in the order of their delivery."""
    found: dict[str, list[int]] = defaultdict(list)
    for delivery in deliveries:
        assert delivery.error is None
        found[delivery.session].append(delivery.seq)
    return dict(found)


def rest(subscription: Any) -> list[Delivery]:
    """All that the subscription has to deliver until it has caught up."""
    found: list[Delivery] = []
    while (delivery := subscription.get(timeout_s=0)) is not None or not subscription.is_caught_up:
        if delivery is not None:
            found.append(delivery)
    return found


def some(subscription: Any, count: int) -> list[Delivery]:
    """The next so many deliveries."""
    found: list[Delivery] = []
    while len(found) < count:
        delivery = subscription.get(timeout_s=60)
        assert delivery is not None, f"{len(found)} of {count} came"
        found.append(delivery)
    return found
