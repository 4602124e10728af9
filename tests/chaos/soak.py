"""A soak: a fleet under load to which everything happens, at random, for as long as it is told; then the laws.

    .venv/bin/python -m tests.chaos.soak --minutes 10 [--seed SEED]

A server that loses nothing it answered, `muster worker run` with two projections of the user's own, producers that
append all the while. Two streams of trouble, each one thing after another, so that what belongs to different streams
meets in every way: one befalls the worker processes, the other the server, the network and what is derived. One worker
process is spared, so that there is one that lives through every outage from the beginning to the end.

Progress goes to stderr. stdout gets a summary of three lines. Exit 0 only if every law held.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from threading import Event as Flag
from threading import Thread
from typing import Any, Final, NamedTuple

from msgspec import structs

from domain import Event, MusterError, Receipt
from projections.lag import lag
from tests.chaos.producing import Producer, Producers, disorder, lost, name, producing
from tests.chaos.proxy import Fault, Proxy, proxied
from tests.conftest import Store, children
from tests.projections.examples import ActorsByType, EventsByType, spec
from tests.projections.own_world import Own
from tests.projections.world import World, did
from tests.waiting import has_ended, wait_until
from workers.child_process import ChildProcess, start_child
from workers.embedded import EmbeddedServer, find_server_binary
from workers.leasing import living_workers
from workers.settings import Settings

MUSTER: Final = [sys.executable, "-c", "import sys; from workers.cli import main; sys.exit(main(sys.argv[1:]))"]
OWN: Final = (EventsByType, ActorsByType)
PARTITIONS: Final = 16
WORKERS: Final = 3
PRODUCERS: Final = 3
LEASE_TTL_MS: Final = 1000
#: Where the store's own patience ends, everything that is awaited here fails, in seconds.
PATIENCE_S: Final = 120.0
SAY_EVERY_S: Final = 10.0
SAMPLE_EVERY_S: Final = 0.5
#: How many connections one worker process may have: no more than it has threads.
CONNECTIONS_A_WORKER: Final = 16
#: How much more memory late in the soak is no leak: a half, and what an interpreter takes now and then, in bytes.
GROWTH: Final = 1.5
GROWTH_BYTES: Final = 48 << 20
_TYPES: Final = ("tool.called", "modified", "joined", "broke", "test_pass", "handoff", "left")


class Writer(Producer):
    """A producer of events of many kinds by many agents, who also sends again what was acknowledged already."""

    sessions = 60

    def _next_events(self) -> list[Event]:
        return [
            did(self._chance.choice(_TYPES), f"agent-{self._chance.randrange(9)}", id=event.id, entities=["a.py"])
            for event in super()._next_events()
        ]

    def _append(self, session: str, events: list[Event]) -> type[MusterError] | None:
        before = len(self.told.acknowledged)
        ended = super()._append(session, events)
        if len(self.told.acknowledged) > before and self._chance.random() < 0.1:
            self._repeat(self.told.acknowledged[-1], events)
        self._stopping.wait(self._chance.uniform(0, 0.03))
        return ended

    def _repeat(self, first: Receipt, events: list[Event]) -> None:
        try:
            again = self.log.append(first.session, events, known=first.first_seq - 1)
        except MusterError as error:
            self.told.errors[error.code] += 1
            return
        self.told.errors["(repeated)"] += 1
        if name(again) != name(first) or not again.duplicates:
            self.told.unexpected.append(f"a repeat was told {name(again)}, not {name(first)}")


class Sample(NamedTuple):
    """Resident memory at a moment, in bytes: the supervisor, the worker that is spared, the largest of the others."""

    supervisor: int
    spared: int
    others: int


class Fleet:
    """A server, a proxy before it, a store, and `muster worker run` on it."""

    def __init__(self, directory: Path, server: EmbeddedServer, proxy: Proxy) -> None:
        self.server = server
        self.proxy = proxy
        self.store = Store(server.url, partitions=PARTITIONS)
        self.world = World(self.store)
        self.own = [Own(self.world, kind) for kind in OWN]
        self.settings = self._settings(proxy.url)
        self.directly = self._settings(server.url)
        self.output = directory / "workers.log"
        with self.output.open("wb") as output:
            self.supervisor: ChildProcess = start_child(
                [*MUSTER, "worker", "run", "--processes", str(WORKERS)], env=self.environ(self.settings), stderr=output
            )
        self.spared = 0
        self.seen: set[int] = set()

    def _settings(self, url: str) -> Settings:
        settings = self.world.settings(
            lease_ttl_ms=LEASE_TTL_MS, beat_ms=100, projections=",".join(spec(kind) for kind in OWN)
        )
        return structs.replace(
            settings,
            redis=structs.replace(settings.redis, url=url),
            worker=structs.replace(settings.worker, feed_keep_s=1.0, feed_pin_s=2.0),
        )

    @staticmethod
    def environ(settings: Settings) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
        return {**own, **settings.environ(), "PYTHONPATH": str(Path(__file__).parents[2])}

    def workers(self) -> set[int]:
        """The worker processes there are."""
        found = children(self.supervisor.pid)
        self.seen |= found
        return found

    def wait_until_all_work(self) -> None:
        """Waits until every worker process holds its share of every projection."""

        def all_work() -> bool:
            shares = self.world.shares()
            return (
                shares.keys() == self.workers() and len(shares) == WORKERS and sum(shares.values()) == PARTITIONS
            ) and all(None not in own.leases.owners() for own in self.own)

        wait_until(all_work, timeout_s=PATIENCE_S, message="all workers work")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of the CLI on the store, not through the proxy."""
        return subprocess.run(
            [*MUSTER, *command, "-o", "json"], env=self.environ(self.directly), capture_output=True, text=True
        )

    def connections(self) -> int:
        """How many connections the server has."""
        return len(self.world.redis.client_list())

    def end(self) -> None:
        """Kills what still runs."""
        if self.supervisor.poll() is None:
            self.supervisor.kill()
        self.supervisor.wait()
        for pid in self.seen:
            wait_until(lambda pid=pid: has_ended(pid), timeout_s=PATIENCE_S, message=f"worker {pid} ends")  # type: ignore[misc]
        for own in self.own:
            own.world.log.close()
        self.store.client.close()


