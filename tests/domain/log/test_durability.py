"""What a receipt says of durability is what was proved for it: real servers, real settings, a real replica."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from domain import Misconfigured, OutcomeUnknown, Receipt, SessionLog
from domain.log import Connecting, connect, create_store
from domain.log.durability import parse_durability
from tests.conftest import Servers, Store
from tests.domain.log.logs import ids, note, refused
from tests.waiting import wait_until
from workers.embedded import EmbeddedServer


def short(error: Any) -> Receipt:
    """The receipt of a commit that is written and reached less than wanted."""
    assert isinstance(error, OutcomeUnknown)
    receipt = error.facts["receipt"]
    assert isinstance(receipt, Receipt)
    return receipt


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server of the test's own, whose settings it may change."""
    with Servers.make("valkey", tmp_path / "primary") as server:
        client = connect(Connecting(server.url))
        create_store(client, partitions=2)
        client.close()
        yield server


def opened(server: EmbeddedServer, durability: str, **connecting: Any) -> SessionLog:
    return SessionLog.open(Connecting(server.url, **connecting), durability=durability)


def test_local_is_said_of_a_server_that_syncs_every_write_and_of_no_other(server: EmbeddedServer) -> None:
    """The settings are looked at with every append; whatever is no proof leaves a written commit and an error."""
    with opened(server, "local") as log:
        client: Any = log.client
        first = short(refused(lambda: log.append("s", note("1")), OutcomeUnknown, "DURABILITY_SHORT"))
        client.config_set("appendfsync", "always")
        second = log.append("s", note("1"))
        third = log.append("s", note("2"))
        client.config_set("no-appendfsync-on-rewrite", "yes")
        fourth = short(refused(lambda: log.append("s", note("3")), OutcomeUnknown, "DURABILITY_SHORT"))
        client.config_set("no-appendfsync-on-rewrite", "no")
        client.config_set("appendonly", "no")
        fifth = short(refused(lambda: log.append("s", note("4")), OutcomeUnknown, "DURABILITY_SHORT"))

        assert [one.durability for one in (first, second, third, fourth, fifth)] == [
            "memory", "local", "local", "memory", "memory",
        ]  # fmt: skip
        assert (second.last_seq, second.duplicates) == (1, 1)
        assert ids(log.read("s")) == ["1", "2", "3", "4"]


def test_a_log_that_wants_no_more_than_memory_claims_no_more(store: Store) -> None:
    """What was not looked at is not claimed."""
    assert store.open().append("s", note("1")).durability == "memory"


def test_replicated_is_said_when_so_many_replicas_have_the_commit(server: EmbeddedServer, tmp_path: Path) -> None:
    """Also of a repeat through a new connection, which wrote nothing itself: that is followed by a real write."""
    with Servers.make("valkey", tmp_path / "replica") as replica:
        follower: Any = connect(Connecting(replica.url))
        follower.replicaof("127.0.0.1", server.port)
        wait_until(lambda: follower.info("replication")["master_link_status"] == "up")
        with opened(server, "replicated(1)") as log:
            assert log.append("s", note("1")).durability == "replicated(1)"
        assert replica.pid is not None
        os.kill(replica.pid, signal.SIGSTOP)
        try:
            with opened(server, "memory") as log:
                log.append("s", note("2"), expected=1)
            with opened(server, "replicated(1)", timeout_s=0.4) as log:
                again = lambda: log.append("s", note("2"), expected=1)  # noqa: E731
                found = short(refused(again, OutcomeUnknown, "DURABILITY_SHORT"))
                assert (found.durability, found.duplicates) == ("memory", 1)
                (doubt,) = refused(again, OutcomeUnknown, "DURABILITY_SHORT").doubts  # type: ignore[attr-defined]
                settled = log.resolve(doubt)
                assert settled is not None
                assert settled.last_seq == 2
        finally:
            os.kill(replica.pid, signal.SIGCONT)
        with opened(server, "replicated(1)") as log:
            repeated = log.append("s", note("2"), expected=1)
        assert (repeated.durability, repeated.duplicates) == ("replicated(1)", 1)
        follower.close()


def test_without_replicas_nothing_is_replicated(server: EmbeddedServer) -> None:
    """The wait ends, and the receipt is in the error."""
    with opened(server, "replicated(2)", timeout_s=0.2) as log:
        answers = log.append_many([])
        assert answers == []
        found = short(refused(lambda: log.append("s", note("1")), OutcomeUnknown, "DURABILITY_SHORT"))
        assert (found.durability, found.last_seq) == ("memory", 1)
        assert ids(log.read("s")) == ["1"]


@pytest.mark.parametrize(
    "word", ["", "disk", "replicated", "replicated(0)", "replicated(-1)", "replicated(x)", "Local"]
)
def test_an_unknown_word_is_refused(word: str) -> None:
    """There are three words, and the number of replicas is at least 1."""
    refused(lambda: parse_durability(word), Misconfigured, "SETTING_INVALID")


@pytest.mark.parametrize("word", ["memory", "local", "replicated(1)", "replicated(12)"])
def test_a_word_is_read_and_written_alike(word: str) -> None:
    """What a receipt says can be wanted."""
    assert parse_durability(word).word == word
    assert parse_durability(word).is_reached(word)
    assert parse_durability("replicated(1)").is_reached("replicated(2)")
    assert not parse_durability("replicated(2)").is_reached("replicated(1)")
    assert parse_durability("memory").is_reached(word)
