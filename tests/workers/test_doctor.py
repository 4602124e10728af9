"""`muster doctor`: symptoms are made for real, its first line names each, and what it prints mends it."""

from __future__ import annotations

import io
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from domain.log import create_store
from projections.store import Parked
from tests.conftest import ENVIRONMENT, Store
from tests.own_server import Certificates, OwnServer
from tests.ports import own_port
from tests.projections.world import World, notes
from tests.unhurried import unhurried
from tests.waiting import wait_until
from workers.child_process import start_child
from workers.cli import main
from workers.readiness import server_command
from workers.settings import load

MUSTER: Final = [sys.executable, "-c", "import sys; from workers.cli import main; sys.exit(main(sys.argv[1:]))"]
PASSWORD: Final = "s3cr3t-pa55-of-the-test"


class Ran(NamedTuple):
    code: int
    out: str

    @property
    def verdict(self) -> str:
        return self.out.splitlines()[0]


def run(*arguments: str) -> Ran:
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        code = main(arguments)
    return Ran(code, out.getvalue())


class Patient:
    """A server with a store, and the doctor who is asked about it."""

    def __init__(self, server: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        self.url = server.url
        self._monkeypatch = monkeypatch
        for name, value in unhurried().items():
            monkeypatch.setenv(name, value)

    def given(self, name: str, value: str) -> None:
        """A setting of the process that asks."""
        self._monkeypatch.setenv(f"MUSTER_{name}", value)

    def found(self) -> dict[str, dict[str, Any]]:
        """The findings by code."""
        told = json.loads(run("doctor", "--url", self.url, "-o", "json").out)
        assert told["code"] == (told["findings"][0]["code"] if told["findings"] else None)
        return {one["code"]: one for one in told["findings"]}

    def is_told(self, code: str, words: str = "") -> dict[str, Any]:
        """The doctor's first line names the trouble, with exit 1; the finding is returned."""
        ran = run("doctor", "--url", self.url)
        assert ran.verdict.startswith(f"verdict: {code}: "), ran.out
        assert words in ran.verdict
        assert ran.code == 1
        return self.found()[code]

    def mended_by(self, finding: dict[str, Any]) -> None:
        """The command of a finding, run as it stands, ends it."""
        words = shlex.split(finding["command"])
        if words[0] == "redis-cli":
            assert words[1:3] == ["-u", self.url]
            with self.server.client() as client:
                client.execute_command(*words[3:])
        else:
            assert run(*words[1:]).code == 0
        assert finding["code"] not in self.found()


@pytest.fixture
def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Patient]:
    monkeypatch.chdir(tmp_path)
    server = OwnServer(tmp_path / "server", "--appendonly", "yes", "--maxmemory", "200mb")
    server.start()
    try:
        with server.client() as client:
            create_store(client, environment="dev", namespace="main", partitions=2)
        yield Patient(server, monkeypatch)
    finally:
        server.stop()


# -- the way there ---------------------------------------------------------------------------------------------------


def test_a_server_that_is_down(patient: Patient) -> None:
    """Nobody listens; once it runs again the trouble is gone."""
    patient.server.kill()

    finding = patient.is_told("UNREACHABLE", "nobody takes connections at 127.0.0.1")

    assert "check that the server runs" in finding["remedy"]
    patient.server.start()
    assert "UNREACHABLE" not in patient.found()


def test_a_server_that_is_frozen(patient: Patient) -> None:
    """It takes connections and answers nothing, which is another trouble than being down."""
    patient.given("HEALTH__TIMEOUT_S", "0.5")
    patient.server.pause()
    try:
        finding = patient.is_told("SERVER_SILENT", "answers nothing")
        assert "SIGCONT" in finding["remedy"]
    finally:
        patient.server.resume()
    patient.given("HEALTH__TIMEOUT_S", "60")
    assert "SERVER_SILENT" not in patient.found()


def test_a_name_that_nobody_knows(patient: Patient) -> None:
    """The resolver is the trouble, not the server."""
    patient.url = "redis://nowhere.invalid:1"

    patient.is_told("NAME_UNRESOLVED", "nowhere.invalid")


def test_a_password_that_is_wrong_or_missing(patient: Patient) -> None:
    """Both are named in the server's own words, and the password is never shown."""
    with patient.server.client() as client:
        client.config_set("requirepass", PASSWORD)
    patient.is_told("ACCESS_DENIED", "NOAUTH")
    patient.given("REDIS__PASSWORD", PASSWORD[::-1])
    patient.is_told("ACCESS_DENIED", "WRONGPASS")
    assert PASSWORD[::-1] not in run("doctor", "--url", patient.url).out

    patient.given("REDIS__PASSWORD", PASSWORD)

    assert "ACCESS_DENIED" not in patient.found()


