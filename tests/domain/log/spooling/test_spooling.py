"""Appends through an outage: spooled, in order, sent by themselves when the server is back, each once."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from domain import (
    Append,
    AsyncSessionLog,
    Conflict,
    Event,
    Misconfigured,
    OutcomeUnknown,
    Receipt,
    Refused,
    SessionLog,
    Unavailable,
)
from domain.log import Connecting, Spool, create_store
from domain.log.contract import Position
from domain.log.epoch import Epochs
from domain.log.protocol import encode_append, sent_flow
from domain.log.spooling.appending import is_outage
from domain.log.spooling.spool import Entry, Spooled
from tests.chaos.proxy import Moment, Proxy, Strike, proxied
from tests.conftest import ENVIRONMENT, Store
from tests.domain.log.logs import Blocking, ids, new_session, note, notes, refused
from tests.waiting import wait_until

FACES = ("blocking", "asyncio")


@pytest.fixture
def proxy(store: Store) -> Iterator[Proxy]:
    with proxied(store.url) as proxy:
        yield proxy


class Producers:
    """Opens logs with a spool, whose way to the server leads through the proxy."""

    def __init__(self, store: Store, proxy: Proxy, path: Path, face: str) -> None:
        self.path = path
        self._store = store
        self._proxy = proxy
        self._face = face
        self._opened: list[Any] = []

    def open(self, *, max_bytes: int = 1 << 20, namespace: str = "", retry_for_s: float = 0.05, **more: Any) -> Any:
        connecting = Connecting(self._proxy.url, timeout_s=5, retry_for_s=retry_for_s)
        options: dict[str, Any] = {
            "environment": ENVIRONMENT,
            "namespace": namespace or self._store.namespace,
            "spool": Spool(self.path, max_bytes=max_bytes),
            **more,
        }
        if self._face == "asyncio":
            self._opened.append(SpoolingBlocking(lambda: AsyncSessionLog.open(connecting, **options)))
        else:
            self._opened.append(SessionLog.open(connecting, **options))
        return self._opened[-1]

    def spool(self) -> Spool:
        """The file, as another process sees it."""
        self._opened.append(Spool(self.path, max_bytes=1 << 20))
        found: Spool = self._opened[-1]
        return found

    def waiting(self) -> list[Spooled]:
        return list(self.spool().each())

    def close(self) -> None:
        for one in self._opened:
            one.close()


class SpoolingBlocking(Blocking):
    _is_closed = False

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            super().close()

    def drained(self, timeout_s: float) -> bool:
        return self._runner.run(self._log.drained(timeout_s))


@pytest.fixture(params=FACES)
def producers(request: pytest.FixtureRequest, store: Store, proxy: Proxy, tmp_path: Path) -> Iterator[Producers]:
    made = Producers(store, proxy, tmp_path / "spool.db", request.param)
    yield made
    made.close()


def events_of(waiting: list[Spooled]) -> list[str]:
    """What waits, by the ids that stand in the bodies."""
    return [part for one in waiting for part in one.request.ids]


def test_what_is_appended_during_an_outage_arrives_once_and_in_order(
    store: Store, proxy: Proxy, producers: Producers
) -> None:
    """The receipt says `spooled`; nobody has to do anything when the server is back, and appends go straight to it."""
    log = producers.open()
    session, other = new_session(), new_session()
    log.append(session, note("1"))
    with proxy.cut():
        receipts = [log.append(session, note(str(number))) for number in range(2, 8)]
        receipts.append(log.append(other, notes("a", "b")))
    assert all(receipt.is_spooled and receipt.digest is None and receipt.at_ms == 0 for receipt in receipts)
    assert [receipt.appended for receipt in receipts] == [1] * 6 + [2]
    assert log.drained(30)

    receipt = log.append(session, note("8"))
    assert (receipt.durability, receipt.last_seq) == ("memory", 8)
    reader = store.open()
    assert ids(reader.read(session)) == [str(number) for number in range(1, 9)]
    assert ids(reader.read(other)) == ["a", "b"]
    assert producers.waiting() == []


def test_once_the_server_is_known_to_be_away_appends_are_not_tried_first(
    proxy: Proxy, producers: Producers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only those that are made before a blip has become an outage wait for as long as they are told to."""
    monkeypatch.setattr("domain.log.exchange.BLIP_S", 0.0)
    log = producers.open(retry_for_s=0.3)
    session = new_session()
    with proxy.cut():
        assert log.append(session, note("1")).is_spooled
        seen = proxy.refused
        for number in range(2, 50):
            log.append(new_session(), note(str(number)))
        # What still knocks is the one who sends what waits.
        assert proxy.refused - seen < 48
    assert log.drained(30)


