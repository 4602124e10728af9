"""The wire as docs/wire.md says it: who has read that page alone, and nothing of ours, appends as our library does."""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from domain import Event
from tests.conftest import ENVIRONMENT, Servers, Store, missing
from tests.projections.world import World

DOCS: Final = Path(__file__).parents[3] / "docs"
JAVASCRIPT: Final = Path(__file__).parent / "javascript"
CONFORMANCE: Final = json.loads((DOCS / "conformance.json").read_text("utf-8"))
#: The ten arguments of a commit, in their order.
ARGUMENTS: Final = (
    *("session", "expected", "known", "not_after", "token", "heir", "ids", "kinds", "body", "traceparent"),
)


Reply = str | list[list[str]]
"""The rows of a reply, or the text of an error."""


def by_python(store: Store, calls: list[dict[str, Any]]) -> list[Reply]:
    """Sends calls with redis-py, and with nothing of ours."""
    client: Any = redis.Redis.from_url(store.url)
    try:
        return [_sent(call, lambda command: client.execute_command(*command), client, store) for call in calls]
    finally:
        client.close()


def _sent(call: dict[str, Any], send: Callable[[list[Any]], Any], client: Any, store: Store) -> Reply:
    tag = f"{{{ENVIRONMENT}:{store.namespace}:"
    identity, epoch, count = client.hmget(f"{tag}store}}:meta", "store", "epoch", "partitions")
    partition = call.get("partition", partition_of(call["append"][0]["session"], int(count)))
    keys = [f"{tag}{partition}}}:{name}" for name in ("meta", "sessions", "feed")]
    arguments: list[Any] = [call.get("store", identity.decode()), call.get("epoch", int(epoch))]
    for commit in call["append"]:
        keys += [f"{tag}{partition}}}:{name}:{commit['session']}" for name in ("log", "head", "hold")]
        arguments += [commit.get(name, "any" if name == "expected" else "") for name in ARGUMENTS]
    try:
        rows = send(["FCALL", "muster_append_1", len(keys), *keys, *arguments])
    except redis.ResponseError as error:
        return str(error)
    return [[value.decode() for value in row] for row in rows]


def by_redis_cli(store: Store, calls: list[dict[str, Any]]) -> list[Reply]:
    """Sends calls with redis-cli, one process each."""
    needed("redis-cli")
    client: Any = redis.Redis.from_url(store.url)

    def send(command: list[Any]) -> list[list[bytes]]:
        words = ["redis-cli", "-u", store.url, "--json", *map(str, command)]
        ran = subprocess.run(words, capture_output=True, text=True, check=False)
        if ran.stdout[:1] != "[":  # how an error is printed differs from one release to the next
            (told,) = re.findall(r"[A-Z]+_[A-Z]+ .*", ran.stdout + ran.stderr)
            raise redis.ResponseError(told)
        return [[value.encode() for value in row] for row in json.loads(ran.stdout)]

    try:
        return [_sent(call, send, client, store) for call in calls]
    finally:
        client.close()


def by_javascript(store: Store, calls: list[dict[str, Any]]) -> list[Reply]:
    """Sends calls with npm's redis, one process for all."""
    tag = f"{{{ENVIRONMENT}:{store.namespace}:"
    script = (JAVASCRIPT / "conformance.js").read_text("utf-8")
    replies: list[Reply] = json.loads(javascript(script, store.url, tag, json.dumps(calls)))
    return replies


