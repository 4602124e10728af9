"""What tests of projections and workers share: a store that is projected step by step, and histories."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import hypothesis.strategies as st

from domain import Append, Event, MemoryLog, MusterError, Receipt, Session
from domain.agent import Totals, contributions, merge
from domain.codec import encode_body
from domain.log.archive.place import Archive
from domain.log.contract import EventLog
from domain.log.protocol import APPEND_FUNCTION
from domain.session import gate_after, kind_of
from projections import agent_view, indexing, session_view
from projections.catchup import Batch
from projections.drift import Validator
from projections.findings import Finding
from projections.lag import lag
from projections.lease import Leases
from projections.queries import Views
from projections.session_view import Folding
from projections.store import ProjectionStore
from tests.conftest import ENVIRONMENT, Store
from tests.unhurried import UNHURRIED
from tests.waiting import wait_until
from workers.child_process import ChildProcess, start_child
from workers.cli import main
from workers.feed import batch_of
from workers.leasing import living_workers
from workers.partitions import HeldPartition
from workers.process import Projector
from workers.recovery import Recovery, plan_of
from workers.settings import JobSettings, RedisSettings, Settings, WorkerSettings

TYPES: Final = (
    *("start", "joined", "left", "modified", "broke", "test_pass", "handoff", "checkpoint", "completed", "extended"),
    *("expired", "tool.called"),
)
_IDS: Final = count(1)


def did(type: str, actor: str = "agent-1", *, id: str = "", entities: Sequence[str] = ()) -> Event:
    """An event; one without an id gets one that no other has."""
    data = {"change": {"entity_ids": list(entities)}} if entities else None
    return Event.of(type, actor=actor, id=id or f"e{next(_IDS)}", data=data)


def notes(number: int, actor: str = "agent-1") -> tuple[Event, ...]:
    """Events that change no state."""
    return tuple(did("tool.called", actor) for _ in range(number))


@st.composite
def histories(draw: st.DrawFn) -> list[list[Event]]:
    """A legal history as commits: of a few agents, some hundred events at most, cut anywhere."""
    facts = draw(
        st.lists(
            st.tuples(
                st.sampled_from(TYPES),
                st.sampled_from(("ann", "bob", "eve")),
                st.lists(st.sampled_from(("a.py", "b.py", "ü/ñ.py")), max_size=2),
                st.integers(1, 30),
            ),
            min_size=1,
            max_size=14,
        )
    )
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    gate, events = "o", []
    for type, actor, entities, times in facts:
        for _ in range(times):
            after, refused = gate_after(gate, kind_of(type))
            if refused is None:
                gate = after
                events.append(did(type, actor, entities=entities))
    commits: list[list[Event]] = []
    while events:
        size = sizes[len(commits) % len(sizes)]
        commits.append(events[:size])
        del events[:size]
    return commits


def memory_log(session: str, commits: Sequence[Sequence[Event]]) -> MemoryLog:
    """A log in memory that holds one session."""
    ticks = count(1_700_000_000_000)
    log = MemoryLog(clock_ms=lambda: next(ticks))
    for commit in commits:
        log.append(session, commit)
    return log


def folded(log: EventLog, session: str, to: int | None = None) -> Session:
    """The fold of a session's log from its beginning, to the end of the commit that holds `to`."""
    folding = Folding(session_view.initial(session))
    folding.advance(log.read(session, to=to))
    return folding.view


def foreign_append(store: Store, session: str, kinds: str, body: bytes) -> list[str]:
    """Appends as a producer without our library does: one FCALL, the kinds stated by hand."""
    identity = store.open().identity
    keys = store.keyspace.of(session)
    names = [keys.meta, keys.sessions, keys.feed, keys.log(session), keys.head(session), keys.hold(session)]
    client: Any = store.client
    rows = client.fcall(
        APPEND_FUNCTION,
        len(names),
        *names,
        identity.store,
        identity.epoch,
        session,
        "any",
        "",
        "",
        "",
        "",
        "",
        kinds,
        body,
        "",
    )
    return [value.decode() for value in rows[0]]


def lying_append(store: Store, session: str, event: Event, kind: str) -> list[str]:
    """A foreign producer states another kind than its event has."""
    return foreign_append(store, session, kind, encode_body([event]))


