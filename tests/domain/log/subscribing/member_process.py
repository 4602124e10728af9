"""A member of a durable subscription in a process of its own: says what it was given, and acknowledges after every few.

    python -m tests.domain.log.subscribing.member_process URL NAMESPACE NAME ACK_EVERY

A line `<session> <seq>` for each delivery, `ack` once what was said before is acknowledged, `lost <session> …` if what
was said of these sessions is another member's now, and the rest is acknowledged.
"""

from __future__ import annotations

import sys

from domain import Conflict, SessionLog, Unavailable
from domain.log import Connecting
from tests.conftest import ENVIRONMENT


def main() -> None:
    url, namespace, name, every = sys.argv[1:]
    with (
        SessionLog.open(Connecting(url, retry_for_s=60.0), environment=ENVIRONMENT, namespace=namespace) as log,
        log.subscribe_as(name, after="beginning", ttl_ms=1000) as subscription,
    ):
        taken: list[str] = []
        while True:
            delivery = subscription.get(timeout_s=0.1)
            if delivery is not None:
                taken.append(delivery.session)
                print(delivery.session, delivery.seq, flush=True)
            if taken and (len(taken) >= int(every) or delivery is None):
                try:
                    subscription.ack()
                    print("ack", flush=True)
                except Unavailable:
                    continue  # it is acknowledged when the server is back
                except Conflict as conflict:
                    partitions = conflict.facts["partitions"]
                    print("lost", *(one for one in taken if log.keyspace.partition_of(one) in partitions), flush=True)
                taken.clear()


if __name__ == "__main__":
    main()
