"""What only a log on a server can show: lost replies, lost stores, damaged keys, the feed, other producers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import msgspec
import pytest
import redis
from redis._parsers.base import BaseParser

from domain import (
    Append,
    Conflict,
    Damaged,
    Event,
    Limits,
    Misconfigured,
    MusterError,
    OutcomeUnknown,
    Receipt,
    Refused,
    SessionLog,
    Unavailable,
)
from domain.codec import encode_body
from domain.log import connect, connection, create_store
from domain.log.address import without_password
from domain.log.connection import Connecting, connection_error
from domain.log.contract import Position
from domain.log.protocol import APPEND_FUNCTION
from domain.log.store import check_version, load_library_command
from tests.conftest import ENVIRONMENT, Servers, Store
from tests.domain.log.logs import Blocking, RunnableLog, assert_chained, ids, new_session, note, notes, refused

KINDS = ("valkey", "valkey-async", "redis7")


class Case(NamedTuple):
    """A log of each kind, and the store it is on."""

    store: Store
    log: RunnableLog
    open: Callable[..., RunnableLog]


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, servers: Servers, make_store: Callable[..., Store]) -> Iterator[Case]:
    """Both faces of the log, on both servers."""
    server, _, face = str(request.param).partition("-")
    store = make_store(servers.url(server))
    opened: list[Blocking] = []

    def open_log(**options: Any) -> RunnableLog:
        if face != "async":
            return store.open(**options)
        opened.append(Blocking(lambda: store.open_async(**options)))
        return opened[-1]

    yield Case(store, open_log(), open_log)
    for blocking in opened:
        blocking.close()


def raw_append(
    store: Store,
    session: str,
    kinds: str,
    body: bytes,
    *,
    expected: str = "any",
    known: str = "",
    not_after: str = "",
    partition: int | None = None,
) -> list[str]:
    """Appends as a producer without our library does: one FCALL, the kinds stated by hand."""
    log = store.open()
    keys = store.keyspace.of(session) if partition is None else store.keyspace.partitions[partition]
    names = [keys.meta, keys.sessions, keys.feed, keys.log(session), keys.head(session), keys.hold(session)]
    identity = [log.identity.store, log.identity.epoch]
    rows = cast("Any", store.client).execute_command(
        *("FCALL", APPEND_FUNCTION, len(names), *names, *identity),
        *(session, expected, known, not_after, "", "", "", kinds, body, ""),
    )
    return [value.decode() for value in rows[0]]


# -- the server and its store ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", ["blocking", "asyncio"])
def test_a_server_without_the_store_says_so(server_url: str, make_store: Callable[..., Store], face: str) -> None:
    """A server that holds no store is never taken for a new one."""
    nowhere = make_store(server_url, create=False)
    call = nowhere.open if face == "blocking" else lambda: Blocking(nowhere.open_async)

    refused(call, Misconfigured, "STORE_MISSING")

    assert nowhere.keys() == []


def test_a_store_that_vanished_is_not_made_again(case: Case) -> None:
    """When the store goes while a log is open, appends say STORE_MISSING and write nothing."""
    case.log.append("s", note("1"))
    case.store.client.delete(*case.store.keys())

    refused(lambda: case.log.append("s", note("2")), Misconfigured, "STORE_MISSING")
    (error,) = case.log.append_many([Append("t", notes("1"))])

    assert isinstance(error, Misconfigured)
    assert case.store.keys() == []


@pytest.mark.parametrize(("field", "code"), [("store", "STORE_CHANGED"), ("epoch", "EPOCH_CHANGED")])
def test_another_store_is_noticed(case: Case, field: str, code: str) -> None:
    """A store with another id or epoch than the one that was opened takes no append."""
    for keys in case.store.keyspace.partitions:
        case.store.client.hset(keys.meta, field, "7")
    before = case.store.snapshot()

    refused(lambda: case.log.append("s", note("1")), Misconfigured, code)

    assert case.store.snapshot() == before


def test_a_store_keeps_its_partition_count(case: Case) -> None:
    """Neither opening nor making the store again takes another partition count than it was made with."""
    store = case.store

    refused(lambda: store.open(partitions=31), Misconfigured, "PARTITIONS_DIFFER")
    refused(
        lambda: create_store(store.client, environment=ENVIRONMENT, namespace=store.namespace, partitions=31),
        Misconfigured,
        "PARTITIONS_DIFFER",
    )
    assert store.open(partitions=32).identity.partitions == 32


def test_making_a_store_twice_keeps_the_first(case: Case) -> None:
    """`create_store` on a store that is there changes nothing, and tells so."""
    case.log.append("s", note("1"))
    before = case.store.snapshot()

    identity, is_new = create_store(case.store.client, environment=ENVIRONMENT, namespace=case.store.namespace)

    assert not is_new
    assert identity == case.store.open().identity
    assert case.store.snapshot() == before


def test_a_store_that_was_half_made_is_finished(server_url: str, make_store: Callable[..., Store]) -> None:
    """When making a store is interrupted anywhere, the next attempt finishes it under the id that was given first."""
    store = make_store(server_url)
    first = store.open().identity
    store.client.hdel(store.keyspace.store_meta, "ready", "epoch")
    store.client.delete(store.keyspace.partitions[3].meta, store.keyspace.partitions[31].meta)
    refused(store.open, Misconfigured, "STORE_MISSING")
    refused(
        lambda: create_store(store.client, environment=ENVIRONMENT, namespace=store.namespace, partitions=16),
        Misconfigured,
        "PARTITIONS_DIFFER",
    )

    identity, is_new = create_store(store.client, environment=ENVIRONMENT, namespace=store.namespace)

    assert is_new
    assert identity == first
    receipts = store.open().append_many([Append(new_session(), notes("1")) for _ in range(200)])
    assert all(isinstance(receipt, Receipt) for receipt in receipts)


def test_functions_that_are_gone_are_named(case: Case) -> None:
    """A server whose functions were deleted is told apart from one without a store."""
    cast("Any", case.store.client).execute_command("FUNCTION", "DELETE", "muster_1")
    try:
        refused(lambda: case.log.append("s", note("1")), Misconfigured, "FUNCTIONS_MISSING")
    finally:
        cast("Any", case.store.client).execute_command(*load_library_command())
    assert case.log.append("s", note("1")).first_seq == 1


def test_a_store_may_set_lower_limits_than_its_producers(server_url: str, make_store: Callable[..., Store]) -> None:
    """The limits of the store are held by the server, whatever a producer's own are."""
    store = make_store(server_url, limits=Limits(commit_events=3, commit_bytes=1000))
    log = store.open(limits=Limits())
    log.append("s", notes("1", "2", "3"))
    before = store.snapshot()

    refused(lambda: log.append("s", notes("4", "5", "6", "7")), Refused, "COMMIT_TOO_LARGE")
    refused(lambda: log.append("s", note("4", text="x" * 1000)), Refused, "COMMIT_TOO_LARGE")

    assert store.snapshot() == before