class World:
    """A store, its log and its projections. `project` does in this process, step by step, what workers do."""

    def __init__(self, store: Store, *, archive: Archive | str | None = None) -> None:
        self.store = store
        self.jobs_url = ""
        self.redis: Any = store.client
        self.keyspace = store.keyspace
        self.log = store.open(archive=archive)
        self.projections = ProjectionStore(self.log.client, self.log.keyspace)
        self.views = Views(self.projections, self.log)
        self.leases = Leases(self.log.client, self.log.keyspace, "tester")
        self._projector = Projector(self.projections, self.log, "tester")

    # -- given -------------------------------------------------------------------------------------------------------

    def sessions(self, number: int, events: int = 3) -> list[str]:
        """Sessions with so many events each, in commits of their own, in all partitions."""
        names = [f"s-{n}" for n in range(number)]
        for n in range(events):
            actor = ("ann", "bob", "eve")[n % 3]
            done = self.log.append_many([Append(name, (did("modified", actor),)) for name in names])
            assert all(isinstance(receipt, Receipt) for receipt in done)
        return names

    def project(self) -> None:
        """Brings all partitions up to date, as workers do."""
        for partition in range(self.keyspace.count):
            token = self.leases.claim(partition, ttl_ms=60_000)
            assert token is not None
            while (batch := self.next_batch(partition, token)) is not None:
                self._projector.project(batch)
            self.leases.release(partition, token)

    def apply(self, batch: Batch) -> None:
        """Applies a batch, as the actor does."""
        self._projector.project(batch)

    def next_batch(self, partition: int, token: str) -> Batch | None:
        """The batch a worker would take next; None if it is up to date."""
        position = self.projections.cursor(partition).position
        total = self.projections.total(partition)
        if position is None or position > total:
            return Batch(partition, token, position, None, [])
        entries = self.projections.feed_after(partition, position)
        if not entries:
            assert position == total, "the feed tells of nothing, and yet events are not applied"
            return None
        return batch_of(partition, HeldPartition(token, position), entries)

    # -- then --------------------------------------------------------------------------------------------------------

    def verify(self) -> list[Finding]:
        """All findings."""
        return list(Validator(self.projections, self.log).everything())

    def codes(self) -> list[str]:
        """The codes of all findings."""
        return sorted(finding.code for finding in self.verify())

    def recover(self) -> list[Finding]:
        """Verifies, plans and repairs; returns what is still found."""
        recovery = Recovery(self.projections, self.log, who="recovery:test", progress=lambda _: None)
        return recovery.apply(plan_of("store", self.verify()))

    def derived(self) -> dict[bytes, bytes]:
        """The content of every key that is derived from the log: bytes, or what comparing needs of a hash."""
        found: dict[bytes, bytes] = {}
        names = self.store.keys()
        for keys in self.keyspace.partitions:
            parts = (keys.cursor("sessions", 2), keys.agents, keys.session_view(""), keys.agent_view(""))
            indexes = (
                keys.session_index,
                keys.started_index,
                keys.last_index,
                keys.completed_index,
                keys.perf_index,
                keys.idle_index,
                keys.until_index,
                keys.expiring_index,
            )
            prefixes = tuple(part.encode() for part in (*parts, *indexes, keys.statistics, keys.checkpoints("")))
            found |= {key: self._content(key) for key in names if key.startswith(prefixes)}
        return found

    def _content(self, key: bytes) -> bytes:
        kind = self.redis.type(key)
        if kind == b"string":
            return bytes(self.redis.get(key))
        if kind == b"hash":
            fields = self.redis.hgetall(key)
            for when in (b"events", b"at"):  # of a cursor: how many were applied one by one, and when, not rebuilt
                fields.pop(when, None)
            return repr(sorted(fields.items())).encode()
        return repr(self.redis.zrange(key, 0, -1, withscores=True)).encode()

    def is_caught_up(self) -> bool:
        """Every partition's cursor stands at its total."""
        return lag(self.projections).events == 0

    def assert_views_are_folds(self) -> None:
        """Every session's view is the fold of its log; the totals of agents and the statistics are the sums of the
        views, and the indexes hold what the views give and nothing else.
        """
        for partition in range(self.keyspace.count):
            sums: dict[str, Totals] = {}
            statistics: dict[str, int] = {}
            indexed: dict[str, dict[str, int]] = {key: {} for key in self.projections.index_keys(partition)}
            keys = self.keyspace.partitions[partition]
            for page in self.projections.member_pages(partition):
                for session, stored in zip(page, self.projections.views(page), strict=True):
                    view = folded(self.log, session)
                    assert stored == session_view.encode(view), f"the view of {session} is not the fold of its log"
                    merge(sums, contributions(view))
                    indexing.add(statistics, indexing.sums(view))
                    entries = indexing.entries(view)
                    indexed[keys.session_index] |= {f"{value}\0{session}": 0 for value in entries.values}
                    for name, score in entries.scores.items():
                        indexed[indexing.score_index(keys, name)][session] = score
            agents = [agent for page in self.projections.member_pages(partition, agents=True) for agent in page]
            stored_totals = self.projections.totals(partition, agents)
            assert dict(zip(agents, stored_totals, strict=True)) == {
                agent: agent_view.encode(agent, totals) for agent, totals in sums.items()
            }
            assert indexing.readable_statistics(self.redis.get(keys.statistics)) == (statistics or None)
            for key, should in indexed.items():
                stored = self.redis.zrange(key, 0, -1, withscores=True)
                found = {entry.decode(): int(score) for entry, score in stored}
                assert {entry: score for entry, score in found.items() if not entry.startswith("quarantined")} == should

    # -- worker processes --------------------------------------------------------------------------------------------

    def settings(
        self,
        *,
        lease_ttl_ms: int = 1000,
        beat_ms: int = 100,
        drain_s: float = 20,
        batch_deadline_s: float = 120,
        projections: str = "",
        jobs_url: str | None = None,
        verify_every_s: float | None = None,
        absence_grace_s: float = 10.0,
    ) -> Settings:
        """Settings of worker processes and commands on this store; quick to notice a dead worker."""
        return Settings(
            environment=ENVIRONMENT,
            namespace=self.store.namespace,
            redis=RedisSettings(url=self.store.url, timeout_s=min(5.0, batch_deadline_s)),
            health=UNHURRIED,
            projections=projections,
            jobs=JobSettings(jobs_url, verify_every_s=verify_every_s),
            worker=WorkerSettings(
                lease_ttl_ms=lease_ttl_ms,
                beat_ms=beat_ms,
                drain_s=drain_s,
                batch_deadline_s=batch_deadline_s,
                absence_grace_s=absence_grace_s,
            ),
        )

    def environ(self, **options: Any) -> dict[str, str]:
        """The environment of worker processes and commands on this store."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
        root = str(Path(__file__).parents[2])
        return {**own, **self.settings(**options).environ(), "PYTHONPATH": root}

    @contextmanager
    def workers(self, number: int, **options: Any) -> Iterator[list[ChildProcess]]:
        """Worker processes; those still alive are killed at the end."""
        environ = self.environ(**options)
        started: list[ChildProcess] = []
        try:
            started.extend(start_child([sys.executable, "-m", "workers.process"], env=environ) for _ in range(number))
            yield started
        finally:
            for child in started:
                if child.poll() is None:
                    child.send_signal(signal.SIGCONT)
                    child.kill()
                child.wait()

    def shares(self) -> dict[int, int]:
        """How many partitions each living worker process holds by the leases' own word, by process id."""
        pids = {worker["worker"]: int(worker["pid"]) for worker in living_workers(self.redis, self.keyspace)}
        held = dict.fromkeys(pids.values(), 0)
        for owner in self.leases.owners():
            if owner is not None and owner[0] in pids:
                held[pids[owner[0]]] += 1
        return held

    def wait_until_shared(self, children: Sequence[ChildProcess]) -> None:
        """Returns when exactly these processes share all partitions, within one of each other."""

        def is_shared() -> bool:
            shares = self.shares()
            return (
                shares.keys() == {child.pid for child in children}
                and sum(shares.values()) == self.keyspace.count
                and max(shares.values()) - min(shares.values()) <= 1
            )

        wait_until(is_shared, message="the partitions are shared out evenly")

    def wait_until_caught_up(self) -> None:
        """Returns when every event is applied."""
        wait_until(self.is_caught_up, timeout_s=60, message="the views have caught up")


def only(findings: Sequence[Finding], code: str) -> Finding:
    """The one finding there is, which has this code."""
    assert [finding.code for finding in findings] == [code]
    return findings[0]


def raised_code(call: Callable[[], object]) -> str:
    """The code of the error that a call raises."""
    try:
        call()
    except MusterError as error:
        return error.code
    raise AssertionError("nothing was raised")


class Ran(NamedTuple):
    """What a command of the CLI did."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Its output, as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def json(self) -> dict[str, Any]:
        """Its output, one JSON document."""
        document: dict[str, Any] = json.loads(self.out)
        return document

    @property
    def row(self) -> dict[str, Any]:
        """Its output, one JSON line."""
        (row,) = self.rows
        return row


def run_cli(
    world: World, *arguments: str, output: str = "jsonl", url: str | None = None, environment: str = ENVIRONMENT
) -> Ran:
    """Runs a command of the CLI on the world's store, in this process."""
    where = ["--url", url or world.store.url, "--environment", environment, "--namespace", world.store.namespace]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([*arguments, *where, "-o", output])
        except SystemExit as exit:
            code = int(str(exit.code or 0))
    return Ran(code, out.getvalue(), err.getvalue())
