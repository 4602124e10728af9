"""The same work on a stock Dramatiq queue, one message an event: what draining is measured against.

    python -m tests.bench.peers.dramatiq_actor STORE_URL ENVIRONMENT NAMESPACE QUEUE_URL

is one worker process, until SIGTERM.
A message names a session and a seq. Its actor reads the event from the log, folds it into the view it finds, and writes
the view: no order, no lease, no cursor, no totals.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import dramatiq
import redis
from dramatiq import Worker
from dramatiq.brokers.redis import RedisBroker

from domain.log.keys import Keyspace
from domain.log.protocol import parse_entry
from projections import session_view

QUEUE = "stock"
ACTOR = "fold"
#: Counts the processes that have begun to listen.
READY = "stock:ready"


def broker_on(url: str) -> RedisBroker:
    broker = RedisBroker(url=url, middleware=[])  # type: ignore[no-untyped-call]
    broker.declare_queue(QUEUE)
    return broker


def send(broker: RedisBroker, session: str, seq: int) -> None:
    broker.enqueue(dramatiq.Message(QUEUE, ACTOR, (session, seq), {}, {}))


def waiting(broker: RedisBroker) -> int:
    """Messages that are not done."""
    return int(broker.client.hlen(f"{broker.namespace}:{QUEUE}.msgs"))


def command(store_url: str, keyspace: Keyspace, queue_url: str) -> list[str]:
    """What starts a worker process on a store's logs."""
    module = [sys.executable, "-m", "tests.bench.peers.dramatiq_actor"]
    return [*module, store_url, keyspace.environment, keyspace.namespace, queue_url]


def main(store_url: str, environment: str, namespace: str, queue_url: str) -> None:
    keyspace = Keyspace(environment, namespace, 32)
    client: Any = redis.Redis.from_url(store_url)

    def fold(session: str, seq: int) -> None:
        keys = keyspace.of(session)
        (entry,) = client.xrange(keys.log(session), f"{seq}", f"{seq}")
        key = f"stock:{session}"
        view = session_view.readable(client.get(key), session) or session_view.initial(session)
        for event in parse_entry(session, entry).events:
            view.apply(event)
        client.set(key, session_view.encode(view))

    broker = broker_on(queue_url)
    dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name=ACTOR)(fold)
    worker = Worker(broker, worker_threads=8)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    worker.start()
    client.incr(READY)
    stop.wait()
    worker.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