@pytest.mark.parametrize(
    ("info", "old"),
    [
        ({"redis_version": "6.2.14"}, True),
        ({"redis_version": "7.0.0"}, False),
        ({"redis_version": "7.0.15"}, False),
        ({"redis_version": "10.1.0"}, False),
        ({"redis_version": "7.2.4", "valkey_version": "7.1.9"}, True),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.5"}, False),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, False),
        ({}, True),
    ],
)
def test_a_server_that_is_too_old_is_refused(info: dict[str, str], old: bool) -> None:
    """Redis from 7.0 and Valkey from 7.2 on will do."""
    if old:
        refused(lambda: check_version(info), Misconfigured, "SERVER_TOO_OLD")
    else:
        check_version(info)


def test_a_store_is_not_made_on_a_server_that_is_too_old(
    server_url: str, make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version is looked at before the first write."""
    other = make_store(server_url, create=False)
    monkeypatch.setattr("domain.log.store.MIN_VALKEY", (99, 0))

    refused(
        lambda: create_store(other.client, environment=ENVIRONMENT, namespace=other.namespace),
        Misconfigured,
        "SERVER_TOO_OLD",
    )
    assert other.keys() == []


# -- no answer, or a bad one -----------------------------------------------------------------------------------------

NOBODY = "redis://127.0.0.1:1/0"


@pytest.mark.parametrize("retry_for_s", [0.0, 0.2])
def test_a_server_that_nobody_reaches_is_unreachable(store: Store, retry_for_s: float) -> None:
    """Without a connection nothing was sent: the error says unreachable, not unknown, also for a write."""
    log = store.open(retry_for_s=retry_for_s)
    log.client.close()
    log.client = connect(Connecting(NOBODY))

    refused(lambda: SessionLog.open(Connecting(NOBODY, retry_for_s=retry_for_s)), Unavailable, "UNREACHABLE")
    refused(lambda: log.head("s"), Unavailable, "UNREACHABLE")
    error = refused(lambda: log.append("s", note("1"), expected=0), Unavailable, "UNREACHABLE")

    assert not isinstance(error, OutcomeUnknown)
    log.client.close()


class LostReplies:
    """Loses the replies of the next exchanges that append: they take effect, and then the connection breaks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        blocking, asyncio = connection._send_once, connection._send_once_async

        def send(client: redis.Redis, commands: list[Any], *timing: Any) -> list[Any]:
            replies = blocking(client, commands, *timing)
            self._lose(commands)
            return replies

        async def send_async(client: Any, commands: list[Any], timeout_s: float, *timing: Any) -> list[Any]:
            replies = await asyncio(client, commands, timeout_s, *timing)
            self._lose(commands)
            return replies

        monkeypatch.setattr(connection, "_send_once", send)
        monkeypatch.setattr(connection, "_send_once_async", send_async)

    def _lose(self, commands: list[Any]) -> None:
        if self.left and commands[0][0] == "FCALL":
            self.left -= 1
            raise redis.ConnectionError("Connection closed by server.")


@pytest.mark.parametrize("expected", ["any", "new"])
def test_a_lost_reply_is_asked_for_again(case: Case, monkeypatch: pytest.MonkeyPatch, expected: Any) -> None:
    """The same commit is sent again until a reply comes, and it is there once."""
    LostReplies(monkeypatch).left = 2

    receipt = case.log.append("s", notes("1", "2"), expected=expected)

    assert (receipt.first_seq, receipt.last_seq, receipt.duplicates) == (1, 2, 2)
    assert ids(case.log.read("s")) == ["1", "2"]


@pytest.mark.parametrize("many", [False, True])
def test_an_append_without_a_reply_is_unknown_and_harmless_to_repeat(
    case: Case, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    """No reply is neither success nor failure; the same append again gives the receipt, also after other commits."""
    log = case.open(retry_for_s=0.0)
    lost = LostReplies(monkeypatch)
    lost.left = 1

    def attempt() -> Receipt:
        if not many:
            return log.append("s", notes("1", "2"))
        (receipt,) = log.append_many([Append("s", notes("1", "2"))])
        assert isinstance(receipt, Receipt)
        return receipt

    refused(attempt, OutcomeUnknown, "OUTCOME_UNKNOWN")
    log.append("s", note("3"))
    receipt = attempt()

    assert (receipt.first_seq, receipt.last_seq, receipt.appended, receipt.duplicates) == (1, 2, 0, 2)
    assert ids(log.read("s")) == ["1", "2", "3"]


def test_a_commit_in_doubt_stays_so_until_its_receipt(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal in between settles nothing: the repeat after it is recognised too."""
    log = case.open(retry_for_s=0.0)
    LostReplies(monkeypatch).left = 1
    refused(lambda: log.append("s", note("1")), OutcomeUnknown, "OUTCOME_UNKNOWN")
    log.append("s", note("2"))
    client = cast("Any", case.store.client)
    client.config_set("maxmemory", 1)
    try:
        refused(lambda: log.append("s", note("1")), Unavailable, "SERVER_OUT_OF_MEMORY")
    finally:
        client.config_set("maxmemory", 0)

    assert log.append("s", note("1")).duplicates == 1
    assert ids(log.read("s")) == ["1", "2"]


def test_a_doubt_changes_nothing_for_other_commits(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be encoded is refused alone, as ever."""
    log = case.open(retry_for_s=0.0)
    LostReplies(monkeypatch).left = 1
    refused(lambda: log.append("s", note("1")), OutcomeUnknown, "OUTCOME_UNKNOWN")

    large, small = log.append_many([Append("s", (note(text="x" * 300_000),)), Append("s", notes("2"))])

    assert isinstance(large, Refused)
    assert isinstance(small, Receipt)


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "SERVER_OUT_OF_MEMORY"),
        ("READONLY You can't write against a read only replica.", "SERVER_READ_ONLY"),
        ("MISCONF Errors writing to the AOF file: No space left on device", "SERVER_CANNOT_PERSIST"),
        ("NOREPLICAS Not enough good replicas to write.", "SERVER_LACKS_REPLICAS"),
        ("LOADING Redis is loading the dataset in memory", "SERVER_LOADING"),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "SERVER_CUT_OFF"),
        ("BUSY Redis is busy running a script.", "SERVER_BUSY"),
        ("NOAUTH Authentication required.", "ACCESS_DENIED"),
        ("WRONGPASS invalid username-password pair or user is disabled.", "ACCESS_DENIED"),
        ("NOPERM User producer has no permissions to run the 'fcall' command", "ACCESS_DENIED"),
        ("ERR Function not found", "FUNCTIONS_MISSING"),
        ("STORE_MISSING there is no store here", "STORE_MISSING"),
        ("ERR something else", "SERVER_ERROR"),
    ],
)
def test_an_error_reply_becomes_a_typed_error(reply: str, code: str) -> None:
    """Whatever redis-py makes of an error reply, its code tells what to do, and its cause holds the server's words."""
    error = connection_error(cast("Any", BaseParser).parse_error(reply))

    assert error.code == code
    assert reply in error.cause


