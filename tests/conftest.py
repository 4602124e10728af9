"""Real servers for the tests, a store of its own for each test, and what every test must leave behind: nothing.

The servers live as long as the test run and are shared; a test gets a namespace, whose keys are deleted after it.
Before they are, each is held against the table of keys: its pattern, its type, and that no truth and no control key can
expire.

A server that this machine lacks skips the tests that need it; where the environment variable CI is set, it fails them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, cast
from uuid import uuid4

import pytest
import redis
from hypothesis import HealthCheck, settings

from domain import Limits, Misconfigured, SessionLog
from domain.log import AsyncSessionLog, Connecting, connect, create_store
from domain.log.archive.place import Archive
from domain.log.keys import KEYS, Key, KeyClass, Keyspace
from tests.chaos.effort import FULL
from workers.embedded import EmbeddedServer, find_server_binary

DATA: Final = Path(__file__).parents[2] / "shared" / "data"
ENVIRONMENT: Final = "test"
_NUMBERS: Final = count(1)

settings.register_profile(
    "muster",
    deadline=None,  # a test that depends on speed is no test
    derandomize=not FULL,  # nor is one of a change that depends on chance
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    max_examples=60,
)
settings.load_profile("muster")


#: The files that take longest, the longest first. A new one need not be here; one of half a minute had better be.
LONGEST: Final = (
    *("main_job/test_damage", "chaos/test_failover", "main_job/test_imports", "workers/test_runbooks"),
    *("projections/test_seeded_bugs", "main_job/test_interruptions", "workers/test_access", "chaos/test_outages"),
    *("workers/test_killed_workers", "workers/test_grafting", "chaos/test_damage_to_real_logs", "workers/test_jobs"),
    *("backup/test_backup", "workers/test_stop", "main_job/test_dev", "chaos/test_soak"),
    *("laws/test_errors_met_for_real", "chaos/test_killed_migrations", "projections/test_searching"),
    *("chaos/test_killed_server", "workers/test_frozen_server", "workers/test_reloading", "log/test_contract"),
    *("workers/test_own_projections", "projections/test_time_travel", "spooling/test_spooling"),
    *("chaos/test_full_memory", "chaos/test_short_lived_connections", "chaos/test_storm", "workers/test_leasing"),
)
_RANKS: Final = {name: rank for rank, name in enumerate(LONGEST)}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Side by side the files that take longest begin first: one that began last would leave a process without work."""
    if hasattr(config, "workerinput"):  # in a process of xdist
        items.sort(key=lambda item: _RANKS.get(f"{item.path.parent.name}/{item.path.stem}", len(LONGEST)))


# -- servers ---------------------------------------------------------------------------------------------------------


class Servers:
    """The shared servers of a test run: `valkey` is the embedded one, `redis7` the `redis-server` on the PATH."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: dict[str, EmbeddedServer] = {}
        self.clients: dict[str, redis.Redis] = {}

    def url(self, name: str) -> str:
        """Where the server listens; it is started when it is first asked for."""
        if name not in self._running:
            with lasting():
                server = self.make(name, self._directory / name)
                server.start()
            self._running[name] = server
            self.clients[name] = connect(Connecting(server.url))
        return self._running[name].url

    @staticmethod
    def make(name: str, data_dir: Path, *, appendfsync: Literal["everysec", "always"] = "everysec") -> EmbeddedServer:
        """A server that is not started yet, for a test that needs one of its own."""
        if name == "valkey":
            try:
                return EmbeddedServer(data_dir, appendfsync=appendfsync, binary=find_server_binary())
            except Misconfigured as error:
                missing(str(error))
        binary = shutil.which("redis-server")
        if binary is None:
            missing("there is no redis-server on the PATH")
        return EmbeddedServer(data_dir, appendfsync=appendfsync, binary=Path(binary))

    def stop(self) -> None:
        for client in self.clients.values():
            client.close()
        for server in self._running.values():
            server.stop()


def missing(what: str) -> NoReturn:
    """Ends a test that this machine cannot run."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}; CI must have it")
    pytest.skip(what)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest, servers: Servers) -> str:
    """The embedded server, or the one that an indirect parameter names."""
    return servers.url(getattr(request, "param", "valkey"))


@pytest.fixture(scope="session")
def redis7_url(servers: Servers) -> str:
    """The distribution's own Redis 7."""
    return servers.url("redis7")


# -- stores ----------------------------------------------------------------------------------------------------------