class Trouble(Thread):
    """One stream of trouble: something at random, a pause, and again."""

    def __init__(self, kinds: Sequence[Callable[[], object]], chance: random.Random, stop: Flag) -> None:
        super().__init__(daemon=True)
        self._kinds = kinds
        self._chance = chance
        self._stop_flag = stop
        self.counts: Counter[str] = Counter()
        self.broken: list[str] = []

    def run(self) -> None:
        while not self._stop_flag.wait(self._chance.uniform(0.1, 1.5)):
            # What has not been yet comes first, so that also a short soak has everything.
            fresh = [kind for kind in self._kinds if not self.counts[_words(kind)]]
            kind = self._chance.choice(fresh or self._kinds)
            self.counts[_words(kind)] += 1
            try:
                kind()
            except Exception as error:
                self.broken.append(f"{_words(kind)}: {type(error).__name__}: {error}")


def _words(kind: Callable[[], object]) -> str:
    return kind.__name__.replace("_", " ")


class WorkerTrouble:
    """What befalls worker processes."""

    def __init__(self, fleet: Fleet, chance: random.Random) -> None:
        self._fleet = fleet
        self._chance = chance

    def worker_killed(self) -> None:
        self._signal(self._victim(), signal.SIGKILL)

    def worker_paused(self) -> None:
        """For longer than its lease."""
        victim = self._victim()
        self._signal(victim, signal.SIGSTOP)
        time.sleep(LEASE_TTL_MS / 1000 * self._chance.uniform(1.2, 3))
        self._signal(victim, signal.SIGCONT)

    def rolling_restart(self) -> None:
        """One worker after the other is asked to end, and another one comes in its place."""
        for victim in self._fleet.workers() - {self._fleet.spared}:
            before = self._fleet.workers()
            self._signal(victim, signal.SIGTERM)
            wait_until(lambda victim=victim: has_ended(victim), timeout_s=PATIENCE_S, message="a worker ends")  # type: ignore[misc]
            wait_until(
                lambda before=before: self._fleet.workers() - before,  # type: ignore[misc]
                timeout_s=PATIENCE_S,
                message="another one comes",
            )

    def kinds(self) -> list[Callable[[], object]]:
        return [self.worker_killed, self.worker_paused, self.rolling_restart]

    def _victim(self) -> int:
        return self._chance.choice(sorted(self._fleet.workers() - {self._fleet.spared}) or [0])

    def _signal(self, pid: int, number: signal.Signals) -> None:
        if pid:  # none runs: all wait to be started again
            with suppress(ProcessLookupError):
                os.kill(pid, number)