def test_a_server_out_of_memory_refuses_appends_and_serves_reads(
    server_url: str, make_store: Callable[..., Store]
) -> None:
    """With no memory left an append says so and writes nothing; reading goes on, and so does appending afterwards."""
    store = make_store(server_url)
    log = store.open()
    log.append("s", note("1"))
    before = store.snapshot()
    store.client.config_set("maxmemory", "1")
    try:
        refused(lambda: log.append("s", note("2")), Unavailable, "SERVER_OUT_OF_MEMORY")
        assert ids(log.read("s")) == ["1"]
        assert store.snapshot() == before
    finally:
        store.client.config_set("maxmemory", "0")
    assert log.append("s", note("2")).last_seq == 2


def test_no_password_is_shown() -> None:
    """A URL in a cause or a log line has no password in it."""
    assert without_password("redis://user:secret@host:6379/0") == "redis://user:***@host:6379/0"
    assert without_password("redis://host:6379/0") == "redis://host:6379/0"
    assert without_password("redis://:abc/sec@ret@host[0") == "redis://:***@host[0"
    error = refused(lambda: connect(Connecting("http://user:secret@host/0")), Misconfigured, "SETTING_INVALID")
    assert "secret" not in str(error)


# -- damage ----------------------------------------------------------------------------------------------------------


