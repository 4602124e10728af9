"""A process that migrates, to be killed: `python -m tests.chaos.migrator ENVIRONMENT SOURCE NAMESPACE TARGET NAMESPACE
TASK WHAT`, where WHAT is `move` or `rollback`.
"""

from __future__ import annotations

import sys

from domain.log import Connecting
from workers.migration.ends import Address, Ends, opened
from workers.migration.moving import Moving
from workers.migration.record import Migration, Migrations
from workers.pacing import Pace


def moving(ends: Ends, migration: Migration) -> Moving:
    return Moving(ends, migration, who="tester", pace=Pace(lambda _: None, verb="moved"), say=lambda _: None, batch=2)


def migrate(ends: Ends, task: str, what: str) -> None:
    """Moves everything, or brings it back."""
    work = moving(ends, Migrations(ends.target.store).get(task))
    if what == "move":
        with work.phase("copying", "copied"):
            work.copy()
        with work.phase("cutting over", "moved"):
            work.cutover()
    else:
        with work.phase("rolling back", "rolled back"):
            work.rollback(carry_back=True)


def main(environment: str, source: str, there: str, target: str, here: str, task: str, what: str) -> None:
    addresses = [
        # Patient: on a busy machine it is to die of nothing but what the test does to it.
        Address(Connecting(url, timeout_s=30, retry_for_s=60), environment, namespace)
        for url, namespace in ((source, there), (target, here))
    ]
    with opened(*addresses) as ends:
        migrate(ends, task, what)


if __name__ == "__main__":
    main(*sys.argv[1:])
