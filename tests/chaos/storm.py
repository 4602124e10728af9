"""Subscribers under a storm, ours and the usual pattern side by side; what each was given, lost and was given again.

    python -m tests.chaos.storm [EVENTS] [SEED]

A producer appends over a good line. Everybody else is behind a network that breaks connections at random bytes, while
the server is killed with -9 and started again, changes places with its replica, and feeds are trimmed. There are
subscribers to everything, to single sessions, to a filter, one that is slow, some that are handed on as text, blocking
and asyncio, and members of a durable subscription in processes that are killed. Beside them one that does as usual:
PUBLISH after each append, SUBSCRIBE, and connect again when the connection breaks.

The storm judges itself, what is left of threads, tasks, sockets and memory too: it exits with 1 where a law is broken.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import tempfile
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from typing import Any, Final, cast

import redis
from msgspec import Struct

from domain import Append, AsyncSessionLog, Event, Receipt, SessionLog, Unavailable
from domain.log import Connecting, create_store
from domain.log.subscribing.subscription import Subscription
from tests.chaos.cutting import CuttingProxy
from tests.chaos.given import Given, Tally
from tests.chaos.pair import Pair
from tests.chaos.resources import Held, held, memory_mib
from tests.conftest import ENVIRONMENT
from tests.domain.log.subscribing.member_processes import MemberProcess, is_acknowledged
from tests.waiting import wait_until

SESSIONS: Final = 40
PARTITIONS: Final = 8
CHANNEL: Final = "usual"
#: About how many bytes a connection lives.
CUT_AFTER: Final = 50_000
#: How many troubles come, and about how many events they are apart at least.
TROUBLES: Final = 300
APART: Final = 80
#: How long it may take to be given the rest once the storm is over, in seconds: only a broken law takes as long.
REST_S: Final = 300
#: How much more memory the process may have at the end than when a quarter was written, in MiB. Eight subscribers are
#: given some 150 bytes an event each, so of an hour's worth that they kept it would be more.
MOST_GROWTH_MIB: Final = 32


class Outcome(Struct):
    ours: dict[str, Tally]
    usual: Tally
    cuts: int
    kills: int
    failovers: int
    trims: int
    member_kills: int
    #: What the process held before, and when all was closed; asyncio tasks beside the one that asked.
    before: Held
    after: Held
    tasks: int
    #: MiB at the beginning, when a quarter was written, and when all was given.
    memory: tuple[float, float, float]
    seconds: float

    def complaints(self) -> list[str]:
        """Which laws were broken."""
        found = [f"{name}: {one}" for name, one in self.ours.items() if not one.is_perfect]
        if self.after != self.before:
            found.append(f"something is left: {self.after}, and before it was {self.before}")
        if self.tasks:
            found.append(f"{self.tasks} tasks are left")
        if self.memory[2] - self.memory[1] > MOST_GROWTH_MIB:
            found.append(f"memory grew: {self.memory}")
        return found


class _Taking:
    """A thread that takes from a subscription until it is ended."""

    def __init__(self) -> None:
        self.given = Given()
        self.error: BaseException | None = None
        self.stop = threading.Event()
        self._thread = Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self.stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._take()
        except BaseException as error:
            self.error = error
            raise

    @abstractmethod
    def _take(self) -> None: ...


class Taker(_Taking):
    """Takes from a blocking subscription; now and then it is slow, or hands the subscription on as text."""

    def __init__(self, subscribe: Callable[[Any], Subscription], *, slow_s: float = 0, hands_on: float = 0) -> None:
        self._subscribe = subscribe
        self._slow_s = slow_s
        self._hands_on = hands_on
        super().__init__()

    def _take(self) -> None:
        chance = random.Random(1)
        after: Any = "beginning"
        while not self.stop.is_set():
            with suppress(Unavailable), self._subscribe(after) as subscription:
                while not self.stop.is_set():
                    delivery = subscription.get(timeout_s=0.1)
                    if delivery is not None:
                        assert delivery.error is None
                        self.given.add(delivery.session, delivery.seq)
                        time.sleep(self._slow_s)
                    if chance.random() < self._hands_on:
                        after = str(subscription.position)
                        break


class AsyncTaker(_Taking):
    """Takes from an asyncio subscription to everything, hands it on as text, and counts the tasks left at the end."""

    def __init__(self, connecting: Connecting) -> None:
        self._connecting = connecting
        self.tasks = 0
        super().__init__()

    def _take(self) -> None:
        asyncio.run(self._taking())

    async def _taking(self) -> None:
        chance = random.Random(2)
        after: Any = "beginning"
        async with await AsyncSessionLog.open(self._connecting, environment=ENVIRONMENT) as log:
            while not self.stop.is_set():
                with suppress(Unavailable):
                    async with log.subscribe(after=after) as subscription:
                        while not self.stop.is_set():
                            delivery = await subscription.get(timeout_s=0.1)
                            if delivery is not None:
                                assert delivery.error is None
                                self.given.add(delivery.session, delivery.seq)
                            if chance.random() < 0.01:
                                after = str(subscription.position)
                                break
        self.tasks = len(asyncio.all_tasks()) - 1


class Usual(_Taking):
    """The usual pattern: a pub/sub connection that is made again when it breaks."""

    def __init__(self, url: str) -> None:
        self._url = url
        super().__init__()

    def _take(self) -> None:
        while not self.stop.is_set():
            client = redis.Redis.from_url(self._url, socket_timeout=5)
            listening: Any = None
            try:
                listening = cast("Any", client).pubsub(ignore_subscribe_messages=True)
                listening.subscribe(CHANNEL)
                while not self.stop.is_set():
                    message = listening.get_message(timeout=0.1)
                    if message is not None:
                        session, _, seq = message["data"].decode().partition(" ")
                        self.given.add(session, int(seq))
            except (redis.RedisError, OSError):
                time.sleep(0.05)
            finally:
                with suppress(redis.RedisError, OSError):
                    if listening is not None:
                        listening.close()
                    client.close()


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

    def tally(self, ends: dict[str, int]) -> Tally:
        """What was given at all; what was acknowledged, by the members' own word, and given again.

        A member that died before it could say so may have acknowledged what another was never given again.
        """
        given, acknowledged = Given(), Given()
        for member in self._all:
            for line in member.given():
                given.add(*_key(line))
            for line in member.acknowledged():
                acknowledged.add(*_key(line))
        at_all, again = given.tally(ends, _all), acknowledged.tally(ends, _all)
        return Tally(at_all.of, at_all.delivered, at_all.lost, again.repeated, 0)


def _key(line: str) -> tuple[str, int]:
    session, _, seq = line.partition(" ")
    return session, int(seq)


class _Weather:
    """What the producer writes, and what befalls everybody meanwhile."""

    def __init__(self, pair: Pair, proxy: CuttingProxy, members: _Members, chance: random.Random, events: int) -> None:
        self._pair = pair
        self._apart = max(APART, events // TROUBLES)
        self._next_trouble = 0
        self._proxy = proxy
        self._members = members
        self._chance = chance
        self.ends = {f"s-{number}": 0 for number in range(SESSIONS)}
        self.kills = self.failovers = self.trims = 0
        self.producer = self._opened()

    def _opened(self) -> SessionLog:
        return SessionLog.open(Connecting(self._pair.primary.url, retry_for_s=60.0), environment=ENVIRONMENT)

    @property
    def written(self) -> int:
        return sum(self.ends.values())

    def rage(self, events: int) -> None:
        """Until so many events are written. Troubles are so many events apart, however quick the machine is."""
        while (written := self.written) < events:
            self._write()
            if written >= self._next_trouble:
                self._trouble()
                self._next_trouble = written + self._chance.randint(self._apart // 2, self._apart * 3 // 2)

    def _write(self) -> None:
        batch = []
        for _ in range(self._chance.randint(1, 16)):
            session = f"s-{self._chance.randrange(SESSIONS)}"
            self.ends[session] += 1
            kind = "note.odd" if self.ends[session] % 2 else "note.even"
            batch.append(Append(session, (Event.of(kind, actor="agent"),)))
        receipts = self.producer.append_many(batch)
        with suppress(redis.RedisError, OSError), self.producer.client.pipeline(transaction=False) as publishing:
            for receipt in receipts:
                assert isinstance(receipt, Receipt), receipt
                publishing.publish(CHANNEL, f"{receipt.session} {receipt.last_seq}")
            publishing.execute()

    def _trouble(self) -> None:
        match self._chance.randrange(5):
            case 0:
                self._pair.restart()
                self.kills += 1
            case 1:
                self._members.replace_one(self._chance)
            case 2:
                self._fail_over()
            case _:
                self._trim()

    def _fail_over(self) -> None:
        """What a member was answered is not to be lost, so nobody gets through until the replica is the primary."""
        self.producer.close()
        with self._proxy.shut():
            self._pair.fail_over()
            self._proxy.server = ("127.0.0.1", self._pair.primary.port)
        self.producer = self._opened()
        self.failovers += 1

    def _trim(self) -> None:
        """Of some feeds nothing is left but the end, or nothing at all."""
        chosen = [keys for keys in self.producer.keyspace.partitions if self._chance.random() < 0.5]
        for keys in chosen:
            with suppress(redis.RedisError, OSError):
                self.producer.client.xtrim(keys.feed, maxlen=self._chance.choice((0, 1, 5)), approximate=False)
        self.trims += len(chosen)


def _all(session: str, seq: int) -> bool:
    return True


#: Which events are wanted by those that do not want all.
_WANTED: Final[dict[str, Callable[[str, int], bool]]] = {
    "filter": lambda _, seq: seq % 2 == 1,
    "session 1": lambda session, _: session == "s-1",
    "session 2": lambda session, _: session == "s-2",
}


def storm(directory: Path, events: int, seed: int) -> Outcome:
    """Runs the storm until so many events were appended, then calms it and counts."""
    began = time.monotonic()
    pair = Pair(directory)
    with ExitStack() as closing:
        closing.callback(pair.stop)
        pair.start()  # also the thread that forks for all, and lives as long as the process
        before = held()
        outcome = _storm(pair, directory, events, random.Random(seed))
        with suppress(AssertionError):
            wait_until(lambda: held() == before)
        outcome.before, outcome.after = before, held()
    outcome.seconds = time.monotonic() - began
    return outcome


def _storm(pair: Pair, directory: Path, events: int, chance: random.Random) -> Outcome:
    with ExitStack() as closing:
        with pair.primary.client() as client:
            create_store(client, environment=ENVIRONMENT, partitions=PARTITIONS)
        lives = random.Random(chance.random())
        proxy = CuttingProxy("127.0.0.1", pair.primary.port, lambda: int(lives.expovariate(1 / CUT_AFTER)))
        closing.callback(proxy.close)
        connecting = Connecting(proxy.url, timeout_s=2.0, retry_for_s=60.0)
        log = closing.enter_context(SessionLog.open(connecting, environment=ENVIRONMENT))
        asynchronous = AsyncTaker(connecting)
        takers: dict[str, _Taking] = {
            "everything": Taker(lambda after: log.subscribe(after=after)),
            "slow": Taker(lambda after: log.subscribe(after=after), slow_s=0.0005),
            "handed on": Taker(lambda after: log.subscribe(after=after), hands_on=0.01),
            "asyncio": asynchronous,
            "filter": Taker(lambda after: log.subscribe(after=after, types="note.odd")),
            "session 1": Taker(lambda after: log.subscribe("s-1", after=after)),
            "session 2": Taker(lambda after: log.subscribe("s-2", after=after), hands_on=0.05),
        }
        usual = Usual(proxy.url)
        members = _Members(proxy.url, directory)
        closing.callback(members.kill_all)
        weather = _Weather(pair, proxy, members, chance, events)
        closing.callback(lambda: weather.producer.close())
        try:
            time.sleep(0.5)  # the usual one hears nothing of what came before
            memory = [memory_mib()]
            weather.rage(events // 4)
            memory.append(memory_mib())
            weather.rage(events)
            wanted = {name: _count(weather.ends, _WANTED.get(name, _all)) for name in takers}
            for name, taker in takers.items():
                wait_until(_has_all(taker, wanted[name]), timeout_s=REST_S, message=f"{name} is given everything")
            wait_until(
                lambda: is_acknowledged(weather.producer, "work"), timeout_s=REST_S, message="members acknowledge all"
            )
            time.sleep(0.5)  # what comes again, comes now
            memory.append(memory_mib())
        finally:
            for taker in (*takers.values(), usual):
                taker.end()
            members.kill_all()
        ends = weather.ends
        ours = {name: taker.given.tally(ends, _WANTED.get(name, _all)) for name, taker in takers.items()}
        ours["members"] = members.tally(ends)
        return Outcome(
            ours,
            usual.given.tally(ends, _all),
            proxy.cuts,
            weather.kills,
            weather.failovers,
            weather.trims,
            members.kills,
            held(),
            held(),
            asynchronous.tasks,
            (memory[0], memory[1], memory[2]),
            0.0,
        )


def _count(ends: dict[str, int], is_wanted: Callable[[str, int], bool]) -> int:
    return sum(is_wanted(session, seq) for session, end in ends.items() for seq in range(1, end + 1))


def _has_all(taker: _Taking, count: int) -> Callable[[], bool]:
    def is_there() -> bool:
        assert taker.error is None, repr(taker.error)
        return taker.given.count >= count

    return is_there


def main() -> int:
    logging.disable(logging.WARNING)  # that connections break is what is asked for
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 72_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as directory:
        found = storm(Path(directory), events, seed)
    print(f"{'':14}{'of':>8}{'delivered':>11}{'lost':>8}{'repeated':>10}{'disordered':>12}")
    for name, one in {**found.ours, "plain pub/sub": found.usual}.items():
        print(f"{name:14}{one.of:8}{one.delivered:11}{one.lost:8}{one.repeated:10}{one.disordered:12}")
    print(
        f"{found.cuts} cuts, {found.kills} servers and {found.member_kills} members killed, {found.failovers} "
        f"failovers, {found.trims} feeds trimmed, {found.seconds:.0f} s"
    )
    print(f"before: {found.before}; after: {found.after}; asyncio tasks left: {found.tasks}")
    print("memory at the beginning, a quarter, the end: " + ", ".join(f"{mib:.1f} MiB" for mib in found.memory))
    complaints = found.complaints()
    for complaint in complaints:
        print(complaint)
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
