"""Producers that are cut off from the server for long, and killed and started again meanwhile: nothing is lost, doubled
or out of order.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from domain.log import Spool
from tests.chaos.effort import FULL, seeded
from tests.chaos.proxy import Proxy, proxied
from tests.chaos.spooling_producer import SESSIONS
from tests.conftest import ENVIRONMENT, Store
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PRODUCERS = ("p", "q")
#: How long the network is away, how often a producer is killed meanwhile, how long one pauses, in seconds.
CUT_S, KILL_EVERY_S, PAUSE_S = (600.0, 15.0, 0.05) if FULL else (3.0, 0.8, 0.005)


class Host:
    """Producers that share a spool on one host."""

    def __init__(self, store: Store, proxy: Proxy, folder: Path) -> None:
        self.spool = folder / "spool.db"
        self._store = store
        self._proxy = proxy
        self._folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def notes(self, name: str) -> list[str]:
        path = self._folder / name
        return path.read_text().split() if path.exists() else []

    def start(self, name: str) -> None:
        self.running[name] = subprocess.Popen(
            [
                sys.executable, "-m", "tests.chaos.spooling_producer", self._proxy.url, ENVIRONMENT,
                self._store.namespace, str(self.spool), str(self._folder / name), name, str(PAUSE_S),
            ],
            cwd=ROOT,
        )  # fmt: skip

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running[name].wait()


def test_producers_cut_off_and_killed_lose_nothing(store: Store, tmp_path: Path) -> None:
    """They go on appending all the while; when the network is back, everything arrives by itself."""
    chance = seeded()
    with proxied(store.url) as proxy:
        host = Host(store, proxy, tmp_path)
        try:
            kills = suffer(host, proxy, chance)
        finally:
            for child in host.running.values():
                child.kill()
                child.wait()
    spooled = judge(store, host)
    print(f"cut off for {CUT_S:g} s, killed {kills} times; spooled: {spooled}")


def suffer(host: Host, proxy: Proxy, chance: random.Random) -> int:
    """Lets the producers work, cuts them off, kills and starts them, lets them work again, and ends them."""
    for name in PRODUCERS:
        host.start(name)
        wait_until(lambda name=name: len(host.notes(name)) > 20)  # type: ignore[misc]
    kills = 0
    with proxy.cut():
        until = time.monotonic() + CUT_S
        while time.monotonic() < until or kills < 3:
            name = chance.choice(PRODUCERS)
            before = len(host.notes(name))
            wait_until(lambda name=name, before=before: len(host.notes(name)) > before + 5)  # type: ignore[misc]
            time.sleep(chance.uniform(0, KILL_EVERY_S))
            host.kill(name)
            kills += 1
            host.start(name)
    for name in PRODUCERS:
        stored = host.notes(name).count("stored")
        wait_until(lambda name=name, stored=stored: host.notes(name).count("stored") > stored + 5)  # type: ignore[misc]
        host.running[name].send_signal(signal.SIGTERM)
        assert host.running[name].wait(120) == 0
    return kills


def judge(store: Store, host: Host) -> dict[str, int]:
    """Everything with a receipt is in the log, once, in order; an event without one, at most once."""
    spool = Spool(host.spool)
    assert list(spool.each()) == []
    spool.close()
    log = store.open()
    spooled = {}
    for name in PRODUCERS:
        notes = host.notes(name)
        spooled[name] = notes.count("spooled")
        assert spooled[name] > 20
        for index in range(SESSIONS):
            found = [event.payload()["n"] for commit in log.read(f"{name}-{index}") for event in commit.events]
            assert found == list(range(index, index + SESSIONS * len(found), SESSIONS)), f"session {name}-{index}"
            assert len(found) - len(range(index, len(notes), SESSIONS)) in (0, 1)
    return spooled