@pytest.mark.parametrize("is_first", [False, True])
def test_a_commit_in_doubt_arrives_once(store: Store, proxy: Proxy, producers: Producers, is_first: bool) -> None:
    """The server took it, and the network went down before it could say so: the spool sends it again, as a repeat. Also
    the first that this producer appends to a session that others began.
    """
    log = producers.open()
    session = new_session()
    (store.open() if is_first else log).append(session, note("1"))
    cuts: list[Any] = []

    def cut() -> None:
        cuts.append(proxy.cut())
        cuts[0].__enter__()

    proxy.strikes.append(Strike(Moment.ANSWERED, cut))
    assert log.append(session, note("2")).is_spooled
    assert producers.waiting()[0].marked
    assert log.append(session, note("3")).is_spooled
    assert ids(store.open().read(session)) == ["1", "2"]
    cuts[0].__exit__(None, None, None)
    assert log.drained(30)
    assert ids(store.open().read(session)) == ["1", "2", "3"]


def test_a_commit_in_doubt_is_looked_for_from_where_it_was_sent(store: Store, tmp_path: Path) -> None:
    """And not from what its producer was told of the session since, by an append that came after it."""
    log, session = store.open(), new_session()
    log.spool = Spool(tmp_path / "spool.db")
    request = structs.replace(encode_append(Append(session, (note("1"),))), known=Position(0))
    log.run(sent_flow(request))
    log.append(new_session(), note("2"))
    log.witness.told(store.open().append(session, note("2")))
    log.spool.add([Entry(request, 1, marked=True)])
    assert log.drain().arrived == 1
    assert ids(log.read(session)) == ["1", "2"]


