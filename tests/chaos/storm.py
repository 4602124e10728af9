"""Subscribers under a storm, ours and the usual pattern side by side; what each was given, lost and was given again.

    python -m tests.chaos.storm [EVENTS] [SEED]

A producer appends over a good line. Everybody else is behind a network that breaks connections at random bytes, while
the server is killed with -9 and started again, and feeds are trimmed. There are subscribers to everything, to single
sessions, to a filter, one that is slow, one that is handed on as text, and members of a durable subscription in
processes that are killed. Beside them one that does as usual: PUBLISH after each append, SUBSCRIBE, and connect again
when the connection breaks.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from typing import Any, Final, cast

import redis
from msgspec import Struct

from domain import Append, Event, Receipt, SessionLog, Unavailable
from domain.log import Connecting, create_store
from domain.log.subscribing.subscription import Subscription
from tests.chaos.cutting import CuttingProxy
from tests.conftest import ENVIRONMENT
from tests.domain.log.subscribing.member_processes import MemberProcess, is_acknowledged
from tests.own_server import OwnServer
from tests.waiting import wait_until

SESSIONS: Final = 40
PARTITIONS: Final = 8
CHANNEL: Final = "usual"
#: About how many bytes a connection lives.
CUT_AFTER: Final = 50_000

Given = list[tuple[str, int]]


class Tally(Struct):
    """What came of one way to subscribe: of so many events, how many arrived, are missing, came again, or too early."""

    of: int
    delivered: int
    lost: int
    repeated: int
    disordered: int


class Outcome(Struct):
    ours: dict[str, Tally]
    usual: Tally
    cuts: int
    kills: int
    trims: int
    member_kills: int
    seconds: float


def tally(given: Given, wanted: set[tuple[str, int]]) -> Tally:
    counts = Counter(given)
    last: dict[str, int] = {}
    disordered = 0
    for session, seq in given:
        disordered += seq < last.get(session, 0)
        last[session] = max(seq, last.get(session, 0))
    return Tally(
        len(wanted), len(wanted & counts.keys()), len(wanted - counts.keys()), counts.total() - len(counts), disordered
    )


class Taker:
    """Takes from a subscription in a thread; now and then it is slow, or hands the subscription on as text."""

    def __init__(
        self, log: SessionLog, subscribe: Callable[[Any], Subscription], *, slow_s: float = 0, hands_on: float = 0
    ) -> None:
        self.given: Given = []
        self.error: BaseException | None = None
        self.stop = threading.Event()
        self._log = log
        self._subscribe = subscribe
        self._slow_s = slow_s
        self._hands_on = hands_on
        self.thread = Thread(target=self._run)
        self.thread.start()

    def end(self) -> None:
        self.stop.set()
        self.thread.join()

    def _run(self) -> None:
        try:
            self._take()
        except BaseException as error:
            self.error = error
            raise

    def _take(self) -> None:
        chance = random.Random(1)
        after: Any = "beginning"
        while not self.stop.is_set():
            with suppress(Unavailable), self._subscribe(after) as subscription:
                while not self.stop.is_set():
                    delivery = subscription.get(timeout_s=0.1)
                    if delivery is not None:
                        assert delivery.error is None
                        self.given.append((delivery.session, delivery.seq))
                        time.sleep(self._slow_s)
                    if chance.random() < self._hands_on:
                        after = str(subscription.position)
                        break


class Usual:
    """The usual pattern: a pub/sub connection that is made again when it breaks."""

    def __init__(self, url: str) -> None:
        self.given: Given = []
        self.stop = threading.Event()
        self._url = url
        self.thread = Thread(target=self._run)
        self.thread.start()

    def end(self) -> None:
        self.stop.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.stop.is_set():
            client = redis.Redis.from_url(self._url, socket_timeout=5)
            try:
                listening: Any = cast("Any", client).pubsub(ignore_subscribe_messages=True)
                listening.subscribe(CHANNEL)
                while not self.stop.is_set():
                    message = listening.get_message(timeout=0.1)
                    if message is not None:
                        session, _, seq = message["data"].decode().partition(" ")
                        self.given.append((session, int(seq)))
            except (redis.RedisError, OSError):
                time.sleep(0.05)
            finally:
                with suppress(redis.RedisError, OSError):
                    client.close()


def storm(directory: Path, events: int, seed: int) -> Outcome:
    """Runs the storm until so many events were appended, then calms it and counts."""
    chance = random.Random(seed)
    began = time.monotonic()
    server = OwnServer(directory / "server", "--appendonly", "yes", "--appendfsync", "always", kind="valkey")
    with ExitStack() as closing:
        closing.callback(server.stop)
        server.start()
        with server.client() as client:
            create_store(client, environment=ENVIRONMENT, partitions=PARTITIONS)
        proxy = CuttingProxy("127.0.0.1", server.port, lambda: int(chance.expovariate(1 / CUT_AFTER)))
        closing.callback(proxy.close)
        connecting = Connecting(proxy.url, timeout_s=2.0, retry_for_s=60.0)
        producer = closing.enter_context(
            SessionLog.open(Connecting(server.url, retry_for_s=60.0), environment=ENVIRONMENT)
        )
        log = closing.enter_context(SessionLog.open(connecting, environment=ENVIRONMENT))
        takers = {
            "everything": Taker(log, lambda after: log.subscribe(after=after)),
            "slow": Taker(log, lambda after: log.subscribe(after=after), slow_s=0.0005),
            "handed on": Taker(log, lambda after: log.subscribe(after=after), hands_on=0.01),
            "filter": Taker(log, lambda after: log.subscribe(after=after, types="note.odd")),
            "session 1": Taker(log, lambda after: log.subscribe("s-1", after=after)),
            "session 2": Taker(log, lambda after: log.subscribe("s-2", after=after), hands_on=0.05),
        }
        usual = Usual(proxy.url)
        members = _Members(proxy.url, directory)
        closing.callback(members.kill_all)
        try:
            time.sleep(0.5)  # the usual one hears nothing of what came before
            kills, trims = _troubled(producer, server, events, chance, members)
            wanted = {(session, seq) for session in producer.sessions() for seq in _seqs(producer, session)}
            subsets = {name: set(filter(_WANTED.get(name), wanted)) for name in takers}
            for name, taker in takers.items():
                wait_until(_has_all(taker, subsets[name]), timeout_s=120, message=f"{name} is given everything")
            wait_until(
                lambda: is_acknowledged(producer, "work"), timeout_s=120, message="members acknowledge everything"
            )
            time.sleep(0.5)  # what comes again, comes now
        finally:
            for taker in takers.values():
                taker.end()
            usual.end()
            members.kill_all()
        ours = {name: tally(taker.given, subsets[name]) for name, taker in takers.items()}
        # A member that died before it could say so may have acknowledged what another was never given again.
        told = tally(members.acknowledgements(), wanted)
        missing = len(wanted - members.given())
        ours["members"] = Tally(len(wanted), len(wanted) - missing, missing, told.repeated, 0)
        return Outcome(
            ours, tally(usual.given, wanted), proxy.cuts, kills, trims, members.kills, time.monotonic() - began
        )


#: Which events are wanted of those that not all are.
_WANTED: Final[dict[str, Callable[[tuple[str, int]], bool]]] = {
    "filter": lambda key: key[1] % 2 == 1,
    "session 1": lambda key: key[0] == "s-1",
    "session 2": lambda key: key[0] == "s-2",
}


def _has_all(taker: Taker, wanted: set[tuple[str, int]]) -> Callable[[], bool]:
    def is_there() -> bool:
        assert taker.error is None, repr(taker.error)
        return len(set(taker.given)) >= len(wanted)

    return is_there


def _seqs(log: SessionLog, session: str) -> range:
    head = log.head(session)
    return range(1, (head.seq if head is not None else 0) + 1)


class _Members:
    """Members of one durable subscription, of which one is killed and replaced now and then."""

    def __init__(self, url: str, directory: Path) -> None:
        self._url = url
        self._directory = directory
        self._all: list[MemberProcess] = []
        self.kills = 0
        for _ in range(2):
            self._start()

    def _start(self) -> None:
        self._all.append(MemberProcess(self._url, "main", "work", 5, self._directory / f"member-{len(self._all)}"))

    def replace_one(self, chance: random.Random) -> None:
        self._all[chance.choice((-1, -2))].kill()
        self.kills += 1
        self._start()

    def kill_all(self) -> None:
        for member in self._all:
            member.kill()

    def acknowledgements(self) -> Given:
        """All that was acknowledged, by the members' own word."""
        return [_key(line) for member in self._all for line in member.acknowledged()]

    def given(self) -> set[tuple[str, int]]:
        return {_key(line) for member in self._all for line in member.given()}


