"""The safe end of a server: it writes all it holds to its disk, and only then ends. Never `SHUTDOWN NOSAVE`.

`SHUTDOWN SAVE` syncs the append-only file, where there is one, and writes a snapshot, also where none is configured; a
server that cannot do so answers with an error and goes on. That it has ended is seen by asking again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import redis

from domain.errors import DeadlineExceeded, MusterError, Unavailable
from domain.log import Connecting, connect
from domain.log.connection import raised, send
from domain.log.store import parse_info
from workers.readiness import quick
from workers.settings import Settings

#: How often it is looked whether the server has ended, in seconds.
LOOK_EVERY_S: Final = 0.1


def end_server(settings: Settings, *, timeout_s: float, say: Callable[[str], None]) -> str:
    """Ends the server of the store; returns the id of the run that ended.

    Raises Unavailable (SERVER_CANNOT_PERSIST) if it goes on because it cannot write, DeadlineExceeded
    (STOP_UNFINISHED) if it has not ended when the time is over.
    """
    deadline, connecting = time.monotonic() + timeout_s, quick(settings)
    client = connect(connecting)
    try:
        info = parse_info(_asked(client, connecting, "INFO"))
        _refuse_unless_it_can_write(info)
        run = info["run_id"]
        say(f"server: run {run[:8]} writes what it holds to its disk, then ends")
        _shut_down(client, connecting)
        while _still_runs(client, connecting, run):
            if time.monotonic() > deadline:
                raise DeadlineExceeded("STOP_UNFINISHED", f"the server has not ended within {timeout_s:g} s")
            time.sleep(LOOK_EVERY_S)
    finally:
        client.close()
    say("server: ended, with all it held on its disk")
    return run


def _refuse_unless_it_can_write(info: dict[str, str]) -> None:
    if info.get("role") == "slave":
        raise Unavailable("SERVER_READ_ONLY", "it is a replica: its primary would go on without it")
    if "err" in (info.get("aof_last_write_status"), info.get("rdb_last_bgsave_status")):
        raise Unavailable("SERVER_CANNOT_PERSIST", "its last write to the disk failed: ended now, it would forget")


def _shut_down(client: redis.Redis, connecting: Connecting) -> None:
    try:
        _asked(client, connecting, "SHUTDOWN", "SAVE")
    except MusterError as error:
        if error.code == "SERVER_ERROR":  # its answer, "Errors trying to SHUTDOWN"
            raise Unavailable("SERVER_CANNOT_PERSIST", f"it could not save, so it goes on: {error.cause}") from error
        if error.code != "UNREACHABLE":  # no answer is the good one: it has ended, or writes still
            raise


def _still_runs(client: redis.Redis, connecting: Connecting, run: str) -> bool:
    """Whether that run of the server is there. One that takes connections and says nothing writes still; another run is
    what its keeper started since.
    """
    try:
        return parse_info(_asked(client, connecting, "INFO", "server"))["run_id"] == run
    except MusterError as error:
        return isinstance(error.__cause__, redis.TimeoutError)


def _asked(client: redis.Redis, connecting: Connecting, *command: str) -> Any:
    return raised(send(client, [list(command)], connecting, wrote=False, once=True)[0])