def refused_without_a_trace(case: Case, session: str, events: tuple[Event, ...], code: str) -> MusterError:
    """An append that must be refused as damage, and leave every key as it is."""
    before = case.store.snapshot()
    error = refused(lambda: case.log.append(session, events), Damaged, code)
    assert case.store.snapshot() == before
    return error


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_session_without_its_head_takes_no_append(case: Case, count: int) -> None:
    """A head that is missing is not taken for a new session, because the registry knows better."""
    case.log.append("s", notes("1", "2", "3"))
    case.store.client.delete(case.store.keyspace.of("s").head("s"))

    refused_without_a_trace(case, "s", notes(*map(str, range(10, 10 + count))), "HEAD_MISSING")

    assert ids(case.log.read("s")) == ["1", "2", "3"]


def test_a_head_that_is_none_takes_no_append(case: Case) -> None:
    """A head that cannot be read is damage, for the one session alone."""
    case.log.append("s", note("1"))
    case.store.client.set(case.store.keyspace.of("s").head("s"), "nonsense")

    refused_without_a_trace(case, "s", notes("2"), "HEAD_MISSING")
    refused(lambda: case.log.head("s"), Damaged, "HEAD_MISSING")
    answers = case.log.append_many([Append("s", notes("2")), Append("t", notes("1"))])

    assert isinstance(answers[0], Damaged)
    assert isinstance(answers[1], Receipt)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_a_head_behind_its_log_takes_no_append(case: Case, count: int) -> None:
    """A head that was rolled back is noticed, whether the new commit would end before or behind the end of the log."""
    key = case.store.keyspace.of("s").head("s")
    case.log.append("s", note("1"))
    old = cast("bytes", case.store.client.get(key))
    case.log.append("s", notes("2", "3"))
    case.log.append("s", note("4"))
    case.store.client.set(key, old)

    refused_without_a_trace(case, "s", notes(*map(str, range(10, 10 + count))), "LOG_AHEAD")

    assert ids(case.log.read("s")) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("count", [1, 2])
