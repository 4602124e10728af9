"""`muster diagnostics`: all that helps, no secret, nothing that sessions said; also when half of it is down."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from threading import Event as Flag
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from domain import Event, SessionLog
from domain.log import Connecting, create_store
from domain.log.keys import Keyspace
from projections.store import Parked
from tests.own_server import OwnServer
from tests.unhurried import unhurried
from workers.cli import main
from workers.diagnostics.bundle import collect
from workers.diagnostics.parts import PARTS, Part, Sources
from workers.diagnostics.redaction import Redaction
from workers.settings import Reading
from workers.tasks import Tasks

PASSWORD: Final = "planted-url-pa55word"
OTHERS: Final = "planted-acl-pa55word"
TOKEN: Final = "planted-token-0123456789"
SAID: Final = "planted-event-payload"
BEARER: Final = "planted-bearer-of-a-log"
KEYSPACE: Final = Keyspace("dev", "main", 2)


class Ran(NamedTuple):
    code: int
    document: dict[str, Any]
    err: str
    parts: dict[str, bytes]

    def manifest(self) -> dict[str, dict[str, Any]]:
        return {part["file"]: part for part in json.loads(self.parts["manifest.json"])["parts"]}


def run(*arguments: str) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["diagnostics", *arguments, "-o", "json"])
    document = json.loads(out.getvalue())
    with tarfile.open(document["file"]) as archive:
        files = {member.name.partition("/")[2]: archive.extractfile(member) for member in archive}
        parts = {name: file.read() for name, file in files.items() if file is not None}
    return Ran(code, document, err.getvalue(), parts)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnServer]:
    """A server with users from a file, a store, and secrets planted wherever they may be."""
    monkeypatch.chdir(tmp_path)
    users = tmp_path / "users.acl"
    users.write_text(f"user default on >{PASSWORD} ~* &* +@all\nuser other on >{OTHERS} ~* +@all\n")
    own = OwnServer(tmp_path / "server", "--aclfile", users, "--slowlog-log-slower-than", "0")
    own.start()
    url = f"redis://default:{PASSWORD}@127.0.0.1:{own.port}/0"
    for name, value in {
        "REDIS__URL": url,
        "SERVE__TOKEN": TOKEN,
        "ALERTS__WEBHOOK": f"https://alerts.example/{TOKEN}",
    }.items():
        monkeypatch.setenv(f"MUSTER_{name}", value)
    for name, value in unhurried().items():
        monkeypatch.setenv(name, value)
    try:
        with own.client(password=PASSWORD) as client:
            create_store(client, environment="dev", namespace="main", partitions=2)
            with SessionLog.open(Connecting(url), environment="dev", namespace="main") as log:
                log.append("s-1", Event.of("tool.called", actor="a", data={"secret": SAID}))
                log.append("s-1", Event.of("modified", actor="a", data={"metadata": {"note": SAID}}))
            parked = Parked("FIELD_INVALID", f"the field holds {SAID}", 2)
            client.hset(KEYSPACE.of("s-1").parked("sessions"), "s-1", msgspec.json.encode(parked))
            task = Tasks(client, KEYSPACE).create("verify", [0], {}, "me")
            client.hset(KEYSPACE.task(task.id), "error", f"cannot reach redis://u:{OTHERS}@h:1/0")
            client.xadd(KEYSPACE.audit, {"who": "me", "what": "told", "changes": json.dumps({"serve.token": TOKEN})})
        yield own
    finally:
        own.stop()


def test_all_parts_are_there_and_no_secret_is(server: OwnServer, tmp_path: Path) -> None:
    """A password in a URL, a token, users of the server, an event's data: in no part, in no form; the rest is."""
    log = tmp_path / "worker.log"
    log.write_text(
        f"GET / Authorization: Bearer {BEARER}\nredis://app:{OTHERS}@h:1/0 refused\nuser x on >{OTHERS} ~*\n"
        f"requirepass {OTHERS}\nAUTH app {OTHERS}\npassword={OTHERS}\nsaid {TOKEN} and {PASSWORD}\nworker 7: draining\n"
    )

    ran = run("--log", str(log))

    assert (ran.code, ran.document["missing"], ran.document["cut"]) == (0, [], [])
    assert ran.document["whole"] == [part.file for part in PARTS]
    content = b"\n".join(ran.parts.values()).decode()
    for secret in (PASSWORD, OTHERS, TOKEN, SAID, BEARER):
        assert secret not in content, content[max(0, content.index(secret) - 200) : content.index(secret) + 50]
    path = Path(ran.document["file"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (path.stat().st_size, path.parent) == (ran.document["bytes"], Path())
    told = {name: json.loads(text) for name, text in ran.parts.items() if name.endswith(".json")}
    assert told["versions.json"]["packages"]["muster"]
    assert told["settings.json"]["redis.url"]["value"] == f"redis://default:***@127.0.0.1:{server.port}/0"
    assert told["settings.json"]["serve.token"] == {"value": "***", "origin": "environment MUSTER_SERVE__TOKEN"}
    assert told["health.json"]["components"]["redis"] == "healthy"
    assert told["doctor.json"]["verdict"].startswith("WORKERS_MISSING")
    assert b"used_memory:" in ran.parts["server.txt"]
    assert told["server-configuration.json"]["maxmemory-policy"] == "noeviction"
    assert "FCALL muster_append_1" in {one["command"] for one in told["slow-commands.json"]}
    assert set(told["lag.json"]) == {"sessions@2"}
    assert told["findings.json"]["parked"]["s-1"] == {"code": "FIELD_INVALID", "first_bad_seq": 2, "attempts": 1}
    assert told["jobs.json"][0]["error"] == "cannot reach redis://u:***@h:1/0"
    assert told["audit.json"][0]["what"] == "told"
    assert "worker 7: draining" in ran.parts["logs.txt"].decode()


def test_when_the_server_is_down_the_other_half_is_there(server: OwnServer) -> None:
    """It says which half is missing, and why; exit 7."""
    server.kill()

    ran = run("--timeout", "60")

    assert ran.code == 7
    assert set(ran.document["whole"]) == {
        *("versions.json", "settings.json", "doctor.json", "health.json", "jobs-server.txt", "logs.txt")
    }
    manifest = ran.manifest()
    assert {manifest[name]["code"] for name in ran.document["missing"]} == {"UNREACHABLE"}
    assert "missing: server.txt: UNREACHABLE: " in ran.err
    assert json.loads(ran.parts["doctor.json"])["verdict"].startswith("UNREACHABLE")
    assert PASSWORD not in ran.err + b"".join(ran.parts.values()).decode()


def test_a_frozen_server_keeps_it_no_longer_than_its_time(server: OwnServer) -> None:
    """What is not there in time is left out, and said to be late or silent."""
    server.pause()
    try:
        ran = run("--timeout", "2")
    finally:
        server.resume()

    assert ran.code == 7
    assert {"server.txt", "fleet.json", "lag.json"} <= set(ran.document["missing"])
    assert {"versions.json", "settings.json", "logs.txt"} <= set(ran.document["whole"])
    assert ran.manifest()["server.txt"]["state"] == "late"


def test_with_settings_that_are_wrong_it_says_which(server: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs none is there; secrets that stand in the environment are masked all the same."""
    monkeypatch.setenv("MUSTER_WORKER__THREADS", "many")
    Path("own.log").write_text(f"said {TOKEN}")

    ran = run("--log", "own.log")

    assert ran.code == 7
    (problem,) = json.loads(ran.parts["settings.json"])["problems"]
    assert (problem["code"], problem["key"]) == ("SETTING_INVALID", "worker.threads")
    assert TOKEN not in b"".join(ran.parts.values()).decode()


def test_it_is_bounded_and_one_part_keeps_no_other_from_being_there() -> None:
    """What is too long is cut, what hangs is late, what has a bug failed; all in the order they are listed."""
    release = Flag()
    parts = (
        Part("long.txt", lambda _: "x" * 5000),
        Part("hangs.txt", lambda _: str(release.wait())),
        Part("fails.json", lambda _: 1 // 0),
        Part("fine.json", lambda _: {"n": 1}),
    )
    try:
        sources = Sources(Reading({}).loaded())
        found = collect(sources, Redaction([]), timeout_s=2, most=1000, parts=parts)
    finally:
        release.set()

    assert [(one.file, one.state) for one in found] == [
        *(("long.txt", "cut"), ("hangs.txt", "late"), ("fails.json", "failed"), ("fine.json", "whole"))
    ]
    assert found[0].content == b"x" * 1000
    assert "ZeroDivisionError" in str(found[2].why)


@pytest.mark.parametrize(
    "text",
    [
        "redis://app:p-secret@h:1/0",
        "rediss://:p-secret@h",
        "Authorization: Bearer p-secret",
        "user x on >p-secret ~*",
        "requirepass p-secret",
        "AUTH app p-secret",
        "password=p-secret",
        '"token": "p-secret"',
        "{'secret': 'p-secret'}",
        "-----BEGIN PRIVATE KEY-----\np-secret\n-----END PRIVATE KEY-----",
    ],
)
def test_what_others_wrote_is_masked_by_its_place(text: str) -> None:
    """As it stands in logs, in configuration, in commands; what stands around it is left."""
    assert "p-secret" not in Redaction([]).text(f"before {text} after", is_foreign=True)
    assert Redaction([]).text("no token in here: 1 > 0", is_foreign=True).startswith("no token ")


def test_a_known_secret_is_masked_whatever_it_is_made_of() -> None:
    """Also one that JSON would write otherwise than it is."""
    secret = 'quo"te\\n ü'
    cleaned = Redaction([secret]).value({"why": [f"it is {secret}!"], secret: 1}, is_foreign=False)

    assert cleaned == {"why": ["it is ***!"], "***": 1}


def test_no_archive_is_left_half_written(server: OwnServer, tmp_path: Path) -> None:
    """A place that cannot be written to is an error, and nothing lies about."""
    nowhere = tmp_path / "nowhere" / "x.tar.gz"
    err = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(err):
        assert main(["diagnostics", "--to", str(nowhere)]) == 4
    assert "FILE_UNREADABLE" in err.getvalue()
    assert not [name for name in os.listdir(tmp_path) if "diagnostics" in name]
