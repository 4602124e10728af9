"""A process that forks a session dies at each of its steps: what it leaves is no lie, and the same fork finishes it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Final

import pytest

from domain import Append
from domain.log.protocol import CALL_COMMITS
from projections.forks import compared
from tests.conftest import ENVIRONMENT, Store
from tests.projections.world import World, did

#: Copied in this many steps.
STEPS: Final = 3
AT: Final = STEPS * CALL_COMMITS - 5

#: Forks, and dies right before or right after the server was sent a step.
FORKER: Final = """
import os, signal, sys
from domain import SessionLog
from domain.log.protocol import ForkRequest

url, environment, namespace, at, step, when = sys.argv[1:]
log = SessionLog.open(url, environment=environment, namespace=namespace)
send, sent = log._send_requests, 0

def dying(requests, once=False):
    global sent
    sent += any(isinstance(request, ForkRequest) for request in requests)
    if sent == int(step) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    answers = send(requests, once)
    if sent == int(step):
        os.kill(os.getpid(), signal.SIGKILL)
    return answers

log._send_requests = dying
log.fork("s", int(at), "t", who="the one that dies")
"""


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A session that takes STEPS steps to be forked."""
    world = World(make_store(server_url, partitions=4))
    world.log.append_many([Append("s", (did("modified", "ann", entities=[f"f{n}"]),)) for n in range(AT + 20)])
    return world


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_killed_fork_is_finished_by_the_same_fork(world: World, step: int, when: str) -> None:
    """After kill -9 there is nothing, or a part that says so and takes no appends, or the whole; then it is whole."""
    where = (world.store.url, ENVIRONMENT, world.store.namespace)
    ran = subprocess.run([sys.executable, "-c", FORKER, *where, str(AT), str(step), when], check=False, timeout=60)
    assert ran.returncode == -signal.SIGKILL

    taken = step if when == "after" else step - 1
    head = world.log.head("t")
    assert (head is None) == (taken == 0)
    if head is not None:
        assert (head.seq, head.quarantined) == ((AT + 1, False) if taken == STEPS else (taken * CALL_COMMITS, True))
        world.project()
        assert world.codes() == ([] if taken == STEPS else ["QUARANTINED"])
    assert ("t" in list(world.log.sessions())) == (taken > 0)

    forked = world.log.fork("s", AT, "t")

    assert forked.is_new == (taken < STEPS)
    world.log.append("t", did("left", "ann"), known=forked.receipt)
    world.project()
    assert world.codes() == []
    assert world.views.session("t")["seq"] == AT + 2
    assert compared(world.views, world.log, "t").is_copy
