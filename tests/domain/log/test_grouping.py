"""Group commit: what concurrent callers of one log append travels together; nothing changes but the number of calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Semaphore
from threading import Event as ThreadEvent
from typing import Any

import pytest

from domain import Conflict, Event, MusterError, Receipt, SessionLog
from domain.log import grouping as grouping_module
from domain.log.contract import Expected
from domain.log.grouping import IN_FLIGHT, SPLIT_FROM, TaskGrouping, ThreadGrouping
from domain.log.protocol import HeadRequest, Request
from tests.conftest import Store
from tests.domain.log.logs import assert_chained, ids, note
from tests.waiting import wait_until

PRODUCERS = 32
COMMITS = 25


def calls_of_the_append_function(store: Store) -> int:
    """How often the server was called at all with FCALL."""
    client: Any = store.client
    return int(client.info("commandstats").get("cmdstat_fcall", {"calls": 0})["calls"])


def produce(log: SessionLog, producer: int) -> list[Receipt]:
    """One producer's commits: some to a session of its own, some to one that all share."""
    return [
        log.append(f"own-{producer}" if number % 2 else "shared", note(f"{producer}-{number}"))
        for number in range(COMMITS)
    ]


def holds_everything(log: SessionLog, receipts: list[list[Receipt]]) -> None:
    """Every receipt names its own events, and every session holds its producers' events in their order."""
    for session in ["shared", *(f"own-{producer}" for producer in range(PRODUCERS))]:
        commits = list(log.read(session))
        assert_chained(session, commits, log.head(session))
        digests = {commit.last_seq: commit.digest for commit in commits}
        for producer, told in enumerate(receipts):
            for receipt in told:
                if receipt.session == session:
                    assert digests[receipt.last_seq] == receipt.digest
            held = [event for event in ids(iter(commits)) if event.startswith(f"{producer}-")]
            assert held == sorted(held, key=lambda event: int(event.partition("-")[2]))
    assert sum(receipt.appended for told in receipts for receipt in told) == PRODUCERS * COMMITS


def test_threads_of_one_log_share_calls_and_each_gets_its_own_receipt(store: Store) -> None:
    """Every event is there once, in its producer's order, and fewer calls were made than commits."""
    log = store.open()
    before = calls_of_the_append_function(store)
    start = Barrier(PRODUCERS)

    def producer(number: int) -> list[Receipt]:
        start.wait()
        return produce(log, number)

    with ThreadPoolExecutor(PRODUCERS) as pool:
        receipts = list(pool.map(producer, range(PRODUCERS)))

    holds_everything(log, receipts)
    # Sessions lie in many partitions, each of which takes a call of its own.
    assert calls_of_the_append_function(store) - before < PRODUCERS * COMMITS


async def test_tasks_of_one_log_share_calls_and_each_gets_its_own_receipt(store: Store) -> None:
    """The same for asyncio: here all tasks of one partition leave together."""
    before = calls_of_the_append_function(store)
    async with await store.open_async() as log:

        async def producer(number: int) -> list[Receipt]:
            return [
                await log.append(f"own-{number}" if turn % 2 else "shared", note(f"{number}-{turn}"))
                for turn in range(COMMITS)
            ]

        receipts = await asyncio.gather(*(producer(number) for number in range(PRODUCERS)))

    holds_everything(store.open(), list(receipts))
    assert calls_of_the_append_function(store) - before < PRODUCERS * COMMITS


async def test_one_caller_s_conflict_is_not_the_others(store: Store) -> None:
    """Of appends that travel together, each succeeds or fails by itself."""
    async with await store.open_async() as log:
        await log.append("s", note("first"))

        async def append(name: str, expected: Expected) -> Receipt | MusterError:
            try:
                return await log.append("s", note(name), expected=expected)
            except MusterError as error:
                return error

        outcomes = await asyncio.gather(append("a", 1), append("b", 1), append("c", 7), append("d", "any"))

    kinds = sorted(type(outcome).__name__ for outcome in outcomes)
    assert kinds == ["Conflict", "Conflict", "Receipt", "Receipt"]
    assert ids(store.open().read("s"))[0] == "first"
    assert isinstance(outcomes[2], Conflict)