class Store:
    """A store of one test: a namespace on a shared server. Logs and clients it opened are closed with it."""

    def __init__(self, url: str, *, partitions: int = 32, limits: Limits | None = None, create: bool = True) -> None:
        self.url = url
        self.namespace = f"t{next(_NUMBERS)}-{uuid4().hex[:8]}"
        self.keyspace = Keyspace(ENVIRONMENT, self.namespace, partitions)
        self.client = connect(Connecting(url))
        self._logs: list[SessionLog] = []
        if create:
            create_store(
                self.client,
                environment=ENVIRONMENT,
                namespace=self.namespace,
                partitions=partitions,
                limits=limits or Limits(),
            )

    def open(
        self,
        *,
        limits: Limits | None = None,
        partitions: int | None = None,
        archive: Archive | str | None = None,
        **connecting: Any,
    ) -> SessionLog:
        """A blocking log on this store."""
        log = SessionLog.open(
            Connecting(self.url, **connecting),
            environment=ENVIRONMENT,
            namespace=self.namespace,
            partitions=partitions,
            limits=limits or Limits(),
            archive=archive,
        )
        self._logs.append(log)
        return log

    async def open_async(
        self, *, limits: Limits | None = None, archive: Archive | str | None = None, **connecting: Any
    ) -> AsyncSessionLog:
        """An asyncio log on this store; who opens it closes it, in the same event loop."""
        return await AsyncSessionLog.open(
            Connecting(self.url, **connecting),
            environment=ENVIRONMENT,
            namespace=self.namespace,
            limits=limits or Limits(),
            archive=archive,
        )

    def total(self) -> int:
        """The running totals of events of all partitions, added up."""
        return sum(int(cast("bytes", self.client.hget(keys.meta, "total"))) for keys in self.keyspace.partitions)

    def keys(self) -> list[bytes]:
        """Every key of this store. Tests may SCAN; what they test never does."""
        return list(self.client.scan_iter(match=f"{{{ENVIRONMENT}:{self.namespace}:*", count=5000))

    def snapshot(self) -> dict[bytes, bytes]:
        """The content of every key, to show that nothing changed."""
        keys = sorted(self.keys())
        with self.client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.dump(key)
            return dict(zip(keys, pipe.execute(), strict=True))

    def check_keys(self) -> None:
        """Holds every key against the table of keys."""
        keys = self.keys()
        with self.client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.type(key)
                pipe.ttl(key)
            replies = pipe.execute()
        for key, type, ttl in zip(keys, replies[::2], replies[1::2], strict=True):
            row = row_of(key.decode())
            assert row is not None, f"no row of KEYS describes {key!r}"
            if type == b"none" and row.key_class is KeyClass.EPHEMERAL:
                continue  # it vanished since it was listed, as it may
            assert type.decode() == row.type, f"{key!r} is a {type.decode()}; KEYS says {row.type}"
            if row.key_class in (KeyClass.TRUTH, KeyClass.CONTROL):
                assert ttl == -1, f"{key!r} is {row.key_class.value} and would expire in {ttl} s"

    def close(self) -> None:
        """Closes what was opened, and deletes every key."""
        for log in self._logs:
            log.close()
        keys = self.keys()
        for start in range(0, len(keys), 5000):
            self.client.delete(*keys[start : start + 5000])
        self.client.close()


def row_of(key: str) -> Key | None:
    """The row of KEYS that describes a key; None if there is none."""
    return next((row for row, pattern in _ROWS if pattern.match(key)), None)


def _pattern(row: Key) -> re.Pattern[str]:
    tags = {"{p}": r"\{[^:{}]+:[^:{}]+:\d+\}", "{store}": r"\{[^:{}]+:[^:{}]+:store\}"}
    tag, rest = row.pattern.split("}", 1)
    return re.compile(tags[tag + "}"] + re.sub(r"<\w+>", "[^{}]+", rest) + r"\Z")


_ROWS: Final = [(row, _pattern(row)) for row in KEYS]


@pytest.fixture
def make_store() -> Iterator[Callable[..., Store]]:
    """Makes stores; after the test their keys are checked, then deleted."""
    stores: list[Store] = []

    def make(url: str, **options: Any) -> Store:
        stores.append(Store(url, **options))
        return stores[-1]

    yield make
    try:
        for store in stores:
            store.check_keys()
    finally:
        for store in stores:
            store.close()


@pytest.fixture
def store(server_url: str, make_store: Callable[..., Store]) -> Store:
    """A fresh store on the embedded server."""
    return make_store(server_url)


# -- what a test leaves behind ---------------------------------------------------------------------------------------

_OURS: set[int] = set()  #: child processes that live as long as the run, or that a test was blamed for


def children(parent: int | None = None) -> set[int]:
    """The process ids of a process's children (None: of this one's), as the kernel knows them."""
    parent = os.getpid() if parent is None else parent
    found = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text()
            except OSError:
                continue  # it ended meanwhile
            if int(stat.rpartition(")")[2].split()[1]) == parent:
                found.add(int(entry.name))
    return found


@contextmanager
def lasting() -> Iterator[None]:
    """The processes that are started here live as long as the run."""
    before = children()
    yield
    _OURS.update(children() - before)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(servers: Servers) -> Iterator[None]:
    """No key outlives a test, nor does a process that it started."""
    sizes = {name: client.dbsize() for name, client in servers.clients.items()}
    yield
    left = children() - _OURS
    _OURS.update(left)
    assert not left, f"the test left child processes behind: {sorted(left)}"
    for name, client in servers.clients.items():
        assert client.dbsize() == sizes.get(name, 0), f"the test left keys behind on {name}"
