"""Servers and producers killed with -9 in the middle of appends: one copy of what was acknowledged, no doubt left open.

The server syncs every write before it answers (`appendfsync always`), so that nothing it answered may be lost.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Final

import msgspec
import pytest

from domain import AsyncSessionLog, Event, OutcomeUnknown, Receipt, SessionLog, Unavailable
from domain.log import Connecting
from domain.log.contract import AppendRequest, Expected
from tests.chaos.effort import FULL, seeded
from tests.chaos.producer import BATCHES, Acknowledged, events_of
from tests.chaos.proxy import Fault, Moment, Proxy, Strike, proxied
from tests.conftest import ENVIRONMENT, Store
from tests.domain.log.logs import Blocking, RunnableLog, assert_chained, ids
from tests.waiting import wait_until
from workers.child_process import ChildProcess, start_child
from workers.embedded import EmbeddedServer

APPENDS: Final = 200
#: Every how many appends the server is killed; an odd number, so that both ways to expect a seq have their turn.
EVERY: Final = 1 if FULL else 7
FACES: Final = ("blocking", "asyncio")
#: Where the server is killed: at one place all the time, or at each in turn.
PLACES: Final = ["arriving", "answered", "at random"] if FULL else ["in turn"]
SERVERS: Final = ["valkey", "redis7"] if FULL else ["valkey"]


@pytest.fixture(params=FACES)
def open_log(
    request: pytest.FixtureRequest, killable_store: Store, killable_proxy: Proxy
) -> Iterator[Callable[..., RunnableLog]]:
    """Opens logs of both faces, whose way to the server leads through the proxy."""
    logs: list[RunnableLog] = []
    namespace = killable_store.namespace

    def open_log(*, timeout_s: float, retry_for_s: float) -> RunnableLog:
        connecting = Connecting(killable_proxy.url, timeout_s=timeout_s, retry_for_s=retry_for_s)
        if request.param == "asyncio":
            log: RunnableLog = Blocking(
                lambda: AsyncSessionLog.open(connecting, environment=ENVIRONMENT, namespace=namespace)
            )
        else:
            log = SessionLog.open(connecting, environment=ENVIRONMENT, namespace=namespace)
        logs.append(log)
        return log

    yield open_log
    for log in logs:
        log.close()


def step(number: int) -> Event:
    return Event.of("tool.called", actor="a", id=f"e{number}")


def deaths(server: EmbeddedServer, place: str, chance: random.Random) -> Iterator[Strike]:
    """How the server dies at the next appends; whoever waits finds it started again."""

    def die(delay_s: float = 0) -> None:
        time.sleep(delay_s)
        server.kill()
        server.restart()

    def at_random() -> None:
        die(chance.uniform(0, 0.002))

    strikes = {
        "arriving": Strike(Moment.ARRIVING, die),
        "answered": Strike(Moment.ANSWERED, die),
        "at random": Strike(Moment.TAKEN, at_random),
    }
    yield from cycle(strikes.values() if place == "in turn" else [strikes[place]])


def holds(store: Store, session: str, receipts: list[Receipt]) -> None:
    """The session holds exactly what the receipts say, where they say it, in their order, and it chains."""
    log = store.open()
    commits = list(log.read(session))
    assert [(c.first_seq, c.last_seq, c.digest) for c in commits] == [
        (r.first_seq, r.last_seq, r.digest) for r in receipts
    ]
    assert_chained(session, commits, log.head(session))


# -- the server dies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("killable", SERVERS, indirect=True)
def test_a_log_that_retries_does_not_notice_that_the_server_died(
    killable: EmbeddedServer,
    killable_store: Store,
    killable_proxy: Proxy,
    open_log: Callable[..., RunnableLog],
    place: str,
) -> None:
    """Wherever in an append the server dies, the append ends with a receipt, and each event is there once, in order."""
    log = open_log(timeout_s=30, retry_for_s=60)
    dying = deaths(killable, place, seeded())
    receipts = []
    for number in range(APPENDS):
        if number % EVERY == 0:
            killable_proxy.strikes.append(next(dying))
        at: Expected = number if number % 2 else "any"
        receipts.append(log.append("s", step(number), expected=at))

    assert not killable_proxy.strikes
    assert ids(killable_store.open().read("s")) == [f"e{number}" for number in range(APPENDS)]
    holds(killable_store, "s", receipts)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("killable", SERVERS, indirect=True)
def test_every_append_that_a_death_left_in_doubt_is_settled_rightly(
    killable: EmbeddedServer,
    killable_store: Store,
    killable_proxy: Proxy,
    open_log: Callable[..., RunnableLog],
    place: str,
) -> None:
    """A log that sends once gets a receipt or a doubt; `resolve` finds for each doubt what the log holds, and no more.

    What it says is final, so the doubts may be settled long after: then the last waits for its time, not each.
    """
    log = open_log(timeout_s=2, retry_for_s=0)
    dying = deaths(killable, place, seeded())
    settled: dict[int, Receipt] = {}
    doubts: dict[int, AppendRequest] = {}
    for number in range(APPENDS):
        if number % EVERY == 0:
            killable_proxy.strikes.append(next(dying))
        try:
            settled[number] = log.append("s", step(number))
        except OutcomeUnknown as unknown:
            (doubts[number],) = unknown.doubts
        except Unavailable:
            pass  # the server was away for longer than the log waited: nothing was sent

    assert not killable_proxy.strikes
    for number, doubt in doubts.items():
        found = log.resolve(doubt)
        if found is not None:
            assert (found.appended, found.duplicates) == (0, 1)
            settled[number] = found

    in_order = sorted(settled)
    assert ids(killable_store.open().read("s")) == [f"e{number}" for number in in_order]
    holds(killable_store, "s", [settled[number] for number in in_order])
    assert doubts, "no death left a doubt: the test did not do what it is for"


# -- the producer dies -----------------------------------------------------------------------------------------------

#: How often a producer is killed before it may finish.
DEATHS: Final = 30 if FULL else 2


class Producing:
    """A producer of its own process, which is killed and started again, and the file of what it was acknowledged."""

    def __init__(self, store: Store, url: str, mode: str, notes: Path) -> None:
        self._notes = notes
        self._command = [sys.executable, "-m", "tests.chaos.producer", mode, url, ENVIRONMENT, store.namespace]

    def start(self) -> ChildProcess:
        return start_child([*self._command, str(self._notes)])

    def acknowledged(self) -> list[Acknowledged]:
        """What the producer noted. The last line may be cut: then its receipt is lost with the producer."""
        lines = self._notes.read_bytes().split(b"\n")[:-1] if self._notes.exists() else []
        return [msgspec.json.decode(line, type=Acknowledged) for line in lines]

    def live_through(self, deaths: int, chance: random.Random) -> None:
        """Runs the producer to its end, after it was killed so many times, each at a random moment of its work."""
        for death in range(deaths):
            enough = BATCHES * (death + 1) // (deaths + 1)
            self._live_until(enough, chance.uniform(0, 0.005))
        while (code := self.start().wait()) != 0:
            assert code == -signal.SIGKILL  # it killed itself, over a doubt

    def _live_until(self, enough: int, delay_s: float) -> None:
        process = self.start()
        try:
            wait_until(lambda: len(self.acknowledged()) >= enough or process.poll() is not None)
            time.sleep(delay_s)
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("mode", ["dedupe", "known", "doubts"])
def test_a_producer_that_was_killed_goes_on_where_it_was(store: Store, tmp_path: Path, mode: str) -> None:
    """Killed at random moments and started again, a producer loses nothing and appends nothing twice.

    It has ids of its own, and begins again with what it cannot remember to be acknowledged: by `dedupe`, in batches
    of other sizes; with the last seq it knows, in the same batches; or with the doubts it saved, before it does
    anything else, over a network that loses some appends and some replies.
    """
    chance = seeded()
    with proxied(store.url) as proxy:
        if mode == "doubts":
            plan = [Fault.REPLY_LOST, Fault.REQUEST_LOST] * DEATHS + [Fault.NONE] * (BATCHES - 2 * DEATHS)
            proxy.plan.extend(chance.sample(plan, len(plan)))
        producing = Producing(store, proxy.url, mode, tmp_path / "notes")
        producing.live_through(DEATHS, chance)

    log = store.open()
    commits = list(log.read("s"))
    stored = [event for commit in commits for event in commit.events]
    assert stored == [event for batch in range(BATCHES) for event in events_of(batch)]
    assert_chained("s", commits, log.head("s"))
    seq_of = {event.id: seq for seq, event in enumerate(stored, 1)}
    digests = {commit.last_seq: commit.digest for commit in commits}
    for noted in producing.acknowledged():
        seqs = [seq_of[id] for id in noted.ids]
        assert (min(seqs), max(seqs)) == (noted.first_seq, noted.last_seq)
        assert noted.digest in (None, digests.get(noted.last_seq))
    assert {id for noted in producing.acknowledged() for id in noted.ids} == set(seq_of)
