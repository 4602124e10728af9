"""Read-only mode on a real server: no append is taken, a repeat still gets its receipt, and nobody is locked out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from domain import Append, Event, Receipt, SessionLog, Unavailable
from domain.log import Connecting
from domain.log.read_only import Closed, ReadOnlyMode
from tests.conftest import ENVIRONMENT, Store
from tests.domain.log.logs import note, refused
from tests.waiting import wait_until


@pytest.fixture(params=["valkey", "redis7"])
def store(request: pytest.FixtureRequest, make_store: Callable[..., Store]) -> Store:
    name = "server_url" if request.param == "valkey" else "redis7_url"
    return make_store(request.getfixturevalue(name), partitions=4)


def test_no_append_is_taken_and_all_else_goes_on(store: Store) -> None:
    """The error says who closed the store, why and since when; reads and leases go on, and opening ends it."""
    log = store.open()
    log.append("s", note("1"))
    mode = ReadOnlyMode(log)

    assert mode.close("ann", "the disk is exchanged") == 4

    before = store.snapshot()
    error = refused(lambda: log.append("s", note("2")), Unavailable, "READ_ONLY")
    assert isinstance(error, Unavailable)
    assert "by ann: the disk is exchanged" in error.cause
    assert (error.facts["who"], error.facts["until_ms"]) == ("ann", None)
    refused(lambda: log.append("new", note("3"), expected="new"), Unavailable, "READ_ONLY")
    refused(lambda: log.append("s", note("4"), dedupe=True), Unavailable, "READ_ONLY")
    refused(lambda: log.fork("s", 1, "copy"), Unavailable, "READ_ONLY")
    answers = log.append_many([Append("s", (note("5"),)), Append("t", (note("6"),))])
    assert [getattr(answer, "code", None) for answer in answers] == ["READ_ONLY", "READ_ONLY"]
    assert store.snapshot() == before
    assert [commit.last_seq for commit in log.read("s")] == [1]
    log.set_policy("s", "strict")

    assert mode.open("ann") == 4
    assert mode.standing() is None
    assert log.append("s", note("2"), expected=1).last_seq == 2
    assert mode.open("ann") == 0
    client: Any = log.client
    audited = [fields[b"what"] for _, fields in client.xrange(log.keyspace.audit)]
    assert audited == [b"store closed for appends", b"store opened for appends"]


def test_a_repeat_gets_the_receipt_of_what_is_there(store: Store) -> None:
    """Whoever had no reply before the store was closed is told what became of it."""
    log = store.open()
    first = log.append("s", note("1"), expected="new")
    ReadOnlyMode(log).close("ann", "x")

    again = log.append("s", note("1"), expected="new")

    assert (again.position, again.appended, again.duplicates) == (first.position, 0, 1)


def test_what_is_closed_by_itself_lapses(store: Store) -> None:
    """It need not be opened: who closed it may have died. While it is closed anew it is closed since the first time."""
    log = store.open()
    mode = ReadOnlyMode(log)
    assert mode.close("serve", "disk is critical", lapse_ms=60_000) == 4
    first = mode.standing()
    assert first is not None
    assert first.is_by_itself
    assert mode.close("serve", "disk is critical", lapse_ms=300) == 0
    standing = mode.standing()
    assert standing is None or standing.since_ms == first.since_ms

    def is_taken() -> bool:
        (answer,) = log.append_many([Append("s", (note("1"),))])
        return isinstance(answer, Receipt)

    wait_until(is_taken, message="it lapses")
    assert mode.standing() is None


def test_a_persons_word_stands(store: Store) -> None:
    """What closes and opens by itself leaves what a person closed; a person opens both."""
    log = store.open()
    mode = ReadOnlyMode(log)
    mode.close("ann", "by hand")

    assert mode.close("serve", "disk", lapse_ms=60_000) == 0
    assert mode.open("serve", by_itself=True) == 0

    standing = mode.standing()
    assert isinstance(standing, Closed)
    assert (standing.who, standing.until_ms) == ("ann", None)
    mode.open("ann")
    mode.close("serve", "disk", lapse_ms=60_000)
    assert mode.open("serve", by_itself=True) == 4
    mode.close("serve", "disk", lapse_ms=60_000)
    assert mode.open("ann") == 4
    assert mode.standing() is None


def test_a_spool_is_for_outages_alone(store: Store, tmp_path: Path) -> None:
    """A refused append is told at once; what waits in the spool goes on waiting, and goes when the store opens."""
    log = store.open()
    mode = ReadOnlyMode(log)
    mode.close("ann", "x")
    connecting = Connecting(store.url, retry_for_s=0)
    spool = tmp_path / "spool.db"
    with SessionLog.open(connecting, environment=ENVIRONMENT, namespace=store.namespace, spool=spool) as spooling:
        refused(lambda: spooling.append("s", Event.of("start", actor="a", id="1")), Unavailable, "READ_ONLY")
        mode.open("ann")
        assert spooling.append("s", Event.of("start", actor="a", id="1")).last_seq == 1