@cache
def node_modules() -> Path:
    """Where npm's redis is, by the lock beside the script: installed once a run."""
    needed("node")
    needed("npm")
    directory = Path(tempfile.mkdtemp(prefix="muster-node-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(JAVASCRIPT / name, directory)
    words = ["npm", "ci", "--no-audit", "--no-fund", "--silent", "--cache", str(directory / "cache")]
    ran = subprocess.run(words, cwd=directory, capture_output=True, text=True, check=False)
    if ran.returncode:
        missing(f"npm could not install redis: {(ran.stderr or ran.stdout).strip()[-300:]}")
    return directory / "node_modules"


def javascript(script: str, *arguments: str, **environ: str) -> str:
    """What a script prints."""
    ran = subprocess.run(
        ["node", "-", *arguments],
        input=script,
        env={**os.environ, **environ, "NODE_PATH": str(node_modules())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def needed(program: str) -> None:
    if shutil.which(program) is None:
        missing(f"there is no {program} on the PATH")


def hashed(text: str) -> str:
    return sha1(text.encode()).hexdigest()


def partition_of(session: str, count: int) -> int:
    return int(hashed(session)[:8], 16) % count


def digest_of(previous: str, session: str, first_seq: int, count: int, at_ms: int, body: str) -> str:
    return hashed(f"{previous}|1|{session}|{first_seq}|{count}|{at_ms}|{body}")[:20]


def test_hashes_are_those_of_the_conformance_file() -> None:
    """Partitions, and digests with their beginnings, computed with nothing but SHA-1."""
    for one in CONFORMANCE["partitions"]:
        assert partition_of(one["session"], one["count"]) == one["partition"]
    for one in CONFORMANCE["genesis"]:
        assert hashed(one["session"])[:20] == one["digest"]
    for one in CONFORMANCE["digests"]:
        digest = one.pop("digest")
        assert digest_of(**one) == digest
        one["digest"] = digest


@pytest.mark.parametrize(
    ("client", "server"),
    [(by_python, "valkey"), (by_python, "redis7"), (by_redis_cli, "redis7"), (by_javascript, "valkey")],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize("case", CONFORMANCE["cases"], ids=lambda case: case["name"])
def test_a_client_that_read_the_page_gets_the_replies_that_stand_there(
    servers: Servers,
    make_store: Callable[..., Store],
    client: Callable[[Store, list[dict[str, Any]]], list[Reply]],
    server: str,
    case: dict[str, Any],
) -> None:
    """Each case of the file, on a store of its own with four partitions; digests are computed and compared."""
    replies = client(make_store(servers.url(server), partitions=4), case["calls"])

    names: dict[str, str] = {}
    stands: dict[str, str] = {}
    for call, rows in zip(case["calls"], replies, strict=True):
        if "error" in call:
            assert isinstance(rows, str)
            assert rows.startswith(call["error"])
            continue
        assert not isinstance(rows, str), rows
        for commit, row, should in zip(call["append"], rows, call["reply"], strict=True):
            if row[0] == "APPENDED":
                first, last, digest, at_ms = int(row[1]), int(row[2]), row[3], int(row[4])
                previous = stands.get(commit["session"], hashed(commit["session"])[:20])
                count = last - first + 1
                assert digest == digest_of(previous, commit["session"], first, count, at_ms, commit["body"])
                stands[commit["session"]] = digest
                number = sum(name.startswith("$digest") for name in names) + 1
                names |= {f"$digest{number}": digest, f"$ms{number}": row[4]}
            assert len(row) == len(should)
            assert [have for have, wish in zip(row, should, strict=True) if wish != "*"] == [
                names.get(wish, wish) for wish in should if wish != "*"
            ]


def example(world: World, language: str) -> tuple[str, dict[str, str]]:
    """The example of the page in a language, and the environment it asks for."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", (DOCS / "wire.md").read_text("utf-8"), re.DOTALL)
    return found, {"URL": world.store.url, "ENVIRONMENT": ENVIRONMENT, "NAMESPACE": world.store.namespace}


def append_the_same(world: World) -> None:
    """The events of the examples, by our library."""
    world.log.append(
        "ours",
        [
            Event.of("start", actor="shell", id="1"),
            Event.of("tool.called", actor="shell", id="2", data={"tool": "ls"}),
        ],
    )
    change = {"change": {"entity_ids": ["a.sh"]}}
    world.log.append("ours", Event.of("modified", actor="shell", id="3", data=change))
    world.project()


def assert_not_to_be_told(world: World, session: str) -> None:
    """The session's view is that of the same events by our library, and our library goes on with it."""
    append_the_same(world)
    theirs, ours = world.views.session(session), world.views.session("ours")
    for view in (theirs, ours):
        assert view.pop("digest")
        for name in ("session", "started_at", "last_at"):
            view.pop(name)
    assert theirs == ours
    assert world.verify() == []
    events = [[event for commit in world.log.read(name) for event in commit.events] for name in (session, "ours")]
    assert events[0] == events[1]
    assert world.log.append(session, Event.of("left", actor="shell"), expected=3).first_seq == 4


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url))


def test_what_redis_cli_appends_is_not_to_be_told_from_ours(world: World) -> None:
    """The example runs as it stands, and a repeat is recognised."""
    needed("redis-cli")
    script, environ = example(world, "bash")
    words = ["bash", "-euo", "pipefail", "-c", script]
    ran = subprocess.run(words, env={**os.environ, **environ}, capture_output=True, text=True, check=True)

    rows = re.findall(r"^(APPENDED|DUPLICATE)\n(\d+)\n(\d+)$", ran.stdout, re.MULTILINE)
    assert rows == [("APPENDED", "1", "2"), ("APPENDED", "3", "3"), ("DUPLICATE", "3", "3")]
    assert_not_to_be_told(world, "cli-1")


def test_what_javascript_appends_is_not_to_be_told_from_ours(world: World) -> None:
    """The example runs as it stands, and a repeat is recognised."""
    script, environ = example(world, "js")

    printed = javascript(script, **environ)

    assert re.findall(r"duplicate: (\w+)", printed) == ["false", "true"]
    assert_not_to_be_told(world, "js-1")