class StoreTrouble:
    """What befalls server, network and what is derived."""

    def __init__(self, fleet: Fleet, chance: random.Random) -> None:
        self._fleet = fleet
        self._chance = chance
        self._redis: Any = fleet.world.redis

    def server_killed(self) -> None:
        self._fleet.server.kill()
        time.sleep(self._chance.choice([0, 0.5, 2 * LEASE_TTL_MS / 1000]))
        self._fleet.server.restart()

    def network_cut(self) -> None:
        with self._fleet.proxy.cut():
            time.sleep(self._chance.choice([0.2, 2 * LEASE_TTL_MS / 1000]))

    def connections_killed(self) -> None:
        self._redis.client_kill_filter(_type="normal", skipme=True)

    def replies_lost(self) -> None:
        """Some of the next appends lose their request, or their reply."""
        faults = [Fault.REQUEST_LOST, Fault.REQUEST_LATE, Fault.REPLY_LOST, Fault.REPLY_CUT]
        self._fleet.proxy.plan.extend(self._chance.choices([*faults, Fault.NONE], k=12))

    def derived_damaged(self) -> None:
        """Recovery repairs it, whatever the workers made of it meanwhile."""
        for _ in range(self._chance.randint(1, 3)):
            self._damage(self._chance.choice(self._derived()))
        time.sleep(self._chance.uniform(0, 1))
        self._repair("recover", "apply")

    def own_derived_damaged(self) -> None:
        """A fold, a view or a cursor of an own projection; building it again repairs it."""
        own = self._chance.choice(self._fleet.own)
        keys = self._chance.choice(self._fleet.world.keyspace.partitions)
        label = own.store.label
        session = self._chance.choice(self._sessions() or ["s"])
        of_session = self._fleet.world.keyspace.of(session)
        self._damage(
            self._chance.choice(
                [
                    of_session.fold(label, session),
                    of_session.merged(label, self._chance.choice(_TYPES)),
                    keys.cursor(own.definition.name, own.definition.version),
                    keys.build(label),
                    keys.view_keys(label),
                ]
            )
        )
        time.sleep(self._chance.uniform(0, 1))
        self._repair("projection", "rebuild", own.definition.name, "--version", str(own.definition.version))

    def partition_rebuilt(self) -> None:
        self._repair("projection", "rebuild", "--partition", str(self._chance.randrange(PARTITIONS)))

    def kinds(self) -> list[Callable[[], object]]:
        return [
            self.server_killed,
            self.network_cut,
            self.connections_killed,
            self.replies_lost,
            self.derived_damaged,
            self.own_derived_damaged,
            self.partition_rebuilt,
        ]

    def _sessions(self) -> list[str]:
        return list(self._fleet.world.log.sessions())

    def _derived(self) -> list[str]:
        session = self._chance.choice(self._sessions() or ["s"])
        keys = self._fleet.world.keyspace.of(session)
        store = self._fleet.world.projections
        return [
            keys.session_view(session),
            keys.checkpoints(session),
            keys.agent_view(f"agent-{self._chance.randrange(9)}"),
            keys.agents,
            store.cursor_key(self._fleet.world.keyspace.partition_of(session)),
        ]

    def _damage(self, key: str) -> None:
        """Deletes what is there, or makes nonsense of it; a cursor is also moved."""
        kind = self._redis.type(key)
        if self._chance.random() < 0.5 or kind == b"none":
            self._redis.delete(key)
        elif kind == b"hash" and ":cursor:" in key:
            self._redis.hset(key, "position", self._chance.choice(["0", "1", "nonsense", "999999999999"]))
        elif kind == b"hash":
            fields = self._redis.hkeys(key)
            self._redis.hset(key, self._chance.choice(fields), "nonsense")
        elif kind == b"zset":
            self._redis.zremrangebyrank(key, 0, 0)
        else:
            self._redis.setrange(key, self._chance.randrange(8), "nonsense")

    def _repair(self, *command: str) -> None:
        ran = self._fleet.run(*command)
        if ran.returncode:
            raise AssertionError(f"muster {' '.join(command)} ended with {ran.returncode}: {ran.stdout}{ran.stderr}")


