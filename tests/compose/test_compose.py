"""The stack for real hosts, held against a schema of what it may say and against the laws it must keep."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Final, Literal

import msgspec
import pytest
import yaml
from msgspec import Struct, structs

from workers.serving import HealthServer, is_loopback
from workers.settings import ServeSettings, Settings, WorkerSettings, load

ROOT: Final = Path(__file__).parents[2]
SECONDS: Final = re.compile(r"(\d+)s\Z")
TOKEN: Final = "a-token-of-the-test"


class Build(Struct, forbid_unknown_fields=True):
    """Where an image is built."""

    context: str
    dockerfile: str


class Healthcheck(Struct, forbid_unknown_fields=True):
    """How it is known that a service works."""

    test: list[str]
    interval: str
    timeout: str
    retries: int


class Condition(Struct, forbid_unknown_fields=True):
    """What another service waits for."""

    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Deploy(Struct, frozen=True, forbid_unknown_fields=True):
    """How many of it run."""

    replicas: int


class Service(Struct, forbid_unknown_fields=True):
    """A service. What the Compose specification knows and this stack does not need is not in it."""

    image: str
    command: list[str]
    restart: Literal["no", "always", "on-failure", "unless-stopped"]
    build: Build | None = None
    environment: dict[str, str] = {}
    volumes: list[str] = []
    healthcheck: Healthcheck | None = None
    depends_on: dict[str, Condition] = {}
    deploy: Deploy = Deploy(1)
    init: bool = False
    read_only: bool = False
    tmpfs: list[str] = []
    cap_drop: list[str] = []
    security_opt: list[str] = []
    secrets: list[str] = []
    ports: list[str] = []
    stop_grace_period: str = "10s"


class Secret(Struct, forbid_unknown_fields=True):
    """Where on the host a secret lies."""

    file: str


class Compose(Struct, forbid_unknown_fields=True, rename={"muster": "x-muster"}):
    """The file."""

    name: str
    services: dict[str, Service]
    secrets: dict[str, Secret]
    volumes: dict[str, dict[str, str]]
    muster: dict[str, object]


def read(text: str) -> Compose:
    """The file by its schema; a key that is misspelt is an error."""
    return msgspec.convert(yaml.safe_load(text), Compose)


def settings_of(service: Service, compose: Compose) -> Settings:
    """What a container is told, with secrets in the place of those that it is given."""
    given = dict(service.environment)
    for name, path in given.items():
        if name.endswith("_FILE"):
            mounted = Path(path)
            assert mounted.parent == Path("/run/secrets")
            assert mounted.name in service.secrets
            assert mounted.name in compose.secrets
            here = Path(mounted.name)
            here.write_text(TOKEN + "\n")
            given[name] = str(here)
    return load(given)


@pytest.fixture
def compose() -> Compose:
    return read((ROOT / "compose/compose.yaml").read_text())


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("healthcheck:", "health_check:"),
        ("replicas: 2", "replicas: two"),
        ("service_healthy", "healthy"),
        ("restart: unless-stopped", "restart: sometimes"),
    ],
)
def test_the_schema_refuses_what_compose_would(right: str, wrong: str) -> None:
    """A misspelt key, a value of another type, a word that is none of those known."""
    text = (ROOT / "compose/compose.yaml").read_text()
    assert right in text
    with pytest.raises(msgspec.ValidationError):
        read(text.replace(right, wrong))


def test_the_store_keeps_the_truth(compose: Compose) -> None:
    """It writes an append-only file to a volume, evicts nothing, is asked whether it works, and is not published."""
    store = compose.services["store"]

    assert {"--appendonly yes", "--maxmemory-policy noeviction"} <= set(store.command)
    (volume,) = store.volumes
    assert volume.split(":") == ["store", "/data"]
    assert "store" in compose.volumes
    assert store.healthcheck is not None
    assert store.ports == []


def test_workers_are_several_and_have_the_time_to_drain(compose: Compose) -> None:
    """Two at least, begun when there is a store; their grace is longer than the drain and what `worker run` adds."""
    workers = compose.services["workers"]

    assert workers.command == ["worker", "run"]
    assert workers.deploy.replicas >= 2
    assert workers.init
    assert workers.depends_on["init"].condition == "service_completed_successfully"
    assert compose.services["init"].depends_on["store"].condition == "service_healthy"
    grace = SECONDS.match(workers.stop_grace_period)
    assert grace is not None
    drain_s = load(workers.environment).worker.drain_s
    assert drain_s == WorkerSettings().drain_s
    assert int(grace[1]) > drain_s + 5


def test_health_and_metrics_are_there_from_the_start(compose: Compose) -> None:
    """For who has the token, from this host and from the stack, of the same store, whatever is with that."""
    serve = compose.services["serve"]

    settings = settings_of(serve, compose)
    assert serve.command == ["serve"]
    assert settings.serve.token == TOKEN
    assert not is_loopback(settings.serve.host)
    assert serve.ports == [f"127.0.0.1:{settings.serve.port}:{settings.serve.port}"]
    assert serve.depends_on == {}
    assert structs.replace(settings, serve=ServeSettings()) == load(compose.services["workers"].environment)


def test_serve_is_healthy_for_as_long_as_it_serves(compose: Compose) -> None:
    """Without a token, though there is no store."""
    serve = compose.services["serve"]
    settings = settings_of(serve, compose)
    assert serve.healthcheck is not None
    how, program, *arguments = serve.healthcheck.test
    assert (how, program) == ("CMD", "python")
    free = structs.replace(settings, serve=structs.replace(settings.serve, port=0))

    with HealthServer(free) as server:
        there = [one.replace(str(settings.serve.port), str(server.server_port)) for one in arguments]
        assert there != arguments
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        assert subprocess.run([sys.executable, *there], check=False).returncode == 0
        server.shutdown()
        thread.join()
    ended = subprocess.run([sys.executable, *there], check=False, capture_output=True)
    assert ended.returncode != 0


def test_every_variable_is_a_setting(compose: Compose) -> None:
    """What the containers are told is what Muster reads; anything else would be an error at their start."""
    for service in compose.services.values():
        settings_of(service, compose)
        assert all(name.startswith("MUSTER_") for name in service.environment)
        assert not any(name.endswith(("PASSWORD", "TOKEN", "SECRET")) for name in service.environment)


def test_a_secret_is_neither_kept_with_the_source_nor_in_the_image(compose: Compose) -> None:
    """It lies beside the stack's file; every one is used."""
    used = {name for service in compose.services.values() for name in service.secrets}
    assert used == {*compose.secrets}
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert all(f"/compose/{secret.file}" in ignored for secret in compose.secrets.values())
    assert "!compose" not in (ROOT / ".dockerignore").read_text().splitlines()


