"""What the machine gives at best: the same bytes into a plain stream, and out of it, with nothing promised."""

from __future__ import annotations

import asyncio
import csv
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import Any

import hiredis
import msgspec

from domain import SessionLog
from domain.codec import decode_body, encode_body
from domain.log.protocol import APPEND_FUNCTION
from domain.session import kinds_of
from tests.bench.arena import Arena, Fsync
from tests.bench.events import body, event, in_partition
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


class BareCalls:
    """The very calls that appends are, packed and read by hiredis over a plain socket, to sessions of one partition:
    what is left of an append when its client does nothing but send and receive.
    """

    def __init__(self, arena: Arena, commits: int, events: int) -> None:
        log, server = arena.log(), arena.server()
        self._line = arena.keep(socket.create_connection(("127.0.0.1", server.port)))
        self._line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()
        self._sessions = in_partition(log.keyspace, 3, commits, prefix=f"bare{commits}-{events}")
        self._commit = (kinds_of([event()] * events), encode_body([event(number) for number in range(events)]))
        keys = log.keyspace.partitions[3]
        self._names: list[Any] = [keys.meta, keys.sessions, keys.feed]
        for session in self._sessions:
            self._names += (keys.log(session), keys.head(session), keys.hold(session))
        self._identity = (log.identity.store, str(log.identity.epoch))
        self._known: list[Any] = [b"0"] * commits

    def send(self) -> None:
        """Sends one call."""
        arguments: list[Any] = [*self._identity]
        for session, known in zip(self._sessions, self._known, strict=True):
            arguments += (session, "any", known, "", "", "", "", *self._commit, "")
        command: Any = ("FCALL", APPEND_FUNCTION, len(self._names), *self._names, *arguments)
        self._line.sendall(hiredis.pack_command(command))

    def receive(self) -> None:
        """Waits for its reply."""
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._line.recv(1 << 18))
        assert all(row[0] == b"APPENDED" for row in reply)
        self._known = [row[2] + b" " + row[3] for row in reply]


def bare_call(count: int) -> Contestant:
    """One append a call, one call at a time."""
    return _bare("the same call, sent bare", count)


def bare_groups(count: int) -> Contestant:
    """64 appends a call, as group commit sends them."""
    return _bare("the same calls of 64, sent bare", count, commits=64)


def bare_commits(count: int) -> Contestant:
    """Four commits of 100 events a call."""
    return _bare("the same calls, sent bare", count, commits=4, events=100)


def _bare(name: str, count: int, *, commits: int = 1, events: int = 1) -> Contestant:
    def prepare(arena: Arena) -> Measure:
        bare, calls = BareCalls(arena, commits, events), max(1, arena.many(count, least=64) // (commits * events))

        def measure() -> float:
            began = time.perf_counter()
            for _ in range(calls):
                bare.send()
                bare.receive()
            return calls * commits * events / (time.perf_counter() - began)

        return measure

    return Contestant(name, prepare, Kind.LIMIT)


def tasks_that_wait(producers: int, count: int) -> Contestant:
    """So many asyncio tasks that wait for an answer each, over and over, all answered at once: what asyncio takes for
    itself, with nothing encoded, sent or read.
    """

    def prepare(arena: Arena) -> Measure:
        runner, each = arena.runner(), arena.many(count, least=producers) // producers

        async def all_of(times: int) -> None:
            loop, waiting = asyncio.get_running_loop(), list[asyncio.Future[None]]()

            async def wait() -> None:
                for _ in range(times):
                    waiting.append(loop.create_future())
                    await waiting[-1]

            tasks = [loop.create_task(wait()) for _ in range(producers)]
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0)
                answered, waiting[:] = list(waiting), []
                for future in answered:
                    future.set_result(None)

        def measure() -> float:
            began = time.perf_counter()
            runner.run(all_of(each))
            return each * producers / (time.perf_counter() - began)

        return measure

    return Contestant(f"{producers} tasks that only wait", prepare, Kind.LIMIT)


def threads_that_wait(producers: int, count: int) -> Contestant:
    """So many threads that wait for an answer each, over and over, all answered at once by another one."""

    def prepare(arena: Arena) -> Measure:
        pool, each = arena.keep(ThreadPoolExecutor(producers + 1)), arena.many(count, least=producers) // producers

        def all_of(times: int) -> None:
            asked: SimpleQueue[Event] = SimpleQueue()

            def wait() -> None:
                for _ in range(times):
                    answered = Event()
                    asked.put(answered)
                    answered.wait()

            def answer() -> None:
                for _ in range(times * producers):
                    asked.get().set()

            for done in [pool.submit(answer), *[pool.submit(wait) for _ in range(producers)]]:
                done.result()

        def measure() -> float:
            began = time.perf_counter()
            all_of(each)
            return each * producers / (time.perf_counter() - began)

        return measure

    return Contestant(f"{producers} threads that only wait", prepare, Kind.LIMIT)