def _key(line: str) -> tuple[str, int]:
    session, _, seq = line.partition(" ")
    return session, int(seq)


def _troubled(
    producer: SessionLog, server: OwnServer, events: int, chance: random.Random, members: _Members
) -> tuple[int, int]:
    """Appends, and publishes as usual, while troubles come. How often the server died, and feeds were trimmed."""
    written = kills = trims = 0
    next_trouble = time.monotonic() + 0.5
    while written < events:
        sessions = [f"s-{chance.randrange(SESSIONS)}" for _ in range(chance.randint(1, 8))]
        ends = {session: len(_seqs(producer, session)) for session in sessions}
        batch = []
        for session in sessions:
            ends[session] += 1
            kind = "note.odd" if ends[session] % 2 else "note.even"
            batch.append(Append(session, (Event.of(kind, actor="agent"),)))
        for receipt in producer.append_many(batch):
            assert isinstance(receipt, Receipt), receipt
            written += 1
            with suppress(redis.RedisError, OSError):
                producer.client.publish(CHANNEL, f"{receipt.session} {receipt.last_seq}")
        if time.monotonic() < next_trouble:
            continue
        next_trouble = time.monotonic() + chance.uniform(0.1, 0.8)
        match chance.randrange(4):
            case 0:
                server.kill()
                server.start()
                kills += 1
            case 1:
                members.replace_one(chance)
            case _:
                trims += _trim(producer, chance)
    return kills, trims


