"""Tasks: what jobs were asked for, how far each is, and what came of it; kept in the store, for anyone to read.

A task goes through partitions, one after another. What it found in one is written in the same atomic step that moves
its cursor on, and only by the holder of the task's lease: so a task that is delivered again, or twice, is gone on with
where it stands, by one process, and no partition is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final
from uuid import uuid4

import msgspec
from msgspec import Struct

from domain.errors import Conflict, NotFound
from domain.log.keys import Keyspace

QUEUED: Final = "queued"
RUNNING: Final = "running"
DONE: Final = "done"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
#: From these nothing leads on.
ENDED: Final = frozenset({DONE, FAILED, CANCELLED})
#: How many tasks that ended are kept, the newest ones.
ENDED_KEPT: Final = 1000
#: How long a task stays with a process that gives no sign of life, in ms.
LEASE_TTL_MS: Final = 3_000


class Task(Struct, frozen=True):
    """One task. Times are server ms, 0 for not yet; `position` of `partitions` are done; `deaths` counts the processes
    that died over it in a row.
    """

    id: str
    kind: str
    state: str
    partitions: list[int]
    options: dict[str, Any]
    position: int
    result: dict[str, Any]
    who: str
    created: int
    started: int = 0
    ended: int = 0
    sent: int = 0
    deaths: int = 0
    error: str | None = None
    holder: str | None = None

    @property
    def left(self) -> list[int]:
        """The partitions that are not done."""
        return self.partitions[self.position :]


class Tasks:
    """All tasks of a store."""

    def __init__(self, client: Any, keyspace: Keyspace) -> None:
        self._client = client
        self._keyspace = keyspace

    def create(self, kind: str, partitions: Sequence[int], options: dict[str, Any], who: str) -> Task:
        """Writes a new task down. It is not sent to anybody yet."""
        task = Task(uuid4().hex[:12], kind, QUEUED, list(partitions), options, 0, {}, who, self._now())
        pipe = self._client.pipeline(transaction=True)
        fields = {"kind": kind, "state": QUEUED, "who": who, "created": task.created}
        lists = {"partitions": _packed(task.partitions), "options": _packed(options)}
        pipe.hset(self._keyspace.task(task.id), mapping=fields | lists)
        pipe.zadd(self._keyspace.tasks, {task.id: task.created})
        pipe.zadd(self._keyspace.open_tasks, {task.id: task.created})
        pipe.execute()
        return task

    def get(self, id: str) -> Task:
        """One task. Raises NotFound (TASK_UNKNOWN)."""
        found = self._read([id])
        if not found:
            raise NotFound("TASK_UNKNOWN", f"there is no task {id}", task=id)
        return found[0]

    def newest(self, limit: int) -> list[Task]:
        """The newest tasks, the newest first."""
        return self._read([id.decode() for id in self._client.zrange(self._keyspace.tasks, 0, limit - 1, desc=True)])

    def open(self) -> list[Task]:
        """The tasks that have not ended, the oldest first."""
        return self._read([id.decode() for id in self._client.zrange(self._keyspace.open_tasks, 0, -1)])

    def claim(self, id: str, worker: str) -> str | None:
        """Takes a task's lease, if no process that lives holds it; returns the token."""
        nonce = uuid4().hex[:16]
        owner = self._keyspace.task_owner(id)
        reply = self._client.fcall("muster_claim_1", 1, owner, worker, nonce, LEASE_TTL_MS, "0")
        if not isinstance(reply, bytes):
            return None
        self._client.hset(self._keyspace.task(id), mapping={"state": RUNNING, "started": self._now()})
        return reply.decode()

    def renew(self, id: str, token: str) -> bool:
        """Keeps a task's lease; False if it was lost."""
        return bool(self._client.fcall("muster_renew_1", 1, self._keyspace.task_owner(id), token, LEASE_TTL_MS))

    def release(self, id: str, token: str) -> None:
        """Gives a task's lease back, so that whoever is sent the task next goes on at once."""
        self._client.fcall("muster_release_1", 1, self._keyspace.task_owner(id), token)

    def progress(self, task: Task, token: str, result: dict[str, Any]) -> None:
        """One more partition is done, with this result of all so far.

        Raises Conflict (LEASE_TAKEN, CURSOR_MOVED) if somebody else goes on with the task.
        """
        self._step(task.id, token, task.position, task.position + 1, ["result", _packed(result)])

    def end(self, task: Task, token: str, state: str, error: str | None = None) -> None:
        """The task has ended. Raises Conflict as `progress`."""
        fields = ["state", state, "ended", self._now(), *(["error", error] if error else [])]
        self._step(task.id, token, task.position, None, fields, closing=True)

    def cancel(self, id: str) -> Task:
        """Has nobody go on with a task; who works on it stops after the partition he is in. Ended ones stay as they
        are.
        """
        task = self.get(id)
        if task.state not in ENDED:
            pipe = self._client.pipeline(transaction=True)
            # A field of its own: nobody who begins at the same moment writes over it.
            pipe.hset(self._keyspace.task(id), mapping={"cancelled": 1, "ended": self._now()})
            pipe.zrem(self._keyspace.open_tasks, id)
            pipe.execute()
        return self.get(id)

    def sent(self, id: str) -> None:
        """Notes that a message for the task was just sent."""
        self._client.hset(self._keyspace.task(id), "sent", self._now())

    def forsaken(self, after_ms: int) -> Iterator[Task]:
        """Open tasks that no process that lives works on, and that were sent longer ago than that: their message is
        lost, or whoever had it.
        """
        now = self._now()
        yield from (task for task in self.open() if task.holder is None and task.sent + after_ms < now)

    def prune(self) -> int:
        """Forgets the oldest ended tasks beyond those that are kept; returns how many."""
        ids = [id.decode() for id in self._client.zrange(self._keyspace.tasks, 0, -ENDED_KEPT - 1)]
        doomed = [task.id for task in self._read(ids) if task.state in ENDED]
        for id in doomed:
            pipe = self._client.pipeline(transaction=True)
            pipe.delete(self._keyspace.task(id), self._keyspace.task_owner(id), self._keyspace.task_cursor(id))
            pipe.zrem(self._keyspace.tasks, id)
            pipe.execute()
        return len(doomed)

    def _read(self, ids: Sequence[str]) -> list[Task]:
        pipe = self._client.pipeline(transaction=False)
        for id in ids:
            pipe.hgetall(self._keyspace.task(id))
            pipe.hget(self._keyspace.task_cursor(id), "position")
            pipe.hmget(self._keyspace.task_owner(id), "worker", "deadline", "crashes")
        replies, now = (pipe.execute(), self._now()) if ids else ([], 0)
        tasks = []
        for at, id in enumerate(ids):
            fields, position, (worker, deadline, crashes) = replies[3 * at : 3 * at + 3]
            told = {name.decode(): value for name, value in fields.items()}
            if told:
                state = told["state"].decode()
                if "cancelled" in told and state not in ENDED:
                    state = CANCELLED
                is_held = worker is not None and int(deadline or 0) > now
                tasks.append(
                    Task(
                        id,
                        told["kind"].decode(),
                        state,
                        msgspec.json.decode(told["partitions"]),
                        msgspec.json.decode(told["options"]),
                        int(position or 0),
                        msgspec.json.decode(told.get("result", b"{}")),
                        told["who"].decode(),
                        int(told["created"]),
                        int(told.get("started", 0)),
                        int(told.get("ended", 0)),
                        int(told.get("sent", 0)),
                        int(crashes or 0),
                        told["error"].decode() if "error" in told else None,
                        worker.decode() if is_held else None,
                    )
                )
        return tasks

    def _step(
        self, id: str, token: str, position: int, to: int | None, fields: Sequence[Any], *, closing: bool = False
    ) -> None:
        keyspace = self._keyspace
        names = [keyspace.task_owner(id), keyspace.task_cursor(id), keyspace.task(id), keyspace.open_tasks]
        operations: list[Any] = ["HSET", 3, len(fields), *fields]
        if closing:
            operations += ["ZREM", 4, 1, id]
        at = str(position) if position else ""
        reply = self._client.fcall(
            "muster_step_1", len(names), *names, token, at, "" if to is None else to, 0, *operations
        )
        if reply[0] != b"OK":
            raise Conflict(reply[0].decode(), f"another process goes on with task {id}")

    def _now(self) -> int:
        seconds, micros = self._client.time()
        return int(seconds) * 1000 + int(micros) // 1000


def _packed(value: Any) -> bytes:
    return msgspec.json.encode(value)