def test_damage_stops_the_later_commits_of_the_session_too(case: Case, count: int) -> None:
    """After a commit that damage refused, no later one of the session lands; those of other sessions do."""
    key = case.store.keyspace.of("s").head("s")
    case.log.append("s", note("1"))
    old = cast("bytes", case.store.client.get(key))
    case.log.append("s", note("2"))
    case.store.client.set(key, old)
    commit = notes(*map(str, range(10, 10 + count)))

    repeat = Append("s", commit, known=Position(1))
    answers = case.log.append_many([repeat, Append("s", notes("5")), repeat, Append("t", notes("1"))])

    assert [getattr(answer, "code", "appended") for answer in answers] == ["LOG_AHEAD"] * 3 + ["appended"]
    assert ids(case.log.read("s")) == ["1", "2"]
    assert case.store.total() == 3


def test_a_quarantined_session_is_read_and_not_written(case: Case) -> None:
    """Quarantine refuses appends with its reason, keeps the log readable, and recognises what is there already."""
    first = case.log.append("s", notes("1", "2"), expected=0)
    keys = case.store.keyspace.of("s")
    cast("Any", case.store.client).execute_command(
        "FCALL", "muster_quarantine_1", 2, keys.head("s"), keys.hold("s"), "s", "LOG_ALTERED", "2"
    )

    error = refused_without_a_trace(case, "s", notes("3"), "QUARANTINED")
    refused(lambda: case.log.append("s", note("3"), expected=2), Damaged, "QUARANTINED")

    assert (error.facts["reason"], error.facts["first_bad_seq"]) == ("LOG_ALTERED", 2)
    head = case.log.head("s")
    assert head is not None
    assert head.quarantined
    assert (head.seq, head.digest) == (2, first.digest)
    assert ids(case.log.read("s")) == ["1", "2"]
    assert case.log.append("s", notes("1", "2"), expected=0).duplicates == 2


def test_time_never_runs_backwards_in_a_partition(case: Case) -> None:
    """When the server's clock jumps back, each call is one ms later than the one before it, in logs and feed."""
    future = case.log.append("s", note("1")).at_ms + 3_600_000
    keys = case.store.keyspace.of("s")
    case.store.client.hset(keys.meta, "at", future)
    other = next(name for name in (f"s{i}" for i in range(1000)) if case.store.keyspace.of(name) is keys)

    receipts = [case.log.append(session, note()) for session in ("s", other, "s")]

    assert [receipt.at_ms for receipt in receipts] == [future + 1, future + 2, future + 3]
    entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", case.store.client.xrange(keys.feed))
    assert [int(fields[b"t"]) for _, fields in entries[1:]] == [future + 1, future + 2, future + 3]


def test_a_commit_bears_the_time_of_its_feed_entry(case: Case) -> None:
    """By these times a subscriber whose place in the feed is gone tells what it was given."""
    receipts = case.log.append_many([Append(f"s{number % 7}", (note(),)) for number in range(50)])

    written = {(r.session, r.last_seq): r.at_ms for r in receipts if isinstance(r, Receipt)}
    assert len(written) == 50
    for keys in case.store.keyspace.partitions:
        for _, fields in cast("list[tuple[bytes, dict[bytes, bytes]]]", case.store.client.xrange(keys.feed)):
            for session, _, last, _ in msgspec.msgpack.decode(fields[b"c"]):
                assert int(fields[b"t"]) == written.pop((session, last))
    assert not written


# -- the feed --------------------------------------------------------------------------------------------------------


class Span(NamedTuple):
    """What one entry of the feed says of one commit."""

    session: str
    first: int
    last: int
    bytes: int


def feeds(store: Store) -> Iterator[list[tuple[int, list[Span]]]]:
    """The feed of each partition, as (running total, spans) for each entry."""
    for keys in store.keyspace.partitions:
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", store.client.xrange(keys.feed))
        yield [
            (int(id.partition(b"-")[0]), [Span(*span) for span in msgspec.msgpack.decode(fields[b"c"])])
            for id, fields in entries
        ]