class Outcome(NamedTuple):
    """What came of a soak. `broken`: the laws that did not hold, in words."""

    seed: int
    counts: Counter[str]
    acknowledged: int
    events: int
    errors: Counter[str]
    early: Sample
    late: Sample
    broken: list[str]

    def summary(self) -> str:
        """Three lines."""
        counts = ", ".join(f"{words} {count}" for words, count in sorted(self.counts.items()))
        grown = ", ".join(
            f"{who} {before >> 20} → {after >> 20} MB"
            for who, before, after in zip(Sample._fields, self.early, self.late, strict=True)
        )
        laws = "every law held" if not self.broken else f"{len(self.broken)} LAWS BROKEN: {'; '.join(self.broken)}"
        return (
            f"seed {self.seed}: {counts}\n"
            f"{self.acknowledged:,} commits acknowledged, {self.events:,} events; memory early → late: {grown}\n"
            + laws.replace("\n", " ")
        )


def soak(
    directory: Path, *, seconds: float, seed: int, say: Callable[[str], None], at_least: Sequence[str] = ()
) -> Outcome:
    """Soaks for so many seconds, and until the troubles in `at_least` were there; lets everything catch up, and judges.

    How many troubles there are in a time is up to the machine.
    """
    chance = random.Random(seed)
    with _fleet(directory) as fleet:
        fleet.wait_until_all_work()
        fleet.spared = min(fleet.workers())
        own_connections = fleet.connections()
        samples: list[Sample] = []
        stop = Flag()
        troubles = [
            Trouble(kind(fleet, random.Random(chance.random())).kinds(), random.Random(chance.random()), stop)
            for kind in (WorkerTrouble, StoreTrouble)
        ]
        broken: list[str] = []
        namespace = fleet.store.namespace
        with producing(fleet.proxy.url, PRODUCERS, seed=seed, namespace=namespace, of=Writer) as producers:
            producers.wait_for(5)
            for trouble in troubles:
                trouble.start()
            began = said = time.monotonic()
            while (now := time.monotonic()) < began + seconds or not _all_were_there(at_least, troubles):
                samples.append(_sample(fleet))
                if now >= said + SAY_EVERY_S:
                    said = now
                    say(f"{now - began:.0f} of {seconds:.0f} s: {_so_far(troubles, producers)}")
                time.sleep(SAMPLE_EVERY_S)
            stop.set()
            for trouble in troubles:
                trouble.join()
            say(f"the trouble is over: {_so_far(troubles, producers)}; catching up")
            fleet.proxy.plan.clear()
            producers.wait_for(3)
            producers.stop()
            counts = sum((trouble.counts for trouble in troubles), Counter[str]())
            broken += [words for trouble in troubles for words in trouble.broken]
            early, late = _early_and_late(samples)
            broken += judge(fleet, producers, own_connections) + _leaks(early, late)
            receipts, errors = producers.acknowledged(), producers.errors()
            events = fleet.store.total()
        broken += _ended(fleet)
        broken += _check_words(fleet)
    return Outcome(seed, counts, len(receipts), events, errors, early, late, broken)


