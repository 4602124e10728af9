"""Durable subscriptions in a backup: what each wants, and how far it was; restored, each session has a mark of that.

Their places are those of feeds that are not restored. How far they were in each session, the commits that are restored
tell by their times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec

from domain.codec import Commit
from domain.log import SessionLog
from domain.log.contract import Head
from domain.log.keys import Keyspace, partition_of
from domain.log.protocol import Command, Flow, HeadRequest, RangeRequest, Request
from domain.log.subscribing.delivery import Place
from domain.log.subscribing.durable import DurableSubscriptions, pack_place, partitions_of
from workers.backup.folder import Manifest, Row, Subscribed

T = TypeVar("T")


def subscribed(log: SessionLog) -> Iterator[Subscribed]:
    """The durable subscriptions of a store, as they stand; those that were moved to another store stand there."""
    made = DurableSubscriptions(log.keyspace)
    for name in log.drive(made.names()):
        if log.drive(made.is_made(name)):
            found = log.drive(made.show(name))
            if found.moved_to is None:
                yield Subscribed(name, found.wanted, log.drive(made.reached(name, found.wanted)))


def marking(manifest: Manifest, keyspace: Keyspace, row: Row, commits: Sequence[Commit]) -> Iterator[Command]:
    """The commands that say of a session, where it is restored, up to where it was given."""
    session = row.session
    for one in manifest.subscriptions:
        reached = one.reached.get(partition_of(session, manifest.partitions))
        if reached is not None and one.wanted.has(session):
            mark = _answered(reached.mark_flow(session), row, commits)
            yield ["HSET", keyspace.of(session).reached(one.name), session, str(mark)]


def placing(manifest: Manifest, keyspace: Keyspace, partition: int, place: Place) -> Iterator[Command]:
    """The commands that set subscriptions behind what is restored of a partition: marks say what of it is to come."""
    for one in manifest.subscriptions:
        if partition in partitions_of(keyspace, one.wanted):
            yield ["SET", keyspace.partitions[partition].place(one.name), pack_place(place)]


def making(manifest: Manifest, keyspace: Keyspace) -> Iterator[Command]:
    """The commands that make the subscriptions, whose places and marks are there."""
    for one in manifest.subscriptions:
        wanted = msgspec.json.encode(one.wanted, order="deterministic")
        yield ["ZADD", keyspace.subscriptions, 0, one.name]
        yield ["HSET", keyspace.subscription(one.name), "wanted", wanted, "ready", 1]


def _answered(flow: Flow[T], row: Row, commits: Sequence[Commit]) -> T:
    """What a flow finds in the commits of one session."""
    try:
        requests: Sequence[Request] = next(flow)
        while True:
            requests = flow.send([_answer(request, row, commits) for request in requests])
    except StopIteration as done:
        result: T = done.value
        return result


def _answer(request: Request, row: Row, commits: Sequence[Commit]) -> Head | list[Commit] | None:
    if isinstance(request, HeadRequest):
        return Head(row.seq, row.digest, row.gate, commits[-1].at_ms) if commits else None
    assert isinstance(request, RangeRequest)
    return [commit for commit in commits if commit.last_seq >= request.from_seq][: request.count]