def test_a_right_that_is_lacking(patient: Patient) -> None:
    """A user who may not call functions appends nothing; the doctor says which right it is."""
    with patient.server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", f">{PASSWORD}", "~*", "+@all", "-fcall")
        patient.given("REDIS__USERNAME", "app")
        patient.given("REDIS__PASSWORD", PASSWORD)
        patient.is_told("ACCESS_DENIED", "fcall")

        client.execute_command("ACL", "SETUSER", "app", "+fcall")

    assert "ACCESS_DENIED" not in patient.found()


def test_tls_that_one_side_lacks(patient: Patient, tmp_path: Path) -> None:
    """A server that wants TLS hangs up on who speaks plainly; one without does not understand who does not."""
    certificates, port = Certificates(tmp_path / "certificates"), own_port()
    server = OwnServer(tmp_path / "tls", *certificates.of_a_server(port))
    server.start()
    patient.given("HEALTH__TIMEOUT_S", "1")  # each side waits for the other to say something
    try:
        patient.url = f"redis://localhost:{port}/0"
        patient.is_told("NO_SUCH_PROTOCOL", "rediss://")
        patient.url = f"rediss://localhost:{port}/0"
        patient.is_told("TLS_FAILED", "CERTIFICATE_VERIFY_FAILED")
        patient.given("REDIS__TLS_CA_FILE", certificates.file("ca.crt"))
        assert not patient.found().keys() & {"TLS_FAILED", "NO_SUCH_PROTOCOL"}
        patient.url = patient.server.url.replace("redis://", "rediss://")
        patient.is_told("NO_SUCH_PROTOCOL", "the server has no TLS")
    finally:
        server.stop()


def test_settings_that_are_wrong(patient: Patient) -> None:
    """They are the first trouble, all of them, without asking anybody."""
    patient.given("WORKER__THREADS", "many")
    patient.given("NAMESPACES", "x")

    patient.is_told("SETTING_UNKNOWN", "did you mean 'namespace'?")
    assert patient.found().keys() == {"SETTING_UNKNOWN", "SETTING_INVALID"}


# -- the server ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "code", "profile"),
    [
        ("maxmemory", "600kb", "SERVER_OUT_OF_MEMORY", "development"),
        ("maxmemory-policy", "allkeys-lru", "SERVER_EVICTS", "development"),
        ("appendonly", "no", "SERVER_FORGETS", "production"),
        ("appendfsync", "no", "SERVER_SYNCS_LATE", "production"),
    ],
)
def test_a_server_that_is_set_wrongly(patient: Patient, setting: str, value: str, code: str, profile: str) -> None:
    """Memory that is full, a policy that deletes events, no file, a file that is not synced."""
    patient.given("PROFILE", profile)
    with patient.server.client() as client:
        client.config_set(setting, value)

    patient.mended_by(patient.is_told(code))


def test_a_disk_that_is_full(patient: Patient) -> None:
    """The server's last write failed, so it takes no more: its file is /dev/full, until there is room again."""
    with patient.server.client() as client:
        client.config_set("appendonly", "no")
        temporary = patient.server.directory / "appendonlydir" / "temp-appendonly.aof.incr"
        temporary.symlink_to("/dev/full")
        client.config_set("appendonly", "yes")
        client.set("anything", "1")
        wait_until(lambda: client.info("persistence")["aof_last_write_status"] == "err")

        finding = patient.is_told("SERVER_CANNOT_PERSIST")

        assert "free disk space" in finding["remedy"]
        client.config_set("appendonly", "no")
        for path in (patient.server.directory / "appendonlydir").iterdir():
            if path.is_symlink():
                path.unlink()
        client.config_set("appendonly", "yes")
        wait_until(lambda: client.info("persistence")["aof_last_write_status"] == "ok")
    assert "SERVER_CANNOT_PERSIST" not in patient.found()


def test_commands_hold_no_secret_and_reach_the_server_they_are_about() -> None:
    """A password is asked for; a socket, a user and a certificate are named; through Sentinels nobody knows which."""
    for url, start in (
        (f"redis://app:{PASSWORD}@h:1/0", "redis-cli -u redis://h:1/0 --user app --askpass CONFIG SET "),
        ("unix:///run/the redis.sock", "redis-cli -s '/run/the redis.sock' CONFIG SET "),
        ("rediss://h:1", "redis-cli -u rediss://h:1 --cacert ca.pem CONFIG SET "),
        ("redis+sentinel://h:1/main", ""),
    ):
        ca = {"MUSTER_REDIS__TLS_CA_FILE": "ca.pem"} if url.startswith("rediss:") else {}
        command = server_command(load({"MUSTER_REDIS__URL": url, **ca}), "maxmemory 1")
        assert command == (f"{start}maxmemory 1" if start else "")


