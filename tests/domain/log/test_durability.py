"""What a receipt says of durability is what was proved for it: real servers, real settings, a real replica."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from domain import Append, Misconfigured, OutcomeUnknown, Receipt, SessionLog
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
        with connect(Connecting(server.url)) as client:
            client.config_set("repl-diskless-sync-delay", 0)  # nobody waits for a second replica to come
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


@pytest.mark.parametrize("way", ["dedupe", "search", "many"])
def test_a_repeat_that_is_found_by_reading_needs_its_proof_too(server: EmbeddedServer, way: str) -> None:
    """However the library finds that a commit is there already, it acknowledges no less than is wanted."""

    def attempt() -> Receipt:
        if way != "many":
            return log.append("s", note("1"), dedupe=way == "dedupe")
        (answer,) = log.append_many([Append("s", (note("1"),))])
        if isinstance(answer, OutcomeUnknown):
            raise answer
        assert isinstance(answer, Receipt)
        return answer

    with opened(server, "local") as log, opened(server, "memory") as other:
        refused(attempt, OutcomeUnknown, "DURABILITY_SHORT")
        if way != "dedupe":
            other.append_many([Append("s", (note(),)) for _ in range(300)])
        found = short(refused(attempt, OutcomeUnknown, "DURABILITY_SHORT"))
        client: Any = log.client
        client.config_set("appendfsync", "always")
        proved = attempt()

        assert (found.durability, found.appended, found.last_seq) == ("memory", 0, 1)
        assert (proved.durability, proved.appended, proved.last_seq) == ("local", 0, 1)
        assert log.append("s", [note("1"), note("new")], dedupe=True).durability == "local"


def test_only_what_the_server_has_is_proved(server: EmbeddedServer) -> None:
    """A repeat that was answered by another server, which went away since, is proved by nothing."""
    with opened(server, "memory") as log:
        receipt = log.append("s", note("1"))
    with opened(server, "local") as log:
        client: Any = log.client
        client.config_set("appendfsync", "always")

        assert log.drive(log._proving([receipt])) == "local"
        for other in ({"digest": "0" * 20}, {"session": "t"}, {"last_seq": 2}):
            assert log.drive(log._proving([structs.replace(receipt, **other)])) == "memory"
        client.hset(log.keyspace.of("s").meta, "touched", "no number")
        assert log.drive(log._proving([receipt])) == "memory"


@pytest.mark.parametrize("which", range(3))
def test_each_look_at_the_settings_counts(which: int) -> None:
    """The settings before and after, and the state of the file."""
    settings = [b"appendonly", b"yes", b"appendfsync", b"always", b"no-appendfsync-on-rewrite", b"no"]
    state = b"aof_enabled:1\r\naof_last_write_status:ok\r\naof_rewrite_in_progress:0\r\naof_rewrite_scheduled:0\r\n"
    replies: list[Any] = [settings, settings, state]
    durability = parse_durability("local")

    assert len(durability.before()) + len(durability.after(1)) == len(replies)
    assert durability.proved(replies) == "local"
    for bad in (
        [[b"everysec" if value == b"always" else value for value in settings]] * 2
        + [state.replace(b"status:ok", b"status:err")],
        [[], [], state.replace(b"in_progress:0", b"in_progress:1")],
        [Exception(), Exception(), state.replace(b"scheduled:0", b"scheduled:1")],
    ):
        assert durability.proved([bad[at] if at == which else reply for at, reply in enumerate(replies)]) == "memory"
