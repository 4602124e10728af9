"""A real Prometheus scrapes `muster serve` and workers, and is asked for what it found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec import structs

from tests.conftest import Store, missing
from tests.ports import own_port
from tests.projections.world import World, did
from tests.waiting import wait_until
from workers.child_process import ChildProcess, start_child
from workers.settings import ServeSettings, Settings, TelemetrySettings

ROOT: Final = Path(__file__).parents[3]
MUSTER: Final = "import sys; from workers.cli import main; sys.exit(main(sys.argv[1:]))"
TOKEN: Final = "a-token-of-the-test"


def program(name: str) -> str:
    """A program of the Debian package prometheus."""
    found = shutil.which(name)
    if found is None:
        missing(f"there is no {name} on the PATH")
    return found


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url, partitions=4))


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., ChildProcess]]:
    """Starts programs whose output goes to a file; whatever still runs is ended after the test."""
    with ExitStack() as stack:

        def start(command: Sequence[str], settings: Settings, name: str) -> ChildProcess:
            environ = {name: value for name, value in os.environ.items() if not name.startswith(("MUSTER_", "OTEL_"))}
            environ |= {**settings.environ(), "PYTHONPATH": str(ROOT)}
            with (tmp_path / name).open("wb") as file:
                child = start_child(command, env=environ, stdout=file, stderr=file)
            stack.callback(child.wait)
            stack.callback(child.kill)
            return child

        yield start


def worker_command() -> list[str]:
    return [sys.executable, "-m", "workers.process"]


def metrics_at(said: Path) -> str:
    """Where a worker says that it tells its metrics."""
    wait_until(lambda: "metrics at http" in said.read_text(), message="it says where its metrics are")
    return said.read_text().split("metrics at ")[1].split("/metrics")[0]


def counting(world: World, port: int, **options: Any) -> Settings:
    """Settings of workers that tell their metrics from a port on."""
    base = world.settings()
    worker = structs.replace(base.worker, processes=2)
    return structs.replace(base, worker=worker, telemetry=TelemetrySettings(port=port, **options))


def fetched(url: str, headers: dict[str, str] | None = None) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=30) as answer:
        text: str = answer.read().decode()
        return text


class Prometheus:
    """A Prometheus that scrapes these addresses five times a second."""

    def __init__(self, directory: Path, targets: dict[str, str]) -> None:
        self.port = own_port()
        self._config = directory / "prometheus.yml"
        jobs = [
            {"job_name": name, "static_configs": [{"targets": [url.removeprefix("http://")]}]}
            for name, url in targets.items()
        ]
        configuration = {"global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"}, "scrape_configs": jobs}
        self._config.write_text(json.dumps(configuration), "utf-8")  # JSON is YAML
        self._directory = directory

    def command(self) -> list[str]:
        data, listen = self._directory / "data", f"127.0.0.1:{self.port}"
        flags = [f"--config.file={self._config}", f"--storage.tsdb.path={data}", f"--web.listen-address={listen}"]
        return [program("prometheus"), *flags]

    def finds(self, query: str, value: float) -> bool:
        """Whether a query comes to this value."""
        return self.value(query) == value

    def value(self, query: str) -> float | None:
        """What a query comes to; None while there is nothing."""
        asked = urllib.parse.urlencode({"query": query})
        try:
            told = json.loads(fetched(f"http://127.0.0.1:{self.port}/api/v1/query?{asked}"))
        except OSError:
            return None  # it is about to start
        found = told["data"]["result"]
        return float(found[0]["value"][1]) if found else None


def test_prometheus_finds_what_serve_and_workers_tell(
    world: World, started: Callable[..., ChildProcess], tmp_path: Path
) -> None:
    """The same numbers that the store has, over its own API: gauges of state, counters, histograms."""
    settings = counting(world, own_port(in_a_row=2))
    started(worker_command(), settings, "worker")
    # A scrape of `serve` is a look at everything, which may wait for a partition that changes hands.
    serve = started([sys.executable, "-c", MUSTER, "serve", "--port", "0"], settings, "serve")
    wait_until(lambda: "serves http" in (tmp_path / "serve").read_text(), message="it says where it serves")
    served = (tmp_path / "serve").read_text().split("serves ")[1].split("/health")[0]
    worker = metrics_at(tmp_path / "worker")
    wait_until(lambda: sum(world.shares().values()) == 4, message="the worker holds all")
    fetched(f"{served}/metrics")

    prometheus = Prometheus(tmp_path, {"serve": served, "worker": worker})
    started(prometheus.command(), settings, "prometheus.log")
    for name in ("s-1", "s-2"):
        world.log.append(name, [did("start"), did("modified")])
    world.log.append("s-1", did("completed"))
    world.wait_until_caught_up()

    expected = {
        "muster_events_appended_total": 5,
        "muster_sessions": 2,
        'muster_sessions_by_state{state="completed"}': 1,
        'muster_projection_lag_events{projection="sessions@2"}': 0,
        'muster_component_status{component="redis"}': 0,
        "muster_partitions_held": 4,
        'muster_worker_events_total{projection="sessions@2"}': 5,
        'muster_worker_commits_total{projection="sessions@2"}': 3,
        "muster_worker_sessions_created_total": 2,
        "muster_worker_sessions_completed_total": 1,
        'muster_worker_partitions{projection="sessions@2"}': 4,
        'muster_worker_phase_seconds_bucket{phase="write",le="+Inf"} - ignoring(phase,le) '
        'muster_worker_batch_seconds_count{projection="sessions@2"}': 0,
        'histogram_quantile(1, muster_worker_visible_seconds_bucket{projection="sessions@2"}) > bool 0': 1,
        'up{job="serve"} + ignoring(job, instance) up{job="worker"}': 2,
    }
    for query, value in expected.items():
        wait_until(partial(prometheus.finds, query, value), message=f"{query} is {value}")

    check = [program("promtool"), "check", "metrics"]
    for text in (fetched(f"{served}/metrics"), fetched(f"{worker}/metrics")):
        ran = subprocess.run(check, input=text, capture_output=True, text=True, timeout=60)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    serve.send_signal(signal.SIGTERM)
    assert serve.wait(60) == 0


def test_each_process_has_a_port_of_its_own(world: World, started: Callable[..., ChildProcess], tmp_path: Path) -> None:
    """The first that is free, of as many as there are processes; who finds none works all the same, and says so."""
    first = own_port(in_a_row=2)
    settings = counting(world, first)
    one = started(worker_command(), settings, "one")
    assert metrics_at(tmp_path / "one") == f"http://127.0.0.1:{first}"
    two = started(worker_command(), settings, "two")
    assert metrics_at(tmp_path / "two") == f"http://127.0.0.1:{first + 1}"
    three = started(worker_command(), settings, "three")
    wait_until(lambda: "worker.metrics_untold" in (tmp_path / "three").read_text(), message="it says so")

    world.wait_until_shared([one, two, three])
    one.send_signal(signal.SIGTERM)
    assert one.wait(60) == 0
    started(worker_command(), settings, "again")
    assert metrics_at(tmp_path / "again") == f"http://127.0.0.1:{first}"


def test_metrics_beyond_loopback_need_a_token(
    world: World, started: Callable[..., ChildProcess], tmp_path: Path
) -> None:
    """Without one they are told to nobody; with one, to who sends it."""
    open_to_all = counting(world, own_port(in_a_row=2), host="0.0.0.0")
    started(worker_command(), open_to_all, "open")
    wait_until(lambda: "worker.metrics_untold" in (tmp_path / "open").read_text(), message="it says so")

    settings = structs.replace(open_to_all, serve=ServeSettings(token=TOKEN))
    started(worker_command(), settings, "guarded")
    port = metrics_at(tmp_path / "guarded").rpartition(":")[2]
    with pytest.raises(OSError, match="401"):
        fetched(f"http://127.0.0.1:{port}/metrics")
    told = fetched(f"http://127.0.0.1:{port}/metrics", {"Authorization": f"Bearer {TOKEN}"})
    assert "# TYPE muster_worker_memory_bytes gauge\n" in told
    with pytest.raises(OSError, match="404"):
        fetched(f"http://127.0.0.1:{port}/health", {"Authorization": f"Bearer {TOKEN}"})
