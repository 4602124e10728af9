"""Durable subscriptions, as the validator and the trimming of feeds see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from domain.errors import Damaged
from domain.log.keys import Keyspace
from domain.log.subscribing.delivery import Place
from domain.log.subscribing.durable import partitions_of, read_place, read_wanted


def durable_places(
    client: Any, keyspace: Keyspace, partitions: Sequence[int]
) -> dict[int, list[tuple[str, Place | None]]]:
    """The places of all durable subscriptions, by partition and name; None for one that cannot be read."""
    found: dict[int, list[tuple[str, Place | None]]] = {partition: [] for partition in partitions}
    names = [name.decode() for name in client.zrange(keyspace.subscriptions, 0, -1)]
    for name in names:
        about = client.hmget(keyspace.subscription(name), "wanted", "ready")
        if about[1] is None:
            continue  # it is being made
        try:
            read = set(partitions_of(keyspace, read_wanted(about[0])))
        except (msgspec.MsgspecError, TypeError, UnicodeDecodeError):
            read = set(range(keyspace.count))
        asked = [partition for partition in partitions if partition in read]
        pipe = client.pipeline(transaction=False)
        for partition in asked:
            pipe.get(keyspace.partitions[partition].place(name))
        for partition, stored in zip(asked, pipe.execute(raise_on_error=False) if asked else [], strict=True):
            try:
                place = read_place(name, partition, stored if isinstance(stored, bytes) else None)
            except Damaged:
                place = None
            found[partition].append((name, place))
    return found
