"""What a standby knows of the source's durable subscriptions: where each stood when it was last looked at.

A failover may find the source dead. So each round of a sync notes the places, a partition at a time, as they are; up to
where that is in each session, the standby's own copies of the logs tell, because they have the same times and seqs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from domain.errors import MusterError
from domain.log.keys import partition_of
from domain.log.protocol import Command, together
from domain.log.subscribing.delivery import Place
from domain.log.subscribing.durable import DurableSubscriptions, partitions_of, read_wanted
from domain.log.subscribing.reached import Mark, Reached
from workers.migration.cursors import PAGE, Subscribed, close, held, make, subscribed
from workers.migration.ends import End
from workers.migration.selecting import pages

_PARTITIONS: Final = "partitions"


_PACKER: Final = msgspec.msgpack.Encoder()
_REACHED: Final = msgspec.msgpack.Decoder(Reached)
_NOTHING: Final = Reached(Place(), {})


class Mirror:
    """The source's subscriptions, as one standby keeps them."""

    def __init__(self, target: End, task: str, say: Callable[[str], None]) -> None:
        self._target = target
        self._task = task
        self._say = say
        self._key = target.keyspace.cursors(task)
        self._noted: dict[str, bytes] | None = None

    def look(self, source: End) -> None:
        """Notes where they stand. Raises Unavailable."""
        seen = {_PARTITIONS: str(source.keyspace.count).encode()}
        for one in subscribed(source):
            seen[one.name] = msgspec.json.encode(one.wanted)
            reached = source.log.drive(DurableSubscriptions(source.keyspace).reached(one.name, one.wanted))
            seen |= {f"{partition} {one.name}": _PACKER.encode(found) for partition, found in reached.items()}
        self._note(seen)

    def close(self, source: End, *, is_looked_at: bool) -> None:
        """Has their members go to the standby; notes where they stand then, if that counts. Raises Unavailable."""
        for one in subscribed(source):
            close(source, one, self._target)
            for partition in partitions_of(source.keyspace, one.wanted):
                with held(source, one, partition, self._task):
                    pass  # whoever held it acknowledges nothing any more, and nobody takes it
        if is_looked_at:
            self.look(source)

    def _note(self, seen: dict[str, bytes]) -> None:
        if self._noted is None:
            (stored,) = self._target.replies([["HKEYS", self._key]])
            self._noted = dict.fromkeys((name.decode() for name in stored), b"")
        changed = {name: value for name, value in seen.items() if self._noted.get(name) != value}
        commands: list[Command] = [
            ["HSET", self._key, *(part for name in page for part in (name, changed[name]))]
            for page in pages(changed, PAGE)
        ]
        commands += [["HDEL", self._key, *page] for page in pages(self._noted.keys() - seen.keys(), PAGE)]
        self._target.replies(commands)
        self._noted = seen

    def restore(self) -> None:
        """Makes the subscriptions here, each session from where it was given up to; before anything is opened.

        Raises Unavailable. May be done again, until they are made.
        """
        (stored,) = self._target.replies([["HGETALL", self._key]])
        pairs = stored.items() if isinstance(stored, dict) else zip(stored[::2], stored[1::2], strict=True)
        seen = {name.decode(): value for name, value in pairs}
        count = int(seen.pop(_PARTITIONS, b"0"))
        made = DurableSubscriptions(self._target.keyspace)
        for name in sorted(name for name in seen if " " not in name):
            if self._target.log.drive(made.is_made(name)):
                self._say(f"subscription {name} is there already: it goes on from its own places")
                continue
            one = Subscribed(name, read_wanted(seen[name]))
            there = {at: _REACHED.decode(seen[f"{at} {name}"]) for at in range(count) if f"{at} {name}" in seen}
            self._mark(one, there, count)
            make(self._target, one)

    def _mark(self, one: Subscribed, there: dict[int, Reached], count: int) -> None:
        target = self._target
        for page in pages((session for session in target.log.sessions() if one.wants(session)), PAGE):
            flows = [there.get(partition_of(session, count), _NOTHING).mark_flow(session) for session in page]
            commands: list[Command] = []
            for session, found in zip(page, target.log.run(together(flows)), strict=True):
                # Of what cannot be read nobody can say it was given.
                mark = Mark(0) if isinstance(found, MusterError) else found
                commands.append(["HSET", target.keyspace.of(session).reached(one.name), session, str(mark)])
            target.replies(commands)
