"""Sending what waits in a spool as soon as the server answers: in the order of each session, sessions side by side.

Theory of operation. A pass takes a page of the oldest commits. Those that were never sent are marked, in the file, with
what is known of their sessions now; then each session's commits are sent one after another, and what the server says of
each is noted: it arrived, and is let go of; or it was refused, and is held, and its session waits. So whoever dies in
the middle leaves commits that are marked, and the next one sends them as repeats, which the server recognises by what
was known when they were marked.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from threading import Event, Lock, Thread
from typing import Any, Final

from msgspec import Struct, structs

from domain.codec import Limits, decode_body
from domain.errors import Conflict, Damaged, Misconfigured, MusterError, Unavailable
from domain.log.contract import Append, AppendRequest, Position, Receipt
from domain.log.lease import DEFAULT_TTL_MS
from domain.log.protocol import (
    Flow,
    HeadRequest,
    RenewRequest,
    TimeRequest,
    dedupe_flow,
    position_of,
    sent_flow,
    taken,
    together,
)
from domain.log.spooling.appending import Acknowledge, Steps
from domain.log.spooling.spool import Spool, Spooled

logger = logging.getLogger(__name__)

#: The longest pause while the server is away, in seconds.
LONGEST_PAUSE_S: Final = 1.0
#: How often to look for what other processes left in the spool, in seconds.
LOOK_EVERY_S: Final = 5.0
#: How long to wait for the thread to end, in seconds.
JOIN_S: Final = 1.0


class Pass(Struct):
    """What became of a page: how many commits arrived, those that were refused, and why others did not go, if so."""

    arrived: int = 0
    held: int = 0
    hindrance: MusterError | None = None
    #: There was something to be sent.
    had_work: bool = False


class _Done(Struct):
    """What the server said so far, by the commits' numbers."""

    arrived: dict[int, Receipt] = {}
    refused: dict[int, MusterError] = {}


def drain_steps(
    spool: Spool,
    known_of: Callable[[str], Position | None],
    acknowledge: Acknowledge,
    *,
    limits: Limits,
    epoch: int,
) -> Steps[Pass]:
    """One pass. `known_of` says where a session was last seen to stand."""
    page: list[Spooled] = yield lambda: spool.page(epoch)
    if not page:
        return Pass()
    known, hindrance = yield from _known_flow(page, known_of)
    ours: set[int] = (yield lambda: spool.mark(known)) if known else set()
    # What was marked by another process meanwhile, it sends; and without a head nothing can be marked.
    left_out = {one.request.session for one in page if not one.marked and not one.dedupe and one.number not in ours}
    rows: dict[str, list[Spooled]] = {}
    for one in page:
        if one.request.session not in left_out:
            if one.number in ours:
                one = structs.replace(one, request=structs.replace(one.request, known=known[one.number]))
            rows.setdefault(one.request.session, []).append(one)
    done = _Done({}, {})
    answers = yield from together([_session_flow(found, done, limits, epoch) for found in rows.values()])
    receipts = yield acknowledge(list(done.arrived.values()))
    short = {number for number, receipt in zip(done.arrived, receipts, strict=True) if isinstance(receipt, MusterError)}
    arrived = done.arrived.keys() - short
    yield lambda: spool.settle(arrived, done.refused, epoch)
    for number, error in done.refused.items():
        about = {"action": "spool.held", "commit": number, "code": error.code}
        logger.error("commit %d of the spool %s is held: %s", number, spool.path, error, extra=about)
    hindrances = [hindrance, *answers, *receipts]
    return Pass(
        len(arrived), len(done.refused), next((one for one in hindrances if isinstance(one, MusterError)), None), True
    )


def _known_flow(
    page: Sequence[Spooled], known_of: Callable[[str], Position | None]
) -> Flow[tuple[dict[int, Position | None], MusterError | None]]:
    """For each commit that was never sent, where its session stands now at least; and why some could not be told."""
    known: dict[int, Position | None] = {}
    asked: dict[str, list[int]] = {}
    for one in page:
        if one.marked or one.dedupe:
            continue
        position = _later(one.request.known, known_of(one.request.session))
        if position is None and one.request.expected == "any":
            asked.setdefault(one.request.session, []).append(one.number)
        else:
            known[one.number] = position
    hindrance = None
    if asked:
        heads: list[Any] = yield [HeadRequest(session) for session in asked]
        for numbers, head in zip(asked.values(), heads, strict=True):
            if isinstance(head, MusterError):
                hindrance = head
            else:
                known |= dict.fromkeys(numbers, position_of(head))
    return known, hindrance


def _later(one: Position | None, other: Position | None) -> Position | None:
    if one is None or other is None:
        return one or other
    return other if other.seq > one.seq else one