async def test_a_cancelled_caller_takes_nobody_with_it(store: Store) -> None:
    """A task that is cancelled while its append is under way leaves the others' appends as they are."""
    async with await store.open_async() as log:
        await asyncio.gather(*(log.append("s", note(f"warm-{n}")) for n in range(4)))
        tasks = [asyncio.create_task(log.append("s", note(f"n-{n}"))) for n in range(20)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(outcomes[3], asyncio.CancelledError)
    assert all(isinstance(outcome, Receipt) for number, outcome in enumerate(outcomes) if number != 3)


async def test_a_repeat_of_a_cancelled_append_is_recognised(store: Store) -> None:
    """The append goes on without its caller; who tries again, as after a timeout, has the commit once."""
    async with await store.open_async() as log:
        await log.append("s", note("1"))
        task = asyncio.create_task(log.append("s", note("2")))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        while (head := await log.head("s")) is None or head.seq < 2 or log.witness.known("s") != head.position:
            await asyncio.sleep(0.01)

        again = await log.append("s", note("2"))

    assert task.cancelled()
    assert again.last_seq == 2
    assert ids(store.open().read("s")) == ["1", "2"]


def failing(_: list[Request]) -> list[Any]:
    raise RuntimeError("the server went away")


def threads_ask(grouping: ThreadGrouping[Request], callers: int) -> list[object]:
    start = Barrier(callers)

    def ask(number: int) -> object:
        start.wait()
        try:
            return grouping.exchange([HeadRequest(str(number))])
        except RuntimeError as error:
            return error

    with ThreadPoolExecutor(callers) as pool:
        return list(pool.map(ask, range(callers)))


def test_whoever_sends_for_all_fails_for_all_and_the_next_group_still_leaves() -> None:
    """An error reaches every caller of the group; nobody waits for ever, and the turn is passed on."""
    answers: list[Callable[[list[Request]], list[Any]]] = [failing]
    grouping: ThreadGrouping[Request] = ThreadGrouping(lambda requests: answers[0](requests))

    assert all(isinstance(outcome, RuntimeError) for outcome in threads_ask(grouping, 8 * IN_FLIGHT))

    answers[0] = lambda requests: [request.session for request in requests if isinstance(request, HeadRequest)]
    assert threads_ask(grouping, 8 * IN_FLIGHT) == [[str(number)] for number in range(8 * IN_FLIGHT)]


def test_a_thread_that_is_interrupted_while_it_waits_takes_no_turn_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes to a thread whose turn it is: the next one sends."""
    answering = ThreadEvent()

    def send(requests: list[Request]) -> list[Any]:
        assert answering.wait(60)
        return [0 for _ in requests]

    class Interrupted(ThreadEvent):
        """As if the signal came just when the thread is given its turn."""

        def wait(self, timeout: float | None = None) -> bool:
            super().wait(timeout)
            raise KeyboardInterrupt

    grouping = ThreadGrouping(send)
    with ThreadPoolExecutor(IN_FLIGHT + 2) as pool:
        first = [pool.submit(grouping.exchange, [HeadRequest("s")]) for _ in range(IN_FLIGHT)]
        wait_until(lambda: grouping._under_way == IN_FLIGHT)
        monkeypatch.setattr(grouping_module, "Event", Interrupted)
        stopped = pool.submit(grouping.exchange, [HeadRequest("s")])
        wait_until(lambda: len(grouping._waiting) == 1)
        monkeypatch.undo()
        last = pool.submit(grouping.exchange, [HeadRequest("s")])
        wait_until(lambda: len(grouping._waiting) == 2)
        answering.set()

        assert isinstance(stopped.exception(60), KeyboardInterrupt)
        assert [one.result(60) for one in (*first, last)] == [[0]] * (IN_FLIGHT + 1)


async def test_an_error_reaches_every_task_of_the_group() -> None:
    """The same for asyncio."""

    async def send(requests: list[Request]) -> list[Any]:
        return failing(requests)

    grouping = TaskGrouping(send)
    outcomes = await asyncio.gather(
        *(grouping.exchange([HeadRequest(str(number))]) for number in range(9)), return_exceptions=True
    )
    assert [str(outcome) for outcome in outcomes] == ["the server went away"] * 9


async def test_a_task_that_asks_again_when_all_groups_are_answered_at_once_is_answered() -> None:
    """Its second request comes when no sender looks any more and the loop has not yet called them done."""
    replies: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    sent = 0

    async def send(requests: list[Request]) -> list[Any]:
        nonlocal sent
        sent += 1
        await replies
        return [None] * len(requests)

    grouping = TaskGrouping(send)

    async def ask(times: int) -> None:
        for _ in range(times):
            await grouping.exchange([HeadRequest("s")])

    async with asyncio.timeout(30), asyncio.TaskGroup() as callers:
        for number in range(IN_FLIGHT):
            callers.create_task(ask(1 if number else 2))
            while sent <= number:  # each in a group of its own
                await asyncio.sleep(0)
        replies.set_result(None)


def test_a_lone_producer_waits_for_nobody() -> None:
    """What is asked when nothing is under way leaves at once, alone."""
    sent: list[int] = []

    def send(requests: list[Request]) -> list[Any]:
        sent.append(len(requests))
        return [None] * len(requests)

    grouping = ThreadGrouping(send)
    for _ in range(5):
        grouping.exchange([HeadRequest("s")])
    assert sent == [1] * 5


@pytest.mark.parametrize("expected", ["any", 0])
def test_events_of_one_thread_keep_their_order_whatever_others_do(store: Store, expected: Expected) -> None:
    """A producer's commits stand in the order it made them, in groups or not."""
    log = store.open()

    def producer(number: int) -> list[int]:
        session = f"s-{number}"
        return [
            log.append(session, Event.of("tool.called", actor="a"), expected=turn if expected == 0 else "any").last_seq
            for turn in range(10)
        ]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(producer, range(16))) == [list(range(1, 11))] * 16