def test_the_feed_covers_exactly_what_was_appended(case: Case) -> None:
    """Every commit stands in the feed once, in order, under the running total of events; what was refused does not."""
    names = [new_session() for _ in range(40)]
    for round in range(4):
        case.log.append_many(
            [
                Append(name, notes(*(f"{round}-{n}" for n in range(1 + (at + round) % 3))))
                for at, name in enumerate(names)
            ]
        )
        case.log.append_many([Append(name, notes("x"), expected=1000) for name in names])
        case.log.append(names[round], notes("0-0"), dedupe=True)

    found: dict[str, list[Span]] = {}
    for partition, entries in zip(case.store.keyspace.partitions, feeds(case.store), strict=True):
        total = 0
        for running, spans in entries:
            total += sum(span.last - span.first + 1 for span in spans)
            assert running == total
            for span in spans:
                found.setdefault(span.session, []).append(span)
        assert int(cast("bytes", case.store.client.hget(partition.meta, "total"))) == total
    assert found == {
        name: [Span(name, c.first_seq, c.last_seq, len(c.body)) for c in case.log.read(name)] for name in names
    }


def test_a_total_behind_its_feed_loses_no_entry(case: Case) -> None:
    """When the running total was rolled back, the next commit still stands in the feed, behind all that is there."""
    case.log.append("s", notes("1", "2", "3"))
    case.store.client.hset(case.store.keyspace.of("s").meta, "total", "1")

    case.log.append("s", notes("4", "5"))

    assert [[running for running, _ in entries] for entries in feeds(case.store) if entries] == [[3, 5]]
    assert case.store.total() == 5


def test_one_call_of_many_commits_is_one_entry_of_the_feed(case: Case) -> None:
    """The feed grows by one entry a call and partition, however many commits are in it."""
    session = new_session()

    case.log.append_many([Append(session, notes(str(n))) for n in range(100)])

    assert [len(entries) for entries in feeds(case.store) if entries] == [1]


# -- other producers -------------------------------------------------------------------------------------------------


def test_a_producer_without_messagepack_sends_json(case: Case) -> None:
    """A JSON body is chained as it came, byte by byte, and its events read like any others."""
    lines = [
        {"type": "start", "id": "1", "actor": "shell"},
        {
            "type": "note.made",
            "id": "2",
            "actor": "shell",
            "time": "2026-01-01T00:00:00Z",
            "data": {"ü": [1, 2.5, None]},
        },
    ]
    body = json.dumps(lines, ensure_ascii=False, indent=1).encode()

    word, *receipt = raw_append(case.store, "s", "s.", body)
    again = raw_append(case.store, "s", "s.", body, known="0")

    assert word == "APPENDED"
    assert again == ["DUPLICATE", *receipt]
    commits = list(case.log.read("s"))
    assert commits[0].body == body
    assert commits[0].events == [
        Event.of("start", actor="shell", id="1"),
        Event.of("note.made", actor="shell", id="2", time="2026-01-01T00:00:00Z", data={"ü": [1, 2.5, None]}),
    ]
    assert_chained("s", commits, case.log.head("s"))
    assert case.log.append("s", [note("3"), commits[0].events[1]], dedupe=True).duplicates == 1


def test_a_body_that_lies_about_its_events_is_found_when_read(case: Case) -> None:
    """The function cannot look into bodies: a commit with another number of events than stated is unreadable."""
    raw_append(case.store, "s", "..", encode_body([note("1")]))
    (commit,) = case.log.read("s")

    refused(lambda: commit.events, Damaged, "EVENT_UNREADABLE")


@pytest.mark.parametrize(
    ("wish", "answer"),
    [
        ({"kinds": ""}, ["REFUSED", "COMMIT_TOO_LARGE"]),
        ({"kinds": "z"}, ["REFUSED", "GATE_REFUSED", "1", "o", "0"]),
        ({"expected": "banana"}, ["REFUSED", "EXPECTED_INVALID", "banana"]),
        ({"expected": "-1"}, ["REFUSED", "EXPECTED_INVALID", "-1"]),
        ({"expected": "0.5"}, ["REFUSED", "EXPECTED_INVALID", "0.5"]),
        ({"expected": "3"}, ["CONFLICT", "0"]),
        ({"not_after": "1"}, ["REFUSED", "TOO_LATE"]),
    ],
)
def test_what_a_raw_producer_gets_wrong_is_refused(case: Case, wish: dict[str, str], answer: list[str]) -> None:
    """The function holds the rules it can see by itself, and writes nothing when one is broken."""
    before = case.store.snapshot()

    found = raw_append(case.store, "s", **{"kinds": ".", "body": encode_body([note("1")]), **wish})  # type: ignore[arg-type]

    assert found[: len(answer)] == answer
    assert case.store.snapshot() == before