def _session_flow(rows: Sequence[Spooled], done: _Done, limits: Limits, epoch: int) -> Flow[None]:
    """A session's commits, one after another, up to the first that does not arrive."""
    last: Receipt | None = None
    for row in rows:
        request = row.request
        if not row.marked and last is not None and request.expected == "any":
            request = structs.replace(request, known=last.position)  # it was never sent: no need to look further back
        try:
            if row.dedupe:
                last = yield from dedupe_flow(_append_of(request), limits)
            else:
                last = yield from _leased_flow(request, epoch > row.epoch)
        except MusterError as error:
            if isinstance(error, (Unavailable, Misconfigured)) or error.code == "TOO_LATE":
                raise  # the next pass may have better luck
            done.refused[row.number] = error
            return
        done.arrived[row.number] = last


def _leased_flow(request: AppendRequest, is_of_earlier_epoch: bool) -> Flow[Receipt]:
    """A commit whose lease ran out meanwhile, and was taken by nobody, counts as if it had not; and one whose producer
    knew what is lost since, and accepted as lost, as if nothing had been known.
    """
    try:
        return (yield from sent_flow(request))
    except Conflict as conflict:
        if conflict.code != "LEASE_LOST" or request.token is None:
            raise
        (held,) = yield [RenewRequest(request.session, request.token, DEFAULT_TTL_MS)]
        if not taken(held):
            raise
    except Damaged as damaged:
        if damaged.code not in ("TAIL_LOST", "FORK") or not is_of_earlier_epoch:
            raise
        request = structs.replace(request, known=Position(0))
    return (yield from sent_flow(request))


def _append_of(request: AppendRequest) -> Append:
    return Append(
        request.session, tuple(decode_body(request.body)), traceparent=request.traceparent, token=request.token
    )


def ping_steps() -> Steps[Pass]:
    """Asks whether the server answers, while another process sends what waits."""
    (answer,) = yield [TimeRequest()]
    return Pass(hindrance=answer if isinstance(answer, MusterError) else None, had_work=True)


class _Pacing:
    """When the next pass begins, and what is said meanwhile. Does no I/O."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._failures = 0
        self._arrived = 0

    def after(self, done: Pass) -> float:
        """How long to wait after a pass, in seconds; less if something new is spooled."""
        self._arrived += done.arrived
        if done.arrived or done.hindrance is None:
            self._failures = 0
        if done.hindrance is not None:
            return self.failed(done.hindrance)
        if done.arrived or done.held:
            return 0.0
        if done.had_work:
            return LONGEST_PAUSE_S  # another process sends
        if self._arrived:
            about = {"action": "spool.emptied", "commits": self._arrived}
            logger.info("the spool %s is empty: %d commits arrived", self._spool.path, self._arrived, extra=about)
            self._arrived = 0
        return LOOK_EVERY_S

    def failed(self, error: Exception) -> float:
        """As `after`, where a pass failed."""
        level = logging.DEBUG if self._failures else logging.WARNING
        about = {"action": "spool.waits"}
        logger.log(level, "what is in the spool %s waits: %s", self._spool.path, error, extra=about)
        self._failures += 1
        return random.uniform(0.5, 1) * min(LONGEST_PAUSE_S, 0.05 * 2.0 ** min(self._failures, 8))


class DrainingThread:
    """Sends what waits, in a thread that begins when something is spooled."""

    def __init__(self, spool: Spool, drain: Callable[[], Pass]) -> None:
        self._spool = spool
        self._drain = drain
        self._lock = Lock()
        self._running: tuple[Thread, Event, Event, int] | None = None

    def wake(self) -> None:
        """Something was spooled."""
        if self._running is None or self._running[3] != os.getpid():  # in a forked child there is no thread
            self._begin()
        assert self._running is not None
        self._running[2].set()

    def close(self) -> None:
        running, self._running = self._running, None
        if running is not None and running[3] == os.getpid():
            thread, stop, woken, _ = running
            stop.set()
            woken.set()
            thread.join(JOIN_S)  # in the middle of a pass it ends by itself; what it sends is marked

    def _begin(self) -> None:
        stop, woken = Event(), Event()
        thread = Thread(target=self._run, args=(stop, woken), name="muster-spool", daemon=True)
        self._running = (thread, stop, woken, os.getpid())
        thread.start()

    def _run(self, stop: Event, woken: Event) -> None:
        pacing = _Pacing(self._spool)
        while not stop.is_set():
            woken.clear()
            try:
                pause = pacing.after(self._drain())
            except (MusterError, OSError, ValueError) as error:
                pause = pacing.failed(error)
            if pause == LOOK_EVERY_S:
                woken.wait(pause)
            else:
                stop.wait(pause)


class DrainingTask:
    """Sends what waits, in a task of the event loop that begins when something is spooled."""

    def __init__(self, spool: Spool, drain: Callable[[], Awaitable[Pass]]) -> None:
        self._spool = spool
        self._drain = drain
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Something was spooled."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="muster-spool")
        self._woken.set()

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        pacing = _Pacing(self._spool)
        while self._task is asyncio.current_task():  # also where a library swallowed that it is cancelled
            self._woken.clear()
            try:
                pause = pacing.after(await self._drain())
            except (MusterError, OSError, ValueError) as error:
                pause = pacing.failed(error)
            if pause == LOOK_EVERY_S:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._woken.wait()
            else:
                await asyncio.sleep(pause)