def _all_were_there(words: Sequence[str], troubles: Sequence[Trouble]) -> bool:
    return all(any(trouble.counts[each] for trouble in troubles) for each in words)


@contextmanager
def _fleet(directory: Path) -> Iterator[Fleet]:
    server = EmbeddedServer(directory / "server", appendfsync="always", binary=find_server_binary())
    with server, proxied(server.url) as proxy:
        fleet = Fleet(directory, server, proxy)
        try:
            yield fleet
        finally:
            fleet.end()


def _so_far(troubles: Sequence[Trouble], producers: Producers) -> str:
    counts = sum((trouble.counts for trouble in troubles), Counter[str]())
    wrong = sum(len(trouble.broken) for trouble in troubles)
    return (
        f"{len(producers.acknowledged())} commits acknowledged, {sum(counts.values())} troubles"
        + f", {wrong} with what should not be" * bool(wrong)
    )


# -- the laws ----------------------------------------------------------------------------------------------------------


def judge(fleet: Fleet, producers: Producers, own_connections: int) -> list[str]:
    """The laws that are broken once the producers have stopped; workers go on."""
    world, broken = fleet.world, list[str]()

    def law(words: str, check: Callable[[], object]) -> None:
        try:
            found = check()
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        if found:
            broken.append(f"{words}: {str(found)[:2000]}")

    law("all workers come back", fleet.wait_until_all_work)
    law("the worker that was spared is still there", lambda: fleet.spared not in fleet.workers())
    law("views catch up", world.wait_until_caught_up)
    for own in fleet.own:
        law(f"{own.store.label} catches up", lambda own=own: _wait_until_applied(own))  # type: ignore[misc]
        law(f"{own.store.label} gives what the log gives", own.assert_right)
    law("no drift", world.verify)
    law("views are folds and totals exact", world.assert_views_are_folds)
    law("what was acknowledged is in the log", lambda: lost(world.log, producers.acknowledged()))
    law("one commit is acknowledged once", lambda: _acknowledged_twice(producers.acknowledged()))
    law("the log is in order", lambda: disorder(world.log))
    law("producers are told of no loss", producers.named)
    law("producers meet outages alone", producers.unexpected)
    law("every key is in the table", fleet.store.check_keys)
    # Named one by one: keys of the store come and go meanwhile, as signs of life do.
    law("the server holds keys of the store alone", lambda: _foreign_keys(fleet.store))
    law("feeds are trimmed", lambda: _wait_until_trimmed(fleet))
    law("connections are no more than threads", lambda: _connections(fleet, own_connections))
    return broken


def _foreign_keys(store: Store) -> list[bytes]:
    return [key for key in store.client.scan_iter(count=5000) if f":{store.namespace}:".encode() not in key]


def _wait_until_applied(own: Own) -> None:
    wait_until(
        lambda: not own.store.unbuilt(range(PARTITIONS)) and lag(own.store).events == 0,
        timeout_s=PATIENCE_S,
        message=f"{own.store.label} has applied everything",
    )


def _wait_until_trimmed(fleet: Fleet) -> None:
    """All is applied everywhere and soon old enough, so a feed keeps the entry that tells where it was cut."""
    feeds = [keys.feed for keys in fleet.world.keyspace.partitions]
    wait_until(
        lambda: all(fleet.world.redis.xlen(feed) <= 1 for feed in feeds),
        timeout_s=PATIENCE_S,
        message="every feed is trimmed to its last entry",
    )