def test_a_sender_that_dies_after_it_sent_leaves_one_copy(
    store: Store, proxy: Proxy, producers: Producers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was noted of what arrived: whoever comes next sends it again, and the server knows it."""
    session, other = new_session(), new_session()
    spool = producers.spool()
    with producers_cut(proxy, producers) as log:
        for number in range(5):
            log.append(session, note(str(number)))
        log.append(other, note("a"), expected="new")

    def dies(*_: object) -> None:
        raise Unavailable("SPOOL_FAILED", "killed")

    with monkeypatch.context() as patched:
        patched.setattr(Spool, "settle", dies)
        with pytest.raises(Unavailable, match="killed"):
            store_log(store, producers).drain()
    assert ids(store.open().read(session)) == list("01234")
    assert [one.marked for one in spool.each()] == [True] * 6

    again = producers.open()
    assert again.drained(30)
    assert ids(store.open().read(session)) == list("01234")
    assert ids(store.open().read(other)) == ["a"]


def store_log(store: Store, producers: Producers) -> SessionLog:
    """A log straight to the server, on the same spool; it sends nothing by itself as long as nothing is spooled."""
    log = SessionLog.open(store.url, environment=ENVIRONMENT, namespace=store.namespace)
    log.spool = producers.spool()
    producers._opened.append(log)
    return log


class producers_cut:  # noqa: N801 - a context manager
    """A log that is cut off for the time of the block, and closed before the network is back."""

    def __init__(self, proxy: Proxy, producers: Producers) -> None:
        self._log = producers.open()
        self._cut = proxy.cut()

    def __enter__(self) -> Any:
        self._cut.__enter__()
        return self._log

    def __exit__(self, *exc_info: Any) -> None:
        self._log.close()
        self._cut.__exit__(*exc_info)


@pytest.mark.parametrize("senders", [4])
def test_several_senders_at_a_time_leave_one_copy(
    store: Store, proxy: Proxy, producers: Producers, monkeypatch: pytest.MonkeyPatch, senders: int
) -> None:
    """One is enough; but nothing depends on there being only one."""
    monkeypatch.setattr("fcntl.lockf", lambda *_: None)
    sessions = [new_session() for _ in range(20)]
    with producers_cut(proxy, producers) as log:
        for number in range(10):
            log.append_many([Append(session, notes(f"{session}-{number}")) for session in sessions])
    logs = [store_log(store, producers) for _ in range(senders)]

    def send(log: SessionLog) -> None:
        while log.spool is not None and not log.spool.is_empty():
            log.drain()

    with ThreadPoolExecutor(senders) as pool:
        list(pool.map(send, logs))
    reader = store.open()
    for session in sessions:
        assert ids(reader.read(session)) == [f"{session}-{number}" for number in range(10)]


def test_what_comes_after_a_waiting_commit_waits_behind_it(
    store: Store, proxy: Proxy, producers: Producers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the server answers again, and also of another process; other sessions go straight to the server."""
    session = new_session()
    monkeypatch.setattr("domain.log.exchange.drain_steps", lambda *_, **__: waits())
    with producers_cut(proxy, producers) as log:
        log.append(session, note("1"))
    log = producers.open()
    assert log.append(session, note("2")).is_spooled
    assert log.append(new_session(), note("3")).durability == "memory"
    monkeypatch.undo()
    assert log.drained(30)
    assert ids(store.open().read(session)) == ["1", "2"]


def waits() -> Any:
    """A pass in which nothing goes."""
    from domain.log.spooling.draining import Pass

    yield lambda: None
    return Pass(had_work=True)


def test_a_commit_that_the_server_refuses_is_held_and_its_session_waits(
    store: Store, proxy: Proxy, producers: Producers, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is dropped: it stays with the reason, what comes after it too; others arrive; the producer is told."""
    log = producers.open()
    session, other = new_session(), new_session()
    log.append(session, note("1"))
    with caplog.at_level(logging.ERROR), proxy.cut():
        log.append(session, note("2"), expected=1)
        receipt = log.append(session, note("3"), expected=2)
        log.append(other, note("a"))
        assert (receipt.first_seq, receipt.last_seq) == (3, 3)
        store.open().append(session, note("x"))
    assert log.drained(30)
    assert ids(store.open().read(session)) == ["1", "x"]
    assert ids(store.open().read(other)) == ["a"]
    assert [(one.code, one.request.expected) for one in producers.waiting()] == [("SEQ_CONFLICT", 1), (None, 2)]
    wait_until(lambda: log.drained(1) and "is held" in caplog.text)
    error = refused(lambda: log.append(session, note("4")), Conflict, "SPOOL_HELD")
    assert error.facts["reason"] == "SEQ_CONFLICT"


def test_what_was_held_is_tried_again_when_asked(store: Store, proxy: Proxy, producers: Producers) -> None:
    """In its order, with what waited behind it."""
    log = producers.open()
    session = new_session()
    log.append(session, Event.of("completed", actor="a"))
    with proxy.cut():
        log.append(session, Event.of("modified", actor="a", id="m"))
        log.append(session, note("n"))
    assert log.drained(30)
    assert [one.code for one in producers.waiting()] == ["GATE_REFUSED", None]
    store.open().append(session, Event.of("start", actor="a", id="s"))
    assert producers.spool().release() == 1
    with producers_cut(proxy, producers) as other:
        other.append(new_session(), note("x"))
    assert producers.open().drained(30)
    assert ids(store.open().read(session))[1:] == ["s", "m", "n"]


@pytest.mark.parametrize("code", ["SERVER_READ_ONLY", "UNREACHABLE", "SERVER_LOADING"])
def test_what_passes_by_itself_is_an_outage(code: str) -> None:
    assert is_outage(Unavailable(code, "for now"))


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("SERVER_OUT_OF_MEMORY", "full"),
        Misconfigured("ACCESS_DENIED", "no"),
        OutcomeUnknown("DURABILITY_SHORT", "written"),
        Conflict("SEQ_CONFLICT", "moved"),
    ],
)
def test_what_an_operator_must_mend_is_told_and_not_spooled(error: Exception) -> None:
    assert not is_outage(error)


@pytest.mark.parametrize("blip_s", [0.0, 60.0])
def test_bad_input_is_refused_before_the_spool(
    proxy: Proxy, producers: Producers, monkeypatch: pytest.MonkeyPatch, blip_s: float
) -> None:
    """Whether the server is tried first or is known to be away."""
    monkeypatch.setattr("domain.log.exchange.BLIP_S", blip_s)
    log = producers.open()
    with proxy.cut():
        log.append(new_session(), note("1"))
        before = len(producers.waiting())
        refused(lambda: log.append("not an id", note("2")), Refused, "SESSION_INVALID")
        refused(lambda: log.append(new_session(), []), Refused, "COMMIT_EMPTY")
        refused(lambda: log.append(new_session(), note("3"), expected=-1), Refused, "EXPECTED_INVALID")
        refused(lambda: log.append(new_session(), note(), dedupe=True), Refused, "ID_INVALID")
        assert len(producers.waiting()) == before


def test_a_full_spool_refuses(store: Store, proxy: Proxy, producers: Producers) -> None:
    """With a typed error, and nothing is written; what it holds arrives all the same."""
    log = producers.open(max_bytes=4000)
    session = new_session()
    taken, refusals = [], []
    with proxy.cut():
        for number in range(100):
            try:
                taken.append((number, log.append(session, note(str(number), text="x" * 100))))
            except Unavailable as error:
                refusals.append(error)
        assert {error.code for error in refusals} == {"SPOOL_FULL"}
        assert all(error.facts["held_bytes"] <= error.facts["max_bytes"] == 4000 for error in refusals)
        assert 5 < len(taken) < 20
    assert log.drained(30)
    assert ids(store.open().read(session)) == [str(number) for number, _ in taken]
    with proxy.cut():
        assert log.append(session, note("again")).is_spooled


def test_a_commit_in_doubt_that_finds_the_spool_full_stays_in_doubt(proxy: Proxy, producers: Producers) -> None:
    log = producers.open(max_bytes=10)
    session = new_session()
    log.append(session, note("1"))
    proxy.strikes.extend(Strike(Moment.ANSWERED, lambda: None) for _ in range(10_000))
    error = refused(lambda: log.append(session, note("2")), OutcomeUnknown, "OUTCOME_UNKNOWN")
    proxy.strikes.clear()
    assert isinstance(error, OutcomeUnknown)
    found = log.resolve(error.doubts[0])
    assert found is not None
    assert found.last_seq == 2


def test_a_producer_that_starts_during_an_outage_goes_on(store: Store, proxy: Proxy, producers: Producers) -> None:
    """The spool knows the store it met. One that never met it cannot be told from a misspelled address."""
    log = producers.open()
    session = new_session()
    log.append(session, note("1"))
    log.close()
    with proxy.cut():
        log = producers.open()
        assert log.append(session, note("2")).is_spooled
        log.close()
        log = producers.open()
        assert log.append(session, note("3")).is_spooled
        refused(lambda: producers.open(namespace="another"), Misconfigured, "SPOOL_DIFFERS")
        producers.path = producers.path.with_name("new.db")
        refused(producers.open, Unavailable, "UNREACHABLE")
    assert log.drained(30)
    assert ids(store.open().read(session)) == ["1", "2", "3"]


def test_a_spool_with_commits_of_another_store_is_refused(store: Store, proxy: Proxy, producers: Producers) -> None:
    """Of another namespace, or of one that was made anew under the same name. An empty one goes over."""
    other = f"{store.namespace}-other"
    create_store(store.client, environment=ENVIRONMENT, namespace=other, partitions=1)
    producers.open(namespace=other).close()
    with producers_cut(proxy, producers) as log:
        log.append(new_session(), note("1"))
    refused(lambda: producers.open(namespace=other), Misconfigured, "SPOOL_DIFFERS")
    for key in store.client.scan_iter(match=f"{{{ENVIRONMENT}:{other}:*"):
        store.client.delete(key)


def time_is_over(store: Store, session: str) -> None:
    """Lets the lease of a session run out, as if so much time had passed."""
    assert store.client.hset(store.keyspace.of(session).hold(session), "deadline", 1) == 0


def test_a_lease_that_nobody_took_outlasts_the_outage(store: Store, proxy: Proxy, producers: Producers) -> None:
    """The holder's commits arrive although its time was over meanwhile; also those made when it left."""
    log = producers.open()
    session = new_session()
    work = log.session(session, "agent-1")
    work.__enter__()
    with proxy.cut():
        time_is_over(store, session)
        assert work.append(note("1")).is_spooled
        assert work.position is None
        work.__exit__(None, None, None)
    assert log.drained(30)
    read = [event.type for commit in store.open().read(session) for event in commit.events]
    assert read == ["joined", "note.made", "left"]


def test_a_lease_under_which_commits_wait_is_not_given_back(store: Store, proxy: Proxy, producers: Producers) -> None:
    """They would be refused when they arrive, although nobody else was at work."""
    log, spool = producers.open(), producers.spool()
    session = new_session()
    lease = log.lease(session, "agent-1")
    token = store.client.hget(store.keyspace.of(session).hold(session), "token")
    assert isinstance(token, bytes)
    spool.add([Entry(encode_append(Append(session, (note("1"),), token=token.decode())), 1)])
    lease.release()
    assert producers.open().drained(30)
    assert ids(store.open().read(session)) == ["1"]


def test_a_lease_that_somebody_took_holds_the_commits(store: Store, proxy: Proxy, producers: Producers) -> None:
    log = producers.open()
    session = new_session()
    lease = log.lease(session, "agent-1")
    with proxy.cut():
        time_is_over(store, session)
        assert lease.append(note("1")).is_spooled
        with store.open().lease(session, "agent-2") as taken:
            taken.append(Event.of("note.made", actor="agent-2", id="x"))
    assert log.drained(30)
    assert ids(store.open().read(session)) == ["x"]
    assert [one.code for one in producers.waiting()] == ["LEASE_LOST"]


def test_a_commit_whose_producer_knew_what_is_lost_waits_until_the_loss_is_accepted(
    store: Store, proxy: Proxy, producers: Producers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written over a loss; once an operator accepted it, what waits arrives by itself."""
    monkeypatch.setattr("domain.log.spooling.draining.LOOK_EVERY_S", 0.05)
    log = producers.open()
    session = new_session()
    with proxy.cut():
        assert log.append(session, note("1"), known=Position(9, "0" * 20)).is_spooled
    assert log.drained(30)
    assert [one.code for one in producers.waiting()] == ["TAIL_LOST"]

    operator = store.open()
    Epochs(operator).accept("tester")
    log.append(new_session(), note("adopts"))
    if producers._face == "blocking":
        wait_until(lambda: not producers.waiting())
    else:
        wait_until(lambda: log.drained(0.1) and not producers.waiting())
    assert ids(operator.read(session)) == ["1"]


def test_a_handoff_passes_the_lease_when_it_arrives(store: Store, proxy: Proxy, producers: Producers) -> None:
    log = producers.open()
    session = new_session()
    lease = log.lease(session, "agent-1")
    with proxy.cut():
        assert lease.handoff("agent-2").is_spooled
    assert log.drained(30)
    other = store.open()
    refused(lambda: other.lease(session, "agent-3"), Conflict, "LEASE_HELD")
    other.lease(session, "agent-2").release()


def test_appends_of_one_call_that_are_in_doubt_arrive_once(store: Store, proxy: Proxy, producers: Producers) -> None:
    """Each is looked for as what it is."""
    log = producers.open()
    session, other = new_session(), new_session()
    store.open().append_many([Append(session, notes("0")), Append(other, notes("0"))])
    cuts: list[Any] = []

    def cut() -> None:
        cuts.append(proxy.cut())
        cuts[0].__enter__()

    proxy.strikes.append(Strike(Moment.ANSWERED, cut))
    appends = [Append(session, notes("1")), Append(other, notes("a")), Append(session, notes("2"))]
    assert all(receipt.is_spooled for receipt in log.append_many(appends))
    cuts[0].__exit__(None, None, None)
    assert log.drained(30)
    reader = store.open()
    assert ids(reader.read(session)) == ["0", "1", "2"]
    assert ids(reader.read(other)) == ["0", "a"]


def test_a_deduplicated_append_leaves_out_what_is_there_when_it_arrives(
    store: Store, proxy: Proxy, producers: Producers
) -> None:
    log = producers.open()
    session = new_session()
    log.append(session, notes("1", "2"))
    with proxy.cut():
        assert log.append(session, notes("2", "3"), dedupe=True).is_spooled
        assert log.append(session, notes("3", "4"), dedupe=True).is_spooled
    assert log.drained(30)
    assert ids(store.open().read(session)) == ["1", "2", "3", "4"]


def test_appends_of_one_call_keep_their_order_and_answers(store: Store, proxy: Proxy, producers: Producers) -> None:
    """Each has a receipt or an error of its own, also during an outage; the trace goes with the commit."""
    log = producers.open()
    session, other = new_session(), new_session()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with proxy.cut():
        answers = log.append_many(
            [
                Append(session, notes("1"), traceparent=trace),
                Append(session, ()),
                Append(other, notes("a")),
                Append(session, notes("2"), expected=1),
            ]
        )
    assert [isinstance(answer, Receipt) for answer in answers] == [True, False, True, True]
    assert log.drained(30)
    commits = list(store.open().read(session))
    assert ids(iter(commits)) == ["1", "2"]
    assert commits[0].traceparent == trace


@pytest.mark.parametrize("producers", ["blocking"], indirect=True)  # an event loop does not go on in a forked child
def test_a_forked_child_spools_and_sends_too(store: Store, proxy: Proxy, producers: Producers) -> None:
    log = producers.open()
    session = new_session()
    with proxy.cut():
        log.append(session, note("1"))
        child = os.fork()
        if child == 0:
            try:
                spooled = log.append(session, note("2")).is_spooled and log.append(session, note("3")).is_spooled
            finally:
                os._exit(0 if spooled else 1)
        assert os.waitpid(child, 0)[1] == 0
        log.append(session, note("4"))
    assert log.drained(30)
    assert ids(store.open().read(session)) == ["1", "2", "3", "4"]


def test_patience_without_end_and_a_spool_contradict_each_other(store: Store, tmp_path: Path) -> None:
    """An append that waits for ever never gets into the spool."""
    connecting = Connecting(store.url, retry_for_s=float("inf"))
    refused(
        lambda: SessionLog.open(connecting, environment=ENVIRONMENT, namespace=store.namespace, spool=tmp_path / "s"),
        Misconfigured,
        "SETTING_INVALID",
    )


def test_a_commit_waits_until_it_has_reached_what_was_asked_for(
    store: Store, proxy: Proxy, producers: Producers
) -> None:
    """It is in the log, once, and stays in the spool as long as no replica has it."""
    log = producers.open(durability="replicated(1)")
    session = new_session()
    with proxy.cut():
        assert log.append(session, note("1")).is_spooled
    wait_until(lambda: not log.drained(0.1) and ids(store.open().read(session)) == ["1"])
    assert not log.drained(0.5)
    assert [one.request.ids for one in producers.waiting()] == [("1",)]
    log.close()
    assert producers.open().drained(30)
    assert ids(store.open().read(session)) == ["1"]


async def test_tasks_that_append_during_an_outage_keep_the_loop_going(
    store: Store, proxy: Proxy, tmp_path: Path
) -> None:
    """The disk is waited for elsewhere, and what many spool at a time is written together."""
    log = await AsyncSessionLog.open(
        Connecting(proxy.url, retry_for_s=0.05), environment=ENVIRONMENT, namespace=store.namespace,
        spool=tmp_path / "spool.db",
    )  # fmt: skip
    sessions = [new_session() for _ in range(200)]
    with proxy.cut():
        receipts = await asyncio.gather(*(log.append(session, note(session)) for session in sessions))
        assert all(receipt.is_spooled for receipt in receipts)
    assert await log.drained(30)
    await log.close()
    reader = store.open()
    for session in sessions:
        assert ids(reader.read(session)) == [session]


def test_what_waits_is_sent_by_whoever_opens_the_spool_next(store: Store, proxy: Proxy, producers: Producers) -> None:
    """The process that spooled it may never come back."""
    session = new_session()
    with producers_cut(proxy, producers) as log:
        log.append(session, note("1"))
    producers.open()
    if producers._face == "blocking":
        wait_until(lambda: ids(store.open().read(session)) == ["1"])
    else:
        assert producers.open().drained(30)
