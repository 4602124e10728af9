"""Health: each part is judged for itself, no look hangs, and what is told over HTTP is told to those who may know."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final

import pytest
from msgspec import structs

from domain import Misconfigured
from domain.log import Spool, connect, create_store
from domain.telemetry import METRICS
from tests.conftest import ENVIRONMENT, Store
from tests.own_server import OwnServer
from tests.projections.world import World, foreign_append, notes, run_cli
from tests.unhurried import UNHURRIED, unhurried
from tests.waiting import wait_until
from workers.alerting.alerts import Alerts
from workers.alerting.rules import parsed
from workers.child_process import start_child
from workers.health.breaker import Breaker
from workers.health.component import Component, Status, overall
from workers.health.looking import Health
from workers.health.probes import DEEP, PROBES, WITHOUT_REDIS
from workers.metrics import exposition
from workers.serving import MOST_AT_A_TIME, HealthServer, is_loopback
from workers.settings import ALERT_RULES, HealthSettings, RedisSettings, ServeSettings, Settings, SpoolSettings

MUSTER: Final = [sys.executable, "-c", "import sys; from workers.cli import main; sys.exit(main(sys.argv[1:]))"]
JOBS_DB: Final = 11
TOKEN: Final = "a-token-of-the-test"


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url, partitions=4))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnServer]:
    """A server of the test's own, with an empty store of two partitions."""
    server = OwnServer(tmp_path / "server")
    server.start()
    try:
        with server.client() as client:
            create_store(client, environment="dev", namespace="main", partitions=2)
        yield server
    finally:
        server.stop()


def settings_of(server: OwnServer, **health: Any) -> Settings:
    return Settings(redis=RedisSettings(server.url), health=structs.replace(UNHURRIED, **health))


def by_name(components: list[Component]) -> dict[str, Component]:
    return {one.name: one for one in components}


def statuses(components: list[Component]) -> dict[str, str]:
    return {one.name: one.status.word for one in components}


# -- judging ---------------------------------------------------------------------------------------------------------