def test_containers_may_do_no_more_than_they_need(compose: Compose) -> None:
    """Muster's own run read-only, without capabilities, and not as root."""
    for name in ("init", "workers", "serve"):
        service = compose.services[name]
        assert (service.read_only, service.cap_drop) == (True, ["ALL"])
        assert service.security_opt == ["no-new-privileges:true"]
        assert service.build == Build("..", "compose/Dockerfile")


def test_the_image_is_built_from_the_lock_and_does_not_run_as_root() -> None:
    """Several stages; hashes are required; the last user is a number that is not root's; all it copies is there."""
    lines = (ROOT / "compose/Dockerfile").read_text().splitlines()

    def words(instruction: str) -> list[list[str]]:
        return [line.split()[1:] for line in lines if line.startswith(f"{instruction} ")]

    assert len(words("FROM")) >= 2
    assert any("--require-hashes" in run and "/src/scripts/requirements.lock" in run for run in words("RUN"))
    assert int(words("USER")[-1][0].split(":")[0]) > 0
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for *sources, _ in words("COPY"):
        for source in sources:
            if not source.startswith(("--from", "/opt")):
                assert (ROOT / source).exists(), source
                assert source in sent, f"{source} is copied and not sent to the builder"


@pytest.fixture(autouse=True)
def _no_file_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
