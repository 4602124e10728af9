"""The follower of feeds ends when nobody listens any more."""

from __future__ import annotations

import asyncio
from typing import Any

from domain.log.exchange import Wire
from domain.log.keys import Keyspace
from domain.log.subscribing.listening import FollowingTask


class _Listener:
    def heard(self, partitions: Any) -> None:
        pass

    def end(self) -> None:
        pass


def test_a_follower_ends_though_its_cancellation_got_lost() -> None:
    """As it does where a connection breaks while a cancelled task closes it: the error is raised in its place."""

    async def closed() -> bool:
        turns = 0

        async def drive(wire: Wire[None]) -> None:
            nonlocal turns
            turns += 1
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if turns == 1:
                    raise ConnectionResetError from None
                raise

        follower = FollowingTask(Keyspace("test", "main", 1), drive, 1.0)
        listener = _Listener()
        follower.add(listener, None)
        while not turns:
            await asyncio.sleep(0)
        await asyncio.wait_for(follower.remove(listener, None), 10)
        return turns == 1

    assert asyncio.run(closed())