def _trim(producer: SessionLog, chance: random.Random) -> int:
    """Of some feeds nothing is left but the end, or nothing at all."""
    chosen = [keys for keys in producer.keyspace.partitions if chance.random() < 0.5]
    for keys in chosen:
        with suppress(redis.RedisError, OSError):
            producer.client.xtrim(keys.feed, maxlen=chance.choice((0, 1, 5)), approximate=False)
    return len(chosen)


def threads_and_sockets() -> tuple[int, int, int]:
    """How many threads of subscriptions, open sockets and subscriptions this process has."""
    gc.collect()
    sockets = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            sockets += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    alive = sum(isinstance(found, Subscription) for found in gc.get_objects())
    threads = sum(thread.name.startswith("muster") for thread in threading.enumerate())
    return threads, sockets, alive


def main() -> int:
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 72_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as directory:
        found = storm(Path(directory), events, seed)
    print(f"{'':14}{'of':>8}{'delivered':>11}{'lost':>8}{'repeated':>10}{'disordered':>12}")
    for name, one in {**found.ours, "plain pub/sub": found.usual}.items():
        print(f"{name:14}{one.of:8}{one.delivered:11}{one.lost:8}{one.repeated:10}{one.disordered:12}")
    print(
        f"{found.cuts} cuts, {found.kills} servers and {found.member_kills} members killed, "
        f"{found.trims} feeds trimmed, {found.seconds:.0f} s"
    )
    return int(any(one.lost or one.repeated or one.disordered for one in found.ours.values()))


if __name__ == "__main__":
    sys.exit(main())
