"""The wire as docs/wire.md says it: who has read that page alone, and nothing of ours, appends as our library does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from hashlib import sha1
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from domain import Event
from tests.conftest import ENVIRONMENT, Servers, Store, missing
from tests.projections.world import World

DOCS: Final = Path(__file__).parents[3] / "docs"
CONFORMANCE: Final = json.loads((DOCS / "conformance.json").read_text("utf-8"))
#: The ten arguments of a commit, in their order.
ARGUMENTS: Final = (
    *("session", "expected", "known", "not_after", "token", "heir", "ids", "kinds", "body", "traceparent"),
)


class Foreign:
    """A client made from the page: hashes, keys, one command."""

    def __init__(self, store: Store) -> None:
        self._client: Any = redis.Redis.from_url(store.url)
        self._tag = f"{{{ENVIRONMENT}:{store.namespace}:"
        fields: list[Any] = self._client.hmget(f"{self._tag}store}}:meta", "store", "epoch", "partitions")
        self.store, self.epoch, self.count = fields[0].decode(), int(fields[1]), int(fields[2])

    def append(self, commits: list[dict[str, str]], *, store: str, epoch: int, partition: int) -> list[list[str]]:
        """Sends one call; returns the rows of its reply."""
        tag = f"{self._tag}{partition}}}"
        keys = [f"{tag}:{name}" for name in ("meta", "sessions", "feed")]
        arguments: list[Any] = [store, epoch]
        for commit in commits:
            keys += [f"{tag}:{name}:{commit['session']}" for name in ("log", "head", "hold")]
            arguments += [commit.get(name, "any" if name == "expected" else "") for name in ARGUMENTS]
        rows = self._client.fcall("muster_append_1", len(keys), *keys, *arguments)
        return [[value.decode() for value in row] for row in rows]

    def close(self) -> None:
        self._client.close()


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


@pytest.mark.parametrize("server", ["valkey", "redis7"])
@pytest.mark.parametrize("case", CONFORMANCE["cases"], ids=lambda case: case["name"])
def test_a_client_that_read_the_page_gets_the_replies_that_stand_there(
    request: pytest.FixtureRequest,
    servers: Servers,
    make_store: Callable[..., Store],
    server: str,
    case: dict[str, Any],
) -> None:
    """Each case of the file, on a store of its own with four partitions; digests are computed and compared."""
    store = make_store(servers.url(server), partitions=4)
    client = Foreign(store)
    request.addfinalizer(client.close)
    names: dict[str, str] = {}
    stands: dict[str, str] = {}
    for call in case["calls"]:
        commits = call["append"]
        where = {
            "store": call.get("store", client.store),
            "epoch": call.get("epoch", client.epoch),
            "partition": call.get("partition", partition_of(commits[0]["session"], client.count)),
        }
        if "error" in call:
            with pytest.raises(redis.ResponseError, match=f"^{call['error']}"):
                client.append(commits, **where)
            continue
        rows = client.append(commits, **where)
        for commit, row, should in zip(commits, rows, call["reply"], strict=True):
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


@pytest.fixture
def by_cli(server_url: str, make_store: Callable[..., Store]) -> tuple[World, str]:
    """A store in which the example of the page was run with redis-cli; what it printed."""
    if shutil.which("redis-cli") is None:
        missing("there is no redis-cli on the PATH")
    world = World(make_store(server_url))
    (example,) = re.findall(r"```bash\n(.*?)```", (DOCS / "wire.md").read_text("utf-8"), re.DOTALL)
    environ = {
        **{"PATH": "/usr/local/bin:/usr/bin:/bin", "URL": world.store.url},
        **{"ENVIRONMENT": ENVIRONMENT, "NAMESPACE": world.store.namespace},
    }
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example], env=environ, capture_output=True, text=True, check=True
    )
    return world, ran.stdout


def test_what_redis_cli_appends_is_not_to_be_told_from_ours(by_cli: tuple[World, str]) -> None:
    """The example runs as it stands, a repeat is recognised, and the view is that of the same events by our library."""
    world, printed = by_cli
    rows = re.findall(r"^(APPENDED|DUPLICATE)\n(\d+)\n(\d+)$", printed, re.MULTILINE)
    assert rows == [("APPENDED", "1", "2"), ("APPENDED", "3", "3"), ("DUPLICATE", "3", "3")]

    world.log.append("ours", [Event.of("start", actor="shell", id="1"), Event.of("tool.called", actor="shell", id="2")])
    change = {"change": {"entity_ids": ["a.sh"]}}
    world.log.append("ours", Event.of("modified", actor="shell", id="3", data=change))
    world.project()

    theirs, ours = world.views.session("cli-1"), world.views.session("ours")
    for view in (theirs, ours):
        assert view.pop("digest")
        for name in ("session", "started_at", "last_at"):
            view.pop(name)
    assert theirs == ours
    assert world.verify() == []
    assert world.log.append("cli-1", Event.of("left", actor="shell"), expected=3).first_seq == 4