def test_everything_is_well_while_a_worker_works(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part is healthy, and what is told is what is there."""
    for name, value in unhurried().items():
        monkeypatch.setenv(name, value)
    world.log.append("s", notes(3))
    with world.workers(1, lease_ttl_ms=60_000, beat_ms=1000):
        wait_until(lambda: sum(world.shares().values()) == 4, message="the worker holds all")
        world.wait_until_caught_up()

        ran = run_cli(world, "health", output="json")

    told = json.loads(ran.out)
    components = {one["component"]: one for one in told["components"]}
    assert (ran.code, told["status"]) == (0, "healthy"), told
    assert {name: one["status"] for name, one in components.items()} == dict.fromkeys(PROBES, "healthy")
    measured = {one["metric"]: one["value"] for part in components.values() for one in part["measured"]}
    assert (measured["muster_events_appended_total"], measured["muster_events_projected_total"]) == (3, 3)
    assert (measured["muster_workers"], measured["muster_partitions_held"], measured["muster_sessions"]) == (1, 4, 1)


def test_no_workers_is_the_trouble_of_workers_alone(own: OwnServer) -> None:
    """It is down, with its code and its remedy; nothing else looks worse for it."""
    health = Health(settings_of(own))
    found = health.look()

    assert {name for name, word in statuses(found).items() if word != "healthy"} == {"workers"}
    assert {one.since_ms for one in found} == {None}, "nobody knows since when, at first sight"
    assert None not in {one.since_ms for one in health.look()}
    workers = by_name(found)["workers"]
    assert (workers.status, workers.code) == (Status.DOWN, "WORKERS_MISSING")
    assert "muster worker run" in str(workers.remedy)


def test_thresholds_are_settings(world: World) -> None:
    """What waits counts from where the settings say: nothing, a warning, or critical."""
    world.log.append("s", notes(3))
    settings = world.settings()

    def of(**health: Any) -> Component:
        changed = structs.replace(settings, health=HealthSettings(**health))
        return by_name(Health(changed).look(["projections", "feed"]))["projections"]

    wait_until(lambda: of(lag_warning_s=0.001, lag_critical_s=0.002).status is Status.CRITICAL)
    assert of(lag_warning_s=0.001, lag_critical_s=3600).status is Status.WARNING
    assert of(lag_warning_s=3599, lag_critical_s=3600).status is Status.HEALTHY
    one = of(lag_warning_s=0.001, lag_critical_s=3600)
    assert (one.code, one.since_ms is not None) == ("PROJECTION_BEHIND", True)


def test_a_parked_session_is_a_warning_with_its_remedy(world: World) -> None:
    """One session's trouble is no outage, and is not hidden either."""
    foreign_append(world.store, "bad", ".", b"\xc1\xc1")
    world.project()

    found = by_name(Health(world.settings()).look(["redis", "projections"]))["projections"]

    assert (found.status, found.code) == (Status.WARNING, "SESSION_PARKED")
    assert found.remedy


def test_memory_is_judged_by_what_is_used_and_what_happens_then(own: OwnServer) -> None:
    """Nearly full, full, and a policy that deletes events."""
    with own.client() as client:
        used = int(client.info("memory")["used_memory"])
        for limit, policy, status, code in (
            (100 * used, "noeviction", Status.HEALTHY, None),
            (100 * used, "allkeys-lru", Status.CRITICAL, "SERVER_EVICTS"),
            (used // 2, "noeviction", Status.CRITICAL, "SERVER_OUT_OF_MEMORY"),
        ):
            client.config_set("maxmemory-policy", policy)
            client.config_set("maxmemory", limit)
            (found,) = Health(settings_of(own)).look(["memory"])
            assert (found.status, found.code) == (status, code)


def test_functions_that_are_missing_are_the_logs_trouble(own: OwnServer) -> None:
    """Appends are not taken then: not ready, and exit 1."""
    with own.client() as client:
        client.function_flush()

    found = Health(settings_of(own)).look(["redis", "log"])

    assert statuses(found) == {"redis": "healthy", "log": "down"}
    assert by_name(found)["log"].code == "FUNCTIONS_MISSING"


def test_the_spool_of_this_host_is_looked_at_and_never_made(tmp_path: Path, own: OwnServer) -> None:
    """A file that is not there stays so; one that is damaged is the spool's trouble alone."""
    path = tmp_path / "spool.db"
    settings = structs.replace(settings_of(own), spool=SpoolSettings(str(path)))

    assert statuses(Health(settings).look(["redis", "spool"])) == {"redis": "healthy", "spool": "healthy"}
    assert not path.exists()
    Spool(path).close()
    assert statuses(Health(settings).look(["spool"])) == {"spool": "healthy"}
    path.write_bytes(b"no database at all" * 100)
    assert statuses(Health(settings).look(["redis", "spool"])) == {"redis": "healthy", "spool": "down"}


def test_a_deep_look_judges_the_configuration_too(own: OwnServer) -> None:
    """In production a server that forgets is critical, though it answers."""
    settings = structs.replace(settings_of(own), profile="production")

    (found,) = Health(settings, DEEP).look()

    assert (found.name, found.status, found.code) == ("configuration", Status.CRITICAL, "SERVER_FORGETS")


# -- nothing hangs, nothing hides ------------------------------------------------------------------------------------


def test_a_server_that_is_gone_hides_the_rest_and_makes_it_no_worse(own: OwnServer) -> None:
    """Only redis is down; what stands on this host is judged as ever."""
    own.kill()

    found = Health(settings_of(own)).look()

    assert statuses(found) == {
        name: "down" if name == "redis" else "healthy" if name in {*WITHOUT_REDIS, "jobs", "schedule"} else "unknown"
        for name in PROBES
    }
    assert by_name(found)["redis"].code == "UNREACHABLE"
    assert overall(found) is Status.DOWN


def test_a_frozen_server_is_down_until_it_goes_on(own: OwnServer) -> None:
    """Every look ends; a probe that hangs is not started again; afterwards all is as before, since then."""
    health = Health(settings_of(own, timeout_s=1))
    own.pause()
    try:
        found: dict[str, Component] = {}
        for _ in range(2):
            found = by_name(health.look())
            assert found["redis"].status is Status.DOWN
            assert {found[name].status for name in ("log", "feed", "workers")} == {Status.UNKNOWN}
            assert found["disk"].status is Status.HEALTHY
        since = found["redis"].since_ms
        assert by_name(health.look())["redis"].since_ms == since
        assert since is not None
    finally:
        own.resume()

    wait_until(lambda: by_name(health.look())["redis"].status is Status.HEALTHY, message="it is well again")
    wait_until(lambda: by_name(health.look())["log"].status is Status.HEALTHY, message="and so is the rest")


def test_a_probe_that_hangs_or_fails_is_its_own_trouble(own: OwnServer) -> None:
    """Whatever one probe does, the others are told; it is not started a second time while it hangs."""
    release, begun = Event(), []

    def hangs(settings: Settings) -> Component:
        begun.append(1)
        release.wait()
        return Component("hangs", Status.HEALTHY, "at last")

    def fails(settings: Settings) -> Component:
        raise ZeroDivisionError("a bug")

    health = Health(settings_of(own, timeout_s=1), {"redis": PROBES["redis"], "hangs": hangs, "fails": fails})
    try:
        for _ in range(2):
            assert statuses(health.look()) == {"redis": "healthy", "hangs": "down", "fails": "unknown"}
        assert len(begun) == 1
    finally:
        release.set()
    wait_until(lambda: statuses(health.look(["hangs"])) == {"hangs": "healthy"})


def test_a_store_that_is_missing_is_the_trouble_of_the_log_alone(own: OwnServer) -> None:
    """What there is none of cannot be seen, and looks no worse for it."""
    with own.client() as client:
        client.flushall()

    found = Health(settings_of(own)).look()

    assert {name for name, word in statuses(found).items() if word == "down"} == {"log"}
    assert by_name(found)["log"].code == "STORE_MISSING"
    assert {by_name(found)[name].reason for name in ("feed", "projections", "verification", "workers")} == {
        "it cannot be seen while log is down"
    }


def test_one_broken_key_is_the_trouble_of_one_part(own: OwnServer) -> None:
    """A key of another type keeps nobody from seeing the log, the workers and the rest."""
    with own.client() as client:
        client.set("{dev:main:store}:workers", "no list of workers")

    found = Health(settings_of(own)).look()

    assert {name for name, word in statuses(found).items() if word != "healthy"} == {"workers"}
    assert by_name(found)["workers"].code == "KEY_DAMAGED"


def test_a_breaker_opens_waits_and_tries_once() -> None:
    """After so many failures in a row; each try in vain doubles the wait, up to the longest; success closes it."""
    clock = [0.0]
    breaker = Breaker(failures=3, longest_wait_s=3, monotonic=lambda: clock[0])
    silent = Component("x", Status.DOWN, "no answer", "SERVER_SILENT", is_failure=True)

    waits: list[float] = []
    for number in range(6):
        assert not breaker.is_open
        breaker.failed(silent)
        if number < 2:
            continue
        began = clock[0]
        assert breaker.is_open
        told = breaker.held()
        assert (told.status, told.code, told.is_asked) == (Status.DOWN, "SERVER_SILENT", False)
        assert told.reason.startswith(f"no answer; asked {number + 1} times in vain, again in ")
        while breaker.is_open:
            clock[0] += 0.5
        waits.append(clock[0] - began)

    assert waits == [1, 2, 3, 3]
    breaker.answered()
    breaker.failed(silent)
    assert not breaker.is_open, "it counts from the beginning again"


def test_a_probe_that_keeps_failing_is_not_hammered_and_hides_nothing(own: OwnServer) -> None:
    """Looked at again and again it is asked now and then; it stays down since the first time, until it is well."""
    asked, well = [], Event()

    def fails(settings: Settings) -> Component:
        asked.append(1)
        if not well.is_set():
            raise ConnectionError("gone")
        return Component("fails", Status.HEALTHY, "well")

    health = Health(settings_of(own, breaker_failures=2), {"redis": PROBES["redis"], "fails": fails})
    looks = [by_name(health.look()) for _ in range(50)]

    assert 2 <= len(asked) < 10
    assert {look["fails"].status for look in looks} == {Status.DOWN}
    assert {look["redis"].status for look in looks} == {Status.HEALTHY}
    assert len({look["fails"].since_ms for look in looks[1:]}) == 1
    held = next(look for look in reversed(looks) if not look["fails"].is_asked)
    assert "in vain, again in" in held["fails"].reason
    assert 'muster_probe_suspended{component="fails"} 1\n' in exposition(list(held.values()))
    well.set()
    wait_until(lambda: by_name(health.look())["fails"].status is Status.HEALTHY, message="it is asked again")


def test_what_was_held_for_redis_alone_is_asked_when_redis_answers(own: OwnServer) -> None:
    """In the very look that sees it, though its own wait is not over."""
    health = Health(settings_of(own, breaker_failures=1))
    own.kill()
    # The feed failed twice before redis failed once: so it waits for longer.
    assert by_name(health.look(["feed"]))["feed"].is_asked
    wait_until(lambda: by_name(health.look(["feed"]))["feed"].is_asked, message="it is asked a second time")
    assert not by_name(health.look(["redis", "feed"]))["feed"].is_asked
    own.start()
    with own.client() as client:
        create_store(client, environment="dev", namespace="main", partitions=2)

    found: dict[str, Component] = {}
    while not found or found["redis"].status is not Status.HEALTHY:
        found = by_name(health.look(["redis", "feed"]))

    assert found["feed"].status is Status.HEALTHY


@pytest.fixture
def jobs_world(world: World) -> Iterator[World]:
    """Jobs have a database of their own."""
    world.jobs_url = f"{world.store.url.rpartition('/')[0]}/{JOBS_DB}"
    yield world
    with connect(RedisSettings(world.jobs_url)) as client:
        client.flushdb()


def test_what_recurs_is_watched(jobs_world: World) -> None:
    """In time while a worker takes jobs; late when what is due was not begun; unknown where no worker lives."""
    world, url = jobs_world, jobs_world.jobs_url
    settings = world.settings(jobs_url=url, verify_every_s=3600)

    def found() -> Component:
        (one,) = Health(settings).look(["schedule"])
        return one

    assert found().status is Status.UNKNOWN
    with world.workers(1):  # it takes no jobs
        wait_until(lambda: found().status is not Status.UNKNOWN, message="it lives")
        assert (found().code, "does a worker take jobs" in found().reason) == ("SCHEDULE_LATE", True)
    with world.workers(1, jobs_url=url, verify_every_s=3600):
        wait_until(lambda: found().status is Status.HEALTHY, message="both are begun at once")
        ages = {dict(one.labels)["job"] for one in found().samples}
        assert ages == {"sweep", "scrub"}
        world.redis.hincrby(world.keyspace.ticked, "scrub", -4 * 3_600_000)
        late = found()
        assert (late.status, late.code) == (Status.WARNING, "SCHEDULE_LATE")
        assert "scrub is due every 3600 s" in late.reason


def test_live_asks_nobody(tmp_path: Path) -> None:
    """It says that this program runs, whatever became of the server."""
    ran = subprocess.run(
        [*MUSTER, "health", "--live", "--url", "redis://127.0.0.1:1"], cwd=Path(__file__).parents[2], check=False
    )

    assert ran.returncode == 0


# -- over HTTP -------------------------------------------------------------------------------------------------------


@contextmanager
def served(settings: Settings, health: Health | None = None) -> Iterator[HealthServer]:
    with HealthServer(structs.replace(settings, serve=structs.replace(settings.serve, port=0)), health) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def asked(server: HealthServer, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(server.server_name, server.server_port)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_all_is_told_over_http(own: OwnServer) -> None:
    """Each path answers with what its name says; 503 where a part is critical or down."""
    with served(settings_of(own)) as server:
        assert asked(server, "/livez")[0] == 200
        assert asked(server, "/readyz") == (200, '{"schema": "muster.ready/1", "status": "ready"}\n')
        code, body = asked(server, "/health")
        assert (code, json.loads(body)["components"]["workers"]) == (503, "down")
        listed = json.loads(asked(server, "/health/components")[1])
        assert [one["component"] for one in listed] == list(PROBES)
        assert json.loads(asked(server, "/health/detailed")[1])["components"] == listed
        assert json.loads(asked(server, "/health/redis")[1])["component"] == "redis"
        assert json.loads(asked(server, "/health/sessions")[1])["sessions"] == 0
        assert asked(server, "/nothing")[0] == 404
        assert asked(server, "/livez", Host="attacker.example")[0] == 421


def test_liveness_looks_at_nothing(own: OwnServer) -> None:
    """Neither at Redis nor at anything else that may hang."""

    class NeverLooked(Health):
        def look(self, only: object = None) -> list[Component]:
            raise AssertionError("looked")

    with served(settings_of(own), NeverLooked(settings_of(own))) as server:
        assert server.answer("/livez")[0] == 200
        with pytest.raises(AssertionError, match="looked"):
            server.answer("/readyz")


def test_liveness_never_depends_on_redis(own: OwnServer) -> None:
    """With the server frozen or gone the process lives and is not ready; metrics say that redis is not up."""
    with served(settings_of(own, timeout_s=0.5)) as server:
        own.pause()
        assert asked(server, "/livez")[0] == 200
        assert asked(server, "/readyz")[0] == 503
        text = asked(server, "/metrics")[1]
        own.kill()
        assert asked(server, "/livez")[0] == 200
    assert "muster_redis_up 0\n" in text
    assert 'muster_component_status{component="redis"} 4\n' in text
    assert "muster_events_appended_total" not in text


def test_beyond_loopback_nothing_is_told_without_the_token(own: OwnServer) -> None:
    """It is refused before it listens; with a token, only probes go without it, and none but the whole token does."""
    settings = structs.replace(settings_of(own), serve=ServeSettings("0.0.0.0", 0))
    with pytest.raises(Misconfigured, match=r"serve\.token"):
        HealthServer(settings)
    with served(structs.replace(settings, serve=ServeSettings("0.0.0.0", 0, TOKEN))) as server:
        assert asked(server, "/livez")[0] == asked(server, "/readyz")[0] == 200
        for wrong in ("", TOKEN, f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}"):
            for path in ("/health", "/health/detailed", "/metrics", "/nothing"):
                assert asked(server, path, Authorization=wrong)[0] == 401
        assert asked(server, "/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert [is_loopback(host) for host in ("127.0.0.9", "::1", "localhost", "0.0.0.0", "::", "here.example")] == [
        *(True, True, True, False, False, False)
    ]


def test_nobody_can_use_up_the_threads(own: OwnServer) -> None:
    """Who connects and says nothing keeps a place; when all are taken, more are hung up on, until one is free."""
    with served(settings_of(own)) as server, ExitStack() as stack:
        address = (server.server_name, server.server_port)
        silent = [stack.enter_context(socket.create_connection(address)) for _ in range(MOST_AT_A_TIME)]

        def answers() -> bool:
            try:
                return asked(server, "/livez")[0] == 200
            except (http.client.BadStatusLine, ConnectionError):
                return False

        wait_until(lambda: not answers(), message="all places are taken")
        for one in silent:
            one.close()
        wait_until(answers, message="there is a place again")


def test_metrics_are_declared_once_and_name_their_unit(world: World) -> None:
    """What is exposed is what is declared, of every component; a counter is a total; no label has no bounds."""
    world.log.append("s-1", notes(2, actor="agent-1"))
    world.project()

    text = exposition(Health(world.settings()).look(), Alerts(parsed(ALERT_RULES)).samples())

    names = [metric.name for metric in METRICS if metric.teller == "serve"]
    for line in text.splitlines():  # as the format has it
        assert re.fullmatch(
            r"# (HELP \w+ .+|TYPE \w+ (counter|gauge))"
            r'|\w+(\{\w+="[^"\\]*"(,\w+="[^"\\]*")*\})? [0-9.e+-]+',
            line,
        ), line
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    exposed = {re.split(r"[{ ]", line)[0] for line in samples}
    assert exposed <= set(names)
    assert set(names) - exposed == {  # which are off
        *("muster_jobs_open", "muster_schedule_age_seconds", "muster_spool_commits", "muster_spool_bytes")
    }
    assert {label for line in samples for label in re.findall(r'(\w+)="', line)} == {
        *("component", "projection", "state", "alert", "severity")
    }
    assert "s-1" not in text
    assert "agent-1" not in text
    assert "\nmuster_events_appended_total 2\n" in text


def test_serve_runs_until_it_is_told_to_stop(world: World, tmp_path: Path) -> None:
    """It says where it listens, answers, and ends with 0 at SIGTERM."""
    said = tmp_path / "said"
    with said.open("wb") as stderr:
        where = ["--url", world.store.url, "--environment", ENVIRONMENT, "--namespace", world.store.namespace]
        child = start_child([*MUSTER, "serve", "--port", "0", *where], env=world.environ(), stderr=stderr)
        with child:
            wait_until(lambda: "/health" in said.read_text(), message="it says where it listens")
            port = int(re.findall(r":(\d+)/health", said.read_text())[0])
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/metrics")
            assert b"muster_redis_up 1" in connection.getresponse().read()
            connection.close()
            child.send_signal(signal.SIGTERM)
            assert child.wait(timeout=60) == 0