def test_a_server_that_is_slow(patient: Patient) -> None:
    """By the threshold of the settings; in production it is a warning, behind which no error stands."""
    patient.given("HEALTH__LATENCY_WARNING_S", "0.0000001")

    assert patient.found()["SERVER_SLOW"]["why"].startswith("a PING took")


def test_functions_that_are_gone(patient: Patient) -> None:
    """`muster init` loads them again."""
    with patient.server.client() as client:
        client.function_flush()

    patient.mended_by(patient.is_told("FUNCTIONS_MISSING"))


def test_a_store_that_is_not_there(patient: Patient) -> None:
    """A server that lost its data, or another one: `muster init` makes a store, where that is what is wanted."""
    with patient.server.client() as client:
        client.flushall()

    finding = patient.is_told("STORE_MISSING")

    assert "restore it" in finding["remedy"]
    patient.mended_by(finding)


# -- the fleet and the views -----------------------------------------------------------------------------------------


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A store with two sessions, and no worker."""
    world = World(make_store(server_url, partitions=2))
    for name in ("a", "b"):
        world.log.append(name, notes(3))
        world.log.append(name, notes(3))
    return world


def doctor(world: World, output: str = "table") -> Ran:
    where = ["--url", world.store.url, "--environment", ENVIRONMENT, "--namespace", world.store.namespace]
    return run("doctor", *where, "-o", output)


def finding(world: World, code: str) -> dict[str, Any] | None:
    told = json.loads(doctor(world, "json").out)
    return next((one for one in told["findings"] if one["code"] == code), None)


def mended_by_its_command(world: World, code: str) -> None:
    ran = doctor(world)
    assert ran.verdict.startswith(f"verdict: {code}: "), ran.out
    found = finding(world, code)
    assert found is not None
    run(*shlex.split(found["command"])[1:])
    assert finding(world, code) is None


def test_no_workers_and_a_parked_session_and_drift(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is named first when it is the worst that is left, and is gone after its command; then all is well."""
    for name, value in unhurried().items():
        monkeypatch.setenv(name, value)
    ran = doctor(world)
    assert ran.verdict.startswith("verdict: WORKERS_MISSING: "), ran.out
    found = finding(world, "WORKERS_MISSING")
    assert found is not None
    words = shlex.split(found["command"])
    assert words[:3] == ["muster", "worker", "run"]

    environ = world.environ(lease_ttl_ms=60_000, beat_ms=1000)
    with start_child([*MUSTER, *words[1:], "--processes", "1"], env=environ) as child:
        try:
            wait_until(lambda: sum(world.shares().values()) == 2, message="the workers hold all")
            world.wait_until_caught_up()
            well = doctor(world)
            assert (well.code, well.verdict.startswith("verdict: no trouble found")) == (0, True), well.out

            # an older worker could not read it, which was its own trouble
            reason = Parked("EVENT_UNREADABLE", "an older worker could not read it", 4)
            keys = world.keyspace.of("a")
            world.redis.hset(keys.parked("sessions"), "a", msgspec.json.encode(reason))
            mended_by_its_command(world, "SESSION_PARKED")

            # a view that is gone, and a session that is in no list any more
            world.redis.delete(world.keyspace.of("b").session_view("b"))
            mended_by_its_command(world, "DRIFT_FOUND")
            world.redis.zrem(world.keyspace.of("b").sessions, "b")
            mended_by_its_command(world, "DRIFT_FOUND")
            # a view that belongs to nobody, which only going through all keys can find
            world.redis.set(world.keyspace.of("ghost").session_view("ghost"), b"x")
            mended_by_its_command(world, "DRIFT_FOUND")
            assert doctor(world).code == 0

            # a hole in a log: the session is quarantined, and somebody has to decide
            key = world.keyspace.of("a").log("a")
            assert world.redis.xdel(key, world.redis.xrange(key)[0][0]) == 1
            ran = doctor(world)
            assert ran.verdict.startswith("verdict: DRIFT_FOUND: "), ran.out
            assert "of a" in ran.verdict
            assert "LOG_" in ran.verdict
            found = finding(world, "DRIFT_FOUND")
            assert found is not None
            assert run(*shlex.split(found["command"])[1:]).code == 7
            ran = doctor(world)
            assert ran.verdict.startswith("verdict: QUARANTINED: "), ran.out
            assert "of a" in ran.verdict
            assert finding(world, "DRIFT_FOUND") is None
        finally:
            child.terminate()
            assert child.wait(60) == 0