def test_what_follows_a_commit_that_is_searched_for_stays_behind_it(case: Case) -> None:
    """The library sends both again, in the order they were given."""
    case.log.append("s", note("0"))
    case.log.append_many([Append("s", (note(),)) for _ in range(300)])

    far = Append("s", notes("1"), known=Position(1))
    near = Append("s", notes("2"), known=Position(301))
    first, second = case.log.append_many([far, near])

    assert isinstance(first, Receipt)
    assert isinstance(second, Receipt)
    assert (first.last_seq, second.last_seq) == (302, 303)


@pytest.mark.parametrize("behind", [256, 257])
def test_the_function_searches_no_more_than_256_commits(case: Case, behind: int) -> None:
    """A producer that is further behind is told where the session stands, and nothing is written for it."""
    log = case.log
    log.append_many([Append("s", (note(),)) for _ in range(behind)])
    head = log.head("s")
    assert head is not None

    answer = raw_append(case.store, "s", ".", encode_body([note("1")]), known="0")

    if behind == 256:
        assert answer[:3] == ["APPENDED", "257", "257"]
    else:
        assert answer == ["SEARCH", "257", head.digest]
        assert log.head("s") == head


@pytest.mark.parametrize("session", ["a b", "x\ny", "", "s" * 201, "s{1}", "sé"])
def test_a_session_id_that_is_no_identifier_is_refused_by_the_function_too(case: Case, session: str) -> None:
    """A raw producer cannot make a session that nobody could read by its name afterwards."""
    before = case.store.snapshot()

    assert raw_append(case.store, session, ".", encode_body([note("1")]))[:2] == ["REFUSED", "SESSION_INVALID"]
    assert case.store.snapshot() == before


def test_a_session_in_the_wrong_partition_is_refused(case: Case) -> None:
    """The function computes the partition itself at a session's first commit."""
    right = case.store.keyspace.partition_of("s")
    before = case.store.snapshot()

    found = raw_append(case.store, "s", ".", encode_body([note("1")]), partition=(right + 1) % 32)

    assert found == ["REFUSED", "PARTITION_WRONG", str(right)]
    assert case.store.snapshot() == before


def test_producers_in_each_others_way_lose_nothing(case: Case) -> None:
    """Many threads append the same events in other batches at the same time: each event is there once."""
    wanted = [str(n) for n in range(60)]

    def produce(size: int) -> int:
        log = case.store.open()
        batches = [notes(*wanted[at : at + size]) for at in range(0, len(wanted), size)]
        return sum(log.append("s", batch, dedupe=True).appended for batch in batches)

    with ThreadPoolExecutor(4) as producers:
        appended = list(producers.map(produce, [1, 7, 13, 60]))

    assert sum(appended) == len(wanted)
    assert sorted(ids(case.log.read("s")), key=int) == wanted
    assert_chained("s", list(case.log.read("s")), case.log.head("s"))


def test_one_of_two_wins_an_exact_seq(case: Case) -> None:
    """Of producers that expect the same seq at the same time, exactly one gets it; the others learn where it stands."""

    def produce(name: str) -> Receipt | Conflict:
        try:
            return log.append("s", note(name), expected=0)
        except Conflict as conflict:
            return conflict

    log = case.store.open()
    with ThreadPoolExecutor(8) as producers:
        answers = list(producers.map(produce, map(str, range(8))))

    assert [type(answer) for answer in answers].count(Receipt) == 1
    assert [answer.facts["actual"] for answer in answers if isinstance(answer, Conflict)] == [1] * 7


def test_one_log_is_shared_by_threads(case: Case) -> None:
    """A log may be used by many threads at once: every commit is there, and each thread's own are in its order."""
    log = case.store.open()

    def produce(name: int) -> None:
        for n in range(25):
            log.append("s", note(f"{name}-{n}"))

    with ThreadPoolExecutor(6) as producers:
        list(producers.map(produce, range(6)))

    found = ids(log.read("s"))
    for name in range(6):
        assert [id for id in found if id.startswith(f"{name}-")] == [f"{name}-{n}" for n in range(25)]
    assert_chained("s", list(log.read("s")), log.head("s"))
