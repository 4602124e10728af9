"""A store: the identity that every partition carries, made once by `muster init` and checked by every append.

Only `create_store` makes one. A server that lost its data answers STORE_MISSING; it is never taken for a new store.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Any, Final

from msgspec import Struct

from domain.codec import DEFAULT_LIMITS, WIRE_VERSION, Limits
from domain.errors import Misconfigured
from domain.log.keys import Keyspace, check_keyspace, store_tag
from domain.log.protocol import Command, parse_time, taken

#: The oldest servers with everything Muster uses.
MIN_REDIS: Final = (7, 0)
MIN_VALKEY: Final = (7, 2)


class Identity(Struct, frozen=True):
    """Which store this is, and how it is laid out."""

    store: str
    epoch: int
    partitions: int


def open_commands(environment: str, namespace: str) -> list[Command]:
    """What to ask a server before anything else; `parse_open` reads the replies."""
    check_keyspace(environment, namespace)
    return [["HGETALL", f"{store_tag(environment, namespace)}:meta"], ["INFO", "server"], ["TIME"]]


def parse_open(replies: list[Any], environment: str, namespace: str, partitions: int | None) -> tuple[Identity, int]:
    """The store on a server, and the server's time in ms. Raises Misconfigured (SERVER_TOO_OLD, STORE_MISSING,
    PARTITIONS_DIFFER).
    """
    meta, info, clock = (taken(reply) for reply in replies)
    check_version(info)
    fields = {name.decode(): value.decode() for name, value in zip(meta[::2], meta[1::2], strict=True)}
    if fields.get("restoring"):
        raise Misconfigured("STORE_RESTORING", f"backup {fields['restoring']} is being restored here")
    if "ready" not in fields:
        raise Misconfigured(
            "STORE_MISSING",
            f"the server holds no store for environment {environment!r}, namespace {namespace!r}",
        )
    found = int(fields["partitions"])
    if partitions is not None and partitions != found:
        raise Misconfigured("PARTITIONS_DIFFER", f"the store has {found} partitions, the settings say {partitions}")
    return Identity(fields["store"], int(fields["epoch"]), found), parse_time(clock)


def parse_info(text: bytes) -> dict[str, str]:
    """The lines `name:value` of an INFO reply."""
    return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)


def check_version(info: dict[str, Any] | bytes) -> None:
    """Refuses servers that lack what Muster uses (SERVER_TOO_OLD). `info` is the section `server` of INFO."""
    info = info if isinstance(info, dict) else parse_info(info)
    name, version, least = "Redis", str(info.get("redis_version", "0")), MIN_REDIS
    if "valkey_version" in info:
        name, version, least = "Valkey", str(info["valkey_version"]), MIN_VALKEY
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < least:
        raise Misconfigured(
            "SERVER_TOO_OLD", f"the server is {name} {version}; {least[0]}.{least[1]} is the oldest that works"
        )


def library_source() -> str:
    """The Redis Functions library, as text."""
    return resources.files("domain.log").joinpath("functions.lua").read_text("utf-8")


def load_library_command() -> Command:
    """Loads the functions into a server, in place of an older copy of the same wire version."""
    return ["FUNCTION", "LOAD", "REPLACE", library_source()]


def create_commands(
    keyspace: Keyspace, store: str, limits: Limits = DEFAULT_LIMITS, *, epoch: int = 1
) -> list[list[Command]]:
    """The steps that make a store, in order. Every step may be repeated, so an interrupted `init` is finished by
    the next.

    `store` is the new id; it counts only if the server has none yet, and so does the partition count: so read both back
    between the first two steps.
    """
    claim: list[Command] = [
        load_library_command(),
        ["HSETNX", keyspace.store_meta, "store", store],
        ["HSETNX", keyspace.store_meta, "partitions", keyspace.count],
    ]
    partitions: list[Command] = [
        [
            "FCALL", "muster_init_1", 1, keys.meta,
            store, epoch, index, keyspace.count, WIRE_VERSION, limits.commit_events, limits.commit_bytes,
        ]
        for index, keys in enumerate(keyspace.partitions)
    ]  # fmt: skip
    ready: list[Command] = [["HSET", keyspace.store_meta, "epoch", epoch, "wire", WIRE_VERSION, "ready", 1]]
    return [claim, partitions, ready]
