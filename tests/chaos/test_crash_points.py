"""A worker killed with -9 at every request of a commit: before the step nothing of the batch is there, after it all.

The worker is a process of its own. Between it and the server stands a proxy that counts its requests, and kills it at
the one that a test names, so that no test depends on when a signal arrives.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from threading import Lock
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import pytest

from domain.agent import Totals, contributions, merge
from projections import agent_view, session_view
from projections.store import Cursor
from tests.chaos.effort import FULL
from tests.chaos.proxy import Fault, Moment, Proxy, Strike
from tests.conftest import ENVIRONMENT, Store
from tests.projections.world import World, did, folded, foreign_append, notes
from workers.child_process import ChildProcess, start_child

#: The store has one partition, so that one batch holds all sessions.
PARTITION: Final = 0
STEP: Final = b"muster_step_1"
#: Whose log goes on with a body that nobody can read, where a test wants one.
DAMAGED: Final = "s-3"
#: How long a child may take; only a broken test takes it all.
PATIENCE_S: Final = 60


class Point(NamedTuple):
    """Where a worker dies: at its so-manieth request (from 0), before the server gets it or after it answered."""

    request: int
    moment: Moment


class CountingProxy(Proxy):
    """Keeps all requests, and kills the process that sends them at one of them."""

    def __init__(self, url: str, point: Point | None) -> None:
        self.requests: list[bytes] = []
        #: A promise, because the first request may come before its sender is known.
        self.child: Future[ChildProcess] = Future()
        self._point = point
        self._counting = Lock()
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        super().__init__(address.hostname, address.port)

    def _what_befalls(self, request: bytes) -> tuple[Fault, Strike | None]:
        with self._counting:
            number = len(self.requests)
            self.requests.append(request)
        if self._point is None or number != self._point.request:
            return Fault.NONE, None
        # Who dies before the request arrived has not sent it.
        fault = Fault.REQUEST_LOST if self._point.moment is Moment.ARRIVING else Fault.NONE
        return fault, Strike(self._point.moment, self._kill)

    def _kill(self) -> None:
        child = self.child.result()
        child.kill()
        child.wait()


def apply_in_a_child(world: World, point: Point | None = None) -> tuple[int, list[bytes]]:
    """A child applies one batch, or dies at the point: its exit code, and its requests as far as it came."""
    with closing(CountingProxy(world.store.url, point)) as proxy:
        command = [sys.executable, "-m", "tests.chaos.applier", proxy.url, ENVIRONMENT, world.store.namespace]
        child = start_child([*command, str(PARTITION)], env=world.environ())
        try:
            proxy.child.set_result(child)
            return child.wait(PATIENCE_S), proxy.requests
        finally:
            child.kill()
            child.wait()


class Scene:
    """A world before a batch, and where its sessions stand before it, after it, and at the end."""

    def __init__(self, world: World, *, damaged: bool) -> None:
        self.world = world
        self.damaged = damaged
        world.sessions(5)
        world.project()
        self.before = self._seqs()
        self.cursor = world.projections.cursor(PARTITION)

        world.log.append("s-0", notes(60, "ann"))  # crosses a checkpoint
        world.log.append("s-1", [did("modified", "ann"), did("joined", "bob")])
        world.log.append("s-2", notes(2, "bob"))
        world.log.append("s-2", [did("left", "bob"), *notes(3, "dan")])  # two commits in one span
        world.log.append("new", [did("start", "dan"), did("modified", "ann")])
        world.log.append(DAMAGED, [did("completed", "ann")])
        self.after = self._seqs()
        if damaged:
            assert foreign_append(world.store, DAMAGED, ".", b"\xc1 no events at all")[0] == "APPENDED"
        self.total = world.projections.total(PARTITION)

    def _seqs(self) -> dict[str, int]:
        """Where the log of each session ends; only what is not damaged yet may be asked so."""
        (page,) = self.world.projections.member_pages(PARTITION)
        heads = self.world.projections.heads(page)
        return {session: head.seq for session, head in zip(page, heads, strict=True) if head is not None}

    def go_on(self) -> None:
        """The log moves on while nobody projects it."""
        self.world.log.append("s-0", [did("modified", "bob")])
        self.world.log.append("new", notes(1, "eve"))
        self.after |= {"s-0": self.after["s-0"] + 1, "new": self.after["new"] + 1}
        self.total += 2

    def assert_stands_before(self) -> None:
        """Nothing of the batch is there."""
        assert self.world.projections.cursor(PARTITION) == self.cursor
        self._assert_views(self.before)
        assert self.world.projections.parked(PARTITION, [DAMAGED]) == [None]

    def assert_stands_after(self) -> None:
        """Everything up to the total is there, and was applied once."""
        begin = self.cursor.position or 0
        applied = Cursor(self.total, self.cursor.events + self.total - begin)
        assert self.world.projections.cursor(PARTITION) == applied
        self._assert_views(self.after)
        (parked,) = self.world.projections.parked(PARTITION, [DAMAGED])
        assert (parked and parked.first_bad_seq) == (self.after[DAMAGED] + 1 if self.damaged else None)

    def _assert_views(self, seqs: dict[str, int]) -> None:
        """The views and checkpoints are folds of the log up to these seqs, and the totals are sums of the views."""
        projections, sums = self.world.projections, dict[str, Totals]()
        for session, stored in zip(self.after, projections.views(list(self.after)), strict=True):
            seq = seqs.get(session, 0)
            head = self.world.log.head(session)
            assert seq <= (0 if head is None else head.seq)
            if seq == 0:
                assert stored is None, f"the view of {session} is ahead of the cursor"
                continue
            view = folded(self.world.log, session, seq)
            assert view.seq == seq
            assert stored == session_view.encode(view), f"the view of {session} is not the fold up to {seq}"
            merge(sums, contributions(view))
            for at, checkpoint in projections.checkpoints(session).items():
                assert at <= seq, f"a checkpoint of {session} is ahead of its view"
                assert checkpoint == session_view.encode(folded(self.world.log, session, at))
        crossed = [at for at in projections.checkpoints("s-0") if at >= session_view.CHECKPOINT_INTERVAL]
        assert bool(crossed) == (seqs["s-0"] >= session_view.CHECKPOINT_INTERVAL)
        agents = [agent for page in projections.member_pages(PARTITION, agents=True) for agent in page]
        stored_totals = dict(zip(agents, projections.totals(PARTITION, agents), strict=True))
        assert stored_totals == {agent: agent_view.encode(agent, totals) for agent, totals in sums.items()}


def take_over(world: World) -> None:
    """Another holder takes the partition from whoever has it, and applies what there is to apply."""
    token = world.leases.claim(PARTITION, ttl_ms=60_000, force=True)
    assert token is not None
    while (batch := world.next_batch(PARTITION, token)) is not None:
        assert batch.cursor_to is not None, "the feed no longer tells what is new"
        world.apply(batch)
    world.leases.release(PARTITION, token)


def request_of(requests: list[bytes], function: bytes) -> int:
    """Which request calls a function; there is one."""
    (number,) = [number for number, request in enumerate(requests) if function in request]
    return number


def points(requests: list[bytes], *, damaged: bool) -> Iterator[Point]:
    """Where to die: at every request. In the gate, over damage, only at the step itself."""
    first, last = 0, len(requests) - 1
    if damaged and not FULL:
        first = last = request_of(requests, STEP)
    for number in range(first, last + 1):
        yield Point(number, Moment.ARRIVING)
        yield Point(number, Moment.ANSWERED)


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
def test_a_worker_killed_at_any_request_of_a_commit_leaves_all_of_it_or_nothing(
    server_url: str, make_store: Callable[..., Store], damaged: bool
) -> None:
    """Views, checkpoints, totals, parked sessions and the cursor stand together before the batch, or after it.

    Which of the two, the one step decides: what came before it wrote nothing, and what comes after adds nothing. The
    next holder goes on from there by the feed, and every event is applied once.
    """

    def scene() -> Scene:
        return Scene(World(make_store(server_url, partitions=1)), damaged=damaged)

    undisturbed = scene()
    undisturbed.assert_stands_before()
    code, requests = apply_in_a_child(undisturbed.world)
    assert code == 0
    undisturbed.assert_stands_after()
    step = request_of(requests, STEP)

    for point in points(requests, damaged=damaged):
        print(f"killed at {point} of {len(requests)} requests; the step is {step}")
        here = scene()
        code, sent = apply_in_a_child(here.world, point)
        assert code == -signal.SIGKILL
        assert len(sent) == point.request + 1
        if point.request > step or point == (step, Moment.ANSWERED):
            here.assert_stands_after()
        else:
            here.assert_stands_before()

        here.go_on()
        take_over(here.world)
        here.assert_stands_after()
        if damaged:
            assert {finding.session for finding in here.world.verify()} == {DAMAGED}
        else:
            here.world.assert_views_are_folds()
            assert here.world.verify() == []
