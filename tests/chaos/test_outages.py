"""The server goes away and comes back: the same worker processes go on by themselves, and miss nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from domain import Receipt
from domain.log import Connecting, connect
from projections import lag as lag_module
from tests.chaos.effort import FULL
from tests.chaos.group import Group
from tests.chaos.producing import producing
from tests.chaos.proxy import Proxy
from tests.conftest import Store
from tests.own_server import OwnServer
from tests.projections.world import World, did
from tests.waiting import wait_until
from workers import hindrances, watching
from workers.child_process import ChildProcess, start_child
from workers.embedded import EmbeddedServer
from workers.watching import Watch

LEASE_TTL_MS = 1000
PARTITIONS = 8


class Outage:
    """What an outage may be done to."""

    def __init__(self, server: EmbeddedServer, proxy: Proxy) -> None:
        self._server = server
        self._proxy = proxy

    def cut_off(self, seconds: float) -> None:
        with self._proxy.cut():
            time.sleep(seconds)

    def killed(self, seconds: float) -> None:
        self._server.kill()
        time.sleep(seconds)
        self._server.restart()

    def connections_killed(self, times: float) -> None:
        with connect(Connecting(self._server.url)) as client:
            for _ in range(int(times)):
                client.client_kill_filter(_type="normal", skipme=True)
                time.sleep(0.05)


OUTAGES = {
    "cut off for a moment": (Outage.cut_off, 0.2),
    "cut off for longer than leases last": (Outage.cut_off, 2.5 * LEASE_TTL_MS / 1000),
    "killed and back at once": (Outage.killed, 0),
    "killed and away for longer than leases last": (Outage.killed, 2.5 * LEASE_TTL_MS / 1000),
    "connections killed": (Outage.connections_killed, 10),
}
if FULL:
    OUTAGES["cut off for a minute"] = (Outage.cut_off, 60)


@contextmanager
def under_load(world: World, url: str) -> Iterator[None]:
    """Two workers that share and producers that append; afterwards the same workers share again and all is right."""
    with (
        world.workers(2, lease_ttl_ms=LEASE_TTL_MS) as workers,
        producing(url, 2, seed=1, namespace=world.store.namespace) as producers,
    ):
        world.wait_until_shared(workers)
        producers.wait_for(10)
        yield
        producers.wait_for(10)
        producers.stop()
        world.wait_until_shared(workers)
        world.wait_until_caught_up()
        assert [worker.poll() for worker in workers] == [None, None], "these are the same ones"
    assert not producers.unexpected()
    assert not producers.named()
    world.assert_views_are_folds()
    assert world.verify() == []


@pytest.mark.parametrize("words", OUTAGES)
def test_the_same_workers_go_on_when_the_server_is_back(
    killable: EmbeddedServer, killable_proxy: Proxy, make_store: Callable[..., Store], words: str
) -> None:
    """However it was away, and however long: same process ids, every event applied once, no drift."""
    world = World(make_store(killable.url, partitions=PARTITIONS))
    world.store.url = killable_proxy.url  # from here on: workers reach it through the proxy, the test directly
    outage, argument = OUTAGES[words]
    with under_load(world, killable_proxy.url):
        outage(Outage(killable, killable_proxy), argument)


def test_the_same_workers_go_on_after_a_failover(tmp_path: Path) -> None:
    """The primary dies and a replica takes its place; workers find it by the Sentinels, and nothing is lost to them."""
    with Group(tmp_path / "group") as group, closing(Store(group.url, partitions=PARTITIONS)) as store:
        world = World(store)
        with world.workers(2, lease_ttl_ms=LEASE_TTL_MS) as workers:
            world.wait_until_shared(workers)
            names = world.sessions(30)
            world.wait_until_caught_up()
            # What only the primary has may be lost, and that is another test's.
            group.wait_until_replicated()
            primary = group.primary()
            primary.kill()
            group.wait_for_failover(primary)
            log = store.open()
            assert all(isinstance(log.append(name, did("modified")), Receipt) for name in names)
            world.wait_until_shared(workers)
            world.wait_until_caught_up()
            assert [worker.poll() for worker in workers] == [None, None], "these are the same ones"
        world.assert_views_are_folds()
        assert world.verify() == []
        store.check_keys()


# -- rights ------------------------------------------------------------------------------------------------------------

ALL_RIGHTS = ("on", ">secret", "clearselectors", "resetkeys", "~*", "&*", "+@all")
#: What a worker lacks, by what the line about it must name.
LACKING = {
    "'xread'": ("-xread",),
    "'fcall'": ("-fcall",),
    "SET {test:": (
        "resetkeys",
        "(+fcall ~*)",
        "%R~*",
        "~*:owner:*",
        "~*:cursor:*",
        "~*:view:session:*",
        "~*:view:statistics",
        "~*:index:*",
        "~{test:*:store}:*",
    ),
}


@pytest.fixture(params=["valkey", "redis7"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OwnServer]:
    server = OwnServer(tmp_path / "server", kind=request.param)
    server.start()
    yield server
    server.stop()


@contextmanager
def worker_of(world: World, user: str, output: Path) -> Iterator[ChildProcess]:
    """A worker process that is this user on the server, and whose words go to a file."""
    environ = {**world.environ(), "MUSTER_REDIS__USERNAME": user, "MUSTER_REDIS__PASSWORD": "secret"}
    with output.open("wb") as file:
        worker = start_child([sys.executable, "-m", "workers.process"], env=environ, stderr=file)
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()


@pytest.mark.parametrize("words", LACKING)
def test_a_worker_says_which_right_it_lacks_and_goes_on_once_it_has_it(
    guarded: OwnServer,
    make_store: Callable[..., Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
) -> None:
    """It says so as an error with the remedy, and not all the time; others see it stuck; nothing half is written."""
    for module in (lag_module, watching):
        monkeypatch.setattr(module, "STUCK_AFTER_S", 0.5)
    world = World(make_store(guarded.url, partitions=2))
    output, said = tmp_path / "said", list[str]()
    watch = Watch(world.projections, said.append)

    def acl(*rights: str) -> None:
        world.redis.execute_command("ACL", "SETUSER", "worker", *rights)

    def errors() -> list[str]:
        return [line for line in output.read_text().splitlines() if " ERROR " in line]

    def is_stuck() -> bool:
        watch.look()
        return any("does not move" in line for line in said)

    acl(*ALL_RIGHTS)
    with worker_of(world, "worker", output) as worker:
        world.wait_until_shared([worker])
        world.log.append("before", did("start"))
        world.wait_until_caught_up()
        acl(*LACKING[words])
        began = time.monotonic()
        for n in range(20):
            world.log.append("s", did("modified", f"agent-{n}"))
        wait_until(lambda: any(words in line for line in errors()), message="the error is logged")
        wait_until(is_stuck, message="it is seen from outside")
        assert all("ACCESS_DENIED" in line and "check the user" in line for line in errors())
        # Each of the four kinds of work that may be hindered says so at most that often.
        assert len(errors()) <= 4 * (1 + (time.monotonic() - began) / hindrances.SAY_EVERY_S)
        assert world.verify() == [], "nothing is written by half"
        assert worker.poll() is None

        acl(*ALL_RIGHTS)
        world.wait_until_caught_up()
        assert worker.poll() is None

    assert world.verify() == []