def _acknowledged_twice(receipts: Sequence[Receipt]) -> int:
    return len(receipts) - len(set(map(name, receipts)))


def _connections(fleet: Fleet, own: int) -> str:
    most = WORKERS * CONNECTIONS_A_WORKER + PRODUCERS * 4 + own
    found = fleet.connections()
    return f"{found}, expected at most {most}" if found > most else ""


def _ended(fleet: Fleet) -> list[str]:
    """What is left when the fleet was asked to end, that should not be."""
    broken = []
    workers = fleet.workers()
    fleet.supervisor.terminate()
    if code := fleet.supervisor.wait(PATIENCE_S):
        broken.append(f"the supervisor ended with {code}")
    if left := [pid for pid in fleet.seen if not has_ended(pid)]:
        broken.append(f"worker processes are left: {left}")
    if len(workers) != WORKERS:
        broken.append(f"{len(workers)} workers ran in the end, not {WORKERS}")
    if found := living_workers(fleet.world.redis, fleet.world.keyspace):
        broken.append(f"workers that ended are still listed: {found}")
    if any(fleet.world.leases.owners()):
        broken.append(f"leases are still held: {fleet.world.leases.owners()}")
    others = [client for client in fleet.world.redis.client_list() if client["addr"] not in _our_addresses(fleet)]
    if others:
        broken.append(f"connections are left: {others}")
    return broken


def _our_addresses(fleet: Fleet) -> set[str]:
    """Where this process's own connections to the server come from."""
    found = set()
    for client in (fleet.world.redis, fleet.world.log.client):
        pool = client.connection_pool
        for connection in [*pool._available_connections, *pool._in_use_connections]:
            if connection._sock is not None:
                host, port = connection._sock.getsockname()
                found.add(f"{host}:{port}")
    return found


def _check_words(fleet: Fleet) -> list[str]:
    """What workers said that nobody foresaw: an error with a traceback is one that is not handled."""
    said = fleet.output.read_text(errors="replace")
    at = said.find("Traceback")
    return [f"a worker said: {said[max(0, at - 300) : at + 3000]}"] if at >= 0 else []


# -- memory ------------------------------------------------------------------------------------------------------------


def _sample(fleet: Fleet) -> Sample:
    others = [_resident(pid) for pid in fleet.workers() - {fleet.spared}]
    return Sample(_resident(fleet.supervisor.pid), _resident(fleet.spared), max(others, default=0))


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0  # it ended


def _early_and_late(samples: Sequence[Sample]) -> tuple[Sample, Sample]:
    """The medians of the second and the last fifth: in the first one nothing has settled."""
    fifth = max(1, len(samples) // 5)

    def middle(part: Sequence[Sample]) -> Sample:
        return Sample(*(int(median(column)) for column in zip(*part, strict=True)))

    return middle(samples[fifth : 2 * fifth] or samples), middle(samples[-fifth:])


def _leaks(early: Sample, late: Sample) -> list[str]:
    return [
        f"{who} grew from {before >> 20} to {after >> 20} MB"
        for who, before, after in zip(Sample._fields, early, late, strict=True)
        if after > before * GROWTH + GROWTH_BYTES
    ]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args(arguments)

    def say(line: str) -> None:
        print(f"soak: {line}", file=sys.stderr, flush=True)

    say(f"seed {options.seed}, {options.minutes:g} minutes")
    with tempfile.TemporaryDirectory(prefix="muster-soak-") as directory:
        outcome = soak(Path(directory), seconds=60 * options.minutes, seed=options.seed, say=say)
    say(f"what producers met: {dict(outcome.errors)}")
    print(outcome.summary())
    return 1 if outcome.broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
