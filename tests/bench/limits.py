"""What the machine gives at best: the same bytes into a plain stream, and out of it, with nothing promised."""

from __future__ import annotations

import csv
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import msgspec

from domain import SessionLog
from domain.codec import decode_body
from tests.bench.arena import Arena, Fsync
from tests.bench.events import body
from tests.bench.row import Contestant, Kind, Measure, Missing

#: Entries a page, when a plain reader reads.
PAGE = 1000


def redis_benchmark(*, pipeline: int, clients: int, count: int) -> Contestant:
    """XADD by the distribution's redis-benchmark: a client in C that reads no replies but counts them."""

    def prepare(arena: Arena) -> Measure:
        program = shutil.which("redis-benchmark")
        if program is None:
            raise Missing("there is no redis-benchmark (Debian: apt-get install redis-tools)")
        client, port, key = arena.client(), arena.server().port, f"limit:{pipeline}:{clients}"
        command = [program, "-h", "127.0.0.1", "-p", str(port), "-P", str(pipeline), "-c", str(clients), "--csv"]
        # The last argument comes from stdin: the bytes are those that Muster writes. The number is one of whole
        # pipelines: with another it sometimes ends before its last replies, "all clients disconnected".
        command += ["-n", str(arena.many(count, step=pipeline * clients)), "-x", "XADD", key, "*", "b"]

        def measure() -> float:
            client.delete(key)
            done = subprocess.run(command, input=body(), capture_output=True)
            if done.returncode:
                raise RuntimeError(f"redis-benchmark ended with {done.returncode}: {done.stderr!r}")
            *_, last = csv.reader(done.stdout.decode(errors="replace").splitlines())
            return float(last[1])

        return measure

    return Contestant(f"redis-benchmark XADD -P {pipeline} -c {clients}", prepare, Kind.LIMIT)


def redis_py_xadd(count: int, *, appendfsync: Fsync = "everysec", name: str = "redis-py XADD") -> Contestant:
    """redis-py's own `xadd`, one a call, on one connection."""

    def prepare(arena: Arena) -> Measure:
        client, bodies = arena.client(appendfsync=appendfsync), [body(number) for number in range(64)]
        calls = arena.many(count, least=64)

        def measure() -> float:
            client.delete("limit:xadd")
            began = time.perf_counter()
            for number in range(calls):
                client.xadd("limit:xadd", {"b": bodies[number % 64]})
            return calls / (time.perf_counter() - began)

        return measure

    return Contestant(name, prepare, Kind.LIMIT)


def decoded_whole(body: bytes) -> int:
    """Decodes a commit as a user of redis-py would to do something with it: into Python's own values, data included."""
    return len(msgspec.msgpack.decode(body))


def decoded_packed(body: bytes) -> int:
    """Decodes a commit's events and leaves their data packed: the least that can be called decoding."""
    return len(decode_body(body))


def read_without_fold(log: SessionLog, sessions: list[str], decoded: Callable[[bytes], int]) -> int:
    """Reads logs with redis-py's `xrange` and decodes what is in them, and nothing else; how many events that was."""
    count = 0
    for session in sessions:
        key, low = log.keyspace.of(session).log(session), "-"
        client: Any = log.client
        while page := client.xrange(key, low, "+", count=PAGE):
            for _, fields in page:
                count += decoded(fields[b"b"])
            if len(page) < PAGE:
                break
            low = "(" + page[-1][0].decode()
    return count