async def test_tasks_that_wait_while_nothing_is_under_way_leave_as_two_groups() -> None:
    """One is encoded while the server works on the other; a few leave together."""
    sizes: list[int] = []

    async def send(requests: list[Request]) -> list[Any]:
        sizes.append(len(requests))
        await asyncio.sleep(0)
        return [None] * len(requests)

    for waiting in (SPLIT_FROM - 1, 11):
        grouping = TaskGrouping(send)
        await asyncio.gather(*(grouping.exchange([HeadRequest(f"s-{n}")]) for n in range(waiting)))
    assert sizes == [SPLIT_FROM - 1, 6, 5]


def test_threads_that_wait_while_a_place_is_free_leave_as_two_groups() -> None:
    """The first two are on their way alone; when one is answered, those who waited share both places."""
    may_answer, sizes = ThreadEvent(), list[int]()
    under_way = Semaphore(0)

    def send(requests: list[Request]) -> list[Any]:
        sizes.append(len(requests))
        under_way.release()
        assert may_answer.wait(30)
        return [None] * len(requests)

    grouping: ThreadGrouping[Request] = ThreadGrouping(send)
    with ThreadPoolExecutor(16) as pool:
        first = [pool.submit(grouping.exchange, [HeadRequest(f"s-{n}")]) for n in range(IN_FLIGHT)]
        for _ in first:
            under_way.acquire()
        later = [pool.submit(grouping.exchange, [HeadRequest(f"t-{n}")]) for n in range(11)]
        wait_until(lambda: len(grouping._waiting) == 11)
        may_answer.set()
        for call in (*first, *later):
            call.result()
    assert sizes[:IN_FLIGHT] == [1] * IN_FLIGHT
    assert sum(sizes[IN_FLIGHT:]) == 11
