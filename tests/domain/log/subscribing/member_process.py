"""A member of a durable subscription in a process of its own: says what it was given, and acknowledges after every few.

    python -m tests.domain.log.subscribing.member_process URL NAMESPACE NAME ACK_EVERY

A line `<session> <seq>` for each delivery, `ack` once what was said before is acknowledged, `lost` if a part of it is
another member's now.
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
        taken = 0
        while True:
            delivery = subscription.get(timeout_s=0.1)
            if delivery is not None:
                taken += 1
                print(delivery.session, delivery.seq, flush=True)
            if taken and (taken >= int(every) or delivery is None):
                try:
                    subscription.ack()
                    print("ack", flush=True)
                except Unavailable:
                    continue  # it is acknowledged when the server is back
                except Conflict:
                    print("lost", flush=True)
                taken = 0


if __name__ == "__main__":
    main()
