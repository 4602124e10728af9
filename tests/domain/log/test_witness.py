"""A server that came back without what it acknowledged: whoever was told notices, names it, writes nothing over it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from domain import Append, Damaged, Misconfigured, NotFound, Receipt, SessionLog, Unavailable
from domain.log import Connecting, connect, connection, create_store
from domain.log.contract import Position
from domain.log.epoch import Epochs
from domain.log.exchange import Sending, ServerSeen
from domain.log.feed import Span
from domain.log.protocol import encode_append
from domain.log.witness import Loss, Witness
from projections.catchup import Batch
from projections.drift import Validator
from projections.lease import Leases
from projections.store import ProjectionStore
from tests.conftest import Servers, Store
from tests.domain.log.logs import ids, note, refused
from workers.embedded import EmbeddedServer
from workers.process import Projector, look_at_server


class Server:
    """A server that is put back to where it was, as a restore or a failover does."""

    def __init__(self, server: EmbeddedServer, directory: Path) -> None:
        self._server = server
        self._saved = directory / "saved"
        self._lost = directory / "lost"
        self._logs: list[SessionLog] = []
        self.new_store()

    def new_store(self) -> None:
        client = connect(Connecting(self._server.url))
        create_store(client, partitions=2)
        client.close()

    def log(self) -> SessionLog:
        self._logs.append(SessionLog.open(self._server.url))
        return self._logs[-1]

    def save(self) -> None:
        """Remembers what is there now."""
        self._server._end_process(10.0)
        shutil.copytree(self._server.data_dir, self._saved)
        self._server.restart()

    def go_back(self) -> None:
        """Kills the server and puts it back to what was saved."""
        self._swap(self._saved, self._lost)

    def bring_back(self) -> None:
        """Puts it to where it was before it went back."""
        self._swap(self._lost, None)

    def lose_everything(self) -> None:
        self._server._end_process(10.0)
        shutil.rmtree(self._server.data_dir / "appendonlydir")
        self._server.restart()

    def close(self) -> None:
        for log in self._logs:
            log.close()

    def _swap(self, take: Path, keep: Path | None) -> None:
        self._server._end_process(10.0)
        files = self._server.data_dir / "appendonlydir"
        if keep is not None:
            shutil.copytree(self._server.data_dir, keep)
        shutil.rmtree(files)
        shutil.copytree(take / "appendonlydir", files)
        self._server.restart()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Servers.make("valkey", tmp_path / "data") as embedded:
        server = Server(embedded, tmp_path)
        yield server
        server.close()


def seqs(error: Any) -> list[tuple[int, int]]:
    """The lost commits that an error names."""
    return [(receipt.first_seq, receipt.last_seq) for receipt in error.facts["lost"]]


def append(log: SessionLog, session: str, *ids: str) -> list[Receipt]:
    return [log.append(session, note(id)) for id in ids]


def test_a_lost_tail_is_named_by_whoever_was_told_of_it(server: Server) -> None:
    """Each lost commit by its receipt, with the first seq that is missing; other sessions go on."""
    log = server.log()
    append(log, "s", "1", "2", "3")
    append(log, "t", "1")
    server.save()
    append(log, "s", "4")
    log.append("s", [note("5"), note("6")])
    server.go_back()

    assert log.append("t", note("2")).last_seq == 2
    error = refused(lambda: log.append("s", note("7")), Damaged, "TAIL_LOST")

    assert error.facts["first_bad_seq"] == 4
    assert seqs(error) == [(4, 4), (5, 6)]
    assert ids(log.read("s")) == ["1", "2", "3"]
    assert list(log.losses) == ["s"]


def test_other_commits_at_the_same_seqs_are_a_fork(server: Server) -> None:
    """A producer that was told of others there is refused; the one that wrote what is there goes on."""
    log = server.log()
    append(log, "s", "1", "2", "3")
    server.save()
    append(log, "s", "4", "5")
    server.go_back()
    other = server.log()
    append(other, "s", "4b", "5b", "6b")

    error = refused(lambda: log.append("s", note("6")), Damaged, "FORK")

    assert error.facts["first_bad_seq"] == 4
    assert seqs(error) == [(4, 4), (5, 5)]
    assert other.append("s", note("7b")).last_seq == 7


def test_a_changed_server_is_compared_with_all_that_is_known_before_the_next_answer(server: Server) -> None:
    """A loss in a session that nobody appends to is found by an append to another one, and is reported."""
    log = server.log()
    server.save()
    receipts = append(log, "quiet", "1", "2")
    server.go_back()

    log.append("busy", note("1"))

    (report,) = Epochs(server.log()).reports()
    assert (report.loss.session, report.loss.code, report.loss.first_bad_seq) == ("quiet", "TAIL_LOST", 1)
    assert list(report.loss.receipts) == receipts


def test_a_server_that_only_restarted_is_trusted_again(server: Server) -> None:
    """Everything that is known is there: nothing is reported, and appends go on."""
    log = server.log()
    append(log, "s", "1", "2")
    server.save()

    assert log.append("s", note("3")).last_seq == 3
    assert log.compare() == []
    assert list(Epochs(log).reports()) == []


def test_the_validator_names_what_witnesses_reported(server: Server) -> None:
    """As one critical finding of the log, also where the whole session is gone; until the loss is accepted."""
    log = server.log()
    append(log, "s", "1")
    server.save()
    append(log, "s", "2")
    append(log, "gone", "1")
    server.go_back()
    log.compare()

    def found() -> list[tuple[Any, ...]]:
        findings = Validator(ProjectionStore(log.client, log.keyspace), log).everything()
        return [(one.code, one.kind, one.session, one.first_bad_seq) for one in findings]

    assert sorted(found()) == [("TAIL_LOST", "log", "gone", 1), ("TAIL_LOST", "log", "s", 2)]
    Epochs(log).accept("tester")
    assert found() == []


def test_an_accepted_loss_lets_its_producers_go_on(server: Server) -> None:
    """The one that reported it at once; one that had not heard yet is told once, and what it knew is reported too."""
    log, unheard = server.log(), server.log()
    append(log, "s", "1")
    append(unheard, "u", "1")
    server.save()
    append(log, "s", "2")
    append(unheard, "u", "2")
    server.go_back()
    refused(lambda: log.append("s", note("3")), Damaged, "TAIL_LOST")
    operator = server.log()

    assert Epochs(operator).accept("tester") == (2, 1)

    assert log.append("s", note("3")).last_seq == 2
    assert log.losses == {}
    error = refused(lambda: unheard.append("u", note("3")), Damaged, "TAIL_LOST")
    assert seqs(error) == [(2, 2)]
    assert [report.loss.session for report in Epochs(operator).reports()] == ["u"]
    assert unheard.append("u", note("3")).last_seq == 2
    assert server.log().identity.epoch == 2
    audit: Any = operator.client
    entries = audit.xrange(operator.keyspace.of("s").audit)
    assert [fields[b"what"] for _, fields in entries] == [b"loss accepted"]


def test_what_comes_back_is_taken_back(server: Server) -> None:
    """When the server that holds the commits is there again, appends go on and the report is gone."""
    log = server.log()
    append(log, "s", "1")
    server.save()
    append(log, "s", "2")
    server.go_back()
    refused(lambda: log.append("s", note("3")), Damaged, "TAIL_LOST")
    server.bring_back()

    assert log.append("s", note("3")).last_seq == 3
    assert log.losses == {}
    assert list(Epochs(log).reports()) == []


def test_a_worker_is_a_witness_of_the_views_it_wrote(server: Server) -> None:
    """It was told nothing, but knows where the sessions stood; when the server changed it compares and reports."""
    producer, log = server.log(), server.log()
    append(producer, "s", "1")
    server.save()
    append(producer, "s", "2")
    partition = log.keyspace.partition_of("s")
    store = ProjectionStore(log.client, log.keyspace)
    token = Leases(log.client, log.keyspace, "worker").claim(partition, ttl_ms=60_000)
    assert token is not None
    total = store.total(partition)
    batch = Batch(partition, token, None, total, [Span("s", 1, 2)])
    Projector(store, log, "worker").project(batch)
    producer.close()
    server.go_back()

    log.head("s")
    look_at_server(log)

    (report,) = Epochs(server.log()).reports()
    assert (report.loss.session, report.loss.code, report.loss.first_bad_seq) == ("s", "TAIL_LOST", 2)


def test_a_producer_is_let_into_a_partition_that_is_not_raised_yet(server: Server) -> None:
    """Raising the epoch partition by partition keeps nobody out who compared already."""
    log = server.log()
    append(log, "s", "1")
    keys = log.keyspace.of("s")
    client: Any = log.client
    client.hset(log.keyspace.store_meta, "epoch", 7)

    ahead = server.log()

    assert ahead.identity.epoch == 7
    assert ahead.append("s", note("2")).last_seq == 2
    client.hset(keys.lost, "s w", msgspec.json.encode(Loss("s", "TAIL_LOST", 9, Position(9, "0" * 20), ())))
    assert Epochs(ahead).accept("tester") == (8, 1)


def test_nothing_is_accepted_where_nothing_was_lost(server: Server) -> None:
    """The epoch is raised for a reason only."""
    refused(lambda: Epochs(server.log()).accept("tester"), NotFound, "NOTHING_LOST")
    assert Epochs(server.log()).show().epoch == 1


def test_an_emptied_server_is_not_taken_for_a_new_one(server: Server) -> None:
    """A log that is open on it, and one that opens it, are both told that the store is not there."""
    log = server.log()
    append(log, "s", "1")
    server.lose_everything()

    refused(lambda: log.append("s", note("2")), Misconfigured, "FUNCTIONS_MISSING")
    refused(server.log, Misconfigured, "STORE_MISSING")
    server.new_store()
    refused(lambda: log.append("s", note("2")), Misconfigured, "STORE_CHANGED")


def test_the_interval_at_risk_ends_with_the_servers_start(server: Server) -> None:
    """It begins with the last event that the server still has from before."""
    log = server.log()
    (kept,) = append(log, "s", "1")
    server.save()

    state = Epochs(server.log()).show()
    log.append("s", note("2"))

    assert state.at_risk_from_ms is None or state.at_risk_from_ms == kept.at_ms
    assert state.reports == ()


def test_a_session_of_which_nothing_is_applied_is_no_loss(store: Store) -> None:
    """A worker that parked a session at its first commit knows nothing that could be missing."""
    store.open().append("s", note("1"))
    worker = store.open()
    worker.witness.saw("s", Position(0, "0" * 20))

    assert worker.compare() == []


# -- at a new epoch --------------------------------------------------------------------------------------------------


def accepted(store: Store, session: str = "other") -> None:
    """Somebody knows of a loss in a session, and an operator accepted it."""
    producer = store.open()
    refused(lambda: producer.append(session, note(), known=Position(9, "0" * 20)), Damaged, "TAIL_LOST")
    Epochs(producer).accept("tester")


def on(log: SessionLog, wire: Any, replies: Any = None) -> Any:
    """Runs a wire to its end, from these replies on."""
    try:
        sending = wire.send(replies)
        while True:
            sending = wire.send(connection.send(log.client, sending.commands, log.connecting, wrote=sending.writes))
    except StopIteration as done:
        return done.value


def test_a_lease_is_taken_at_a_new_epoch_as_an_append_is(store: Store) -> None:
    """A producer that begins with a lease or a policy goes on like any other."""
    log = store.open()
    accepted(store)

    with log.lease("s", "agent-1") as lease:
        assert lease.append(note("1")).last_seq == 1
    accepted(store)
    log.set_policy("s", "any")


def test_a_thread_that_comes_second_to_a_new_epoch_goes_on_too(store: Store) -> None:
    """Its refusal was under way while another thread adopted the epoch."""
    log = store.open()
    accepted(store)
    request = encode_append(log._completed(Append("s", (note("1"),))))
    wire = log._answering([request])
    sending = next(wire)
    assert isinstance(sending, Sending)
    replies = connection.send(log.client, sending.commands, log.connecting, wrote=True)
    log.append("s", note("2"))

    (answer,) = on(log, wire, replies)

    assert isinstance(answer, Receipt)
    assert ids(log.read("s")) == ["2", "1"]


def test_what_fails_at_a_new_epoch_takes_no_receipt_with_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One partition is raised already, another not yet: what is written there is told, whatever becomes of the rest."""
    log = store.open(retry_for_s=0.0)
    assert store.keyspace.partition_of("s-1") != store.keyspace.partition_of("s-7")
    for meta in (store.keyspace.store_meta, store.keyspace.of("s-7").meta):
        store.client.hset(meta, "epoch", "2")
    send = connection._send_once

    def deaf(client: Any, commands: list[Any], *timing: Any) -> list[Any]:
        if commands[0][0] == "HMGET":
            raise redis.ConnectionError("Connection closed by server.")
        return send(client, commands, *timing)

    monkeypatch.setattr(connection, "_send_once", deaf)

    written, other = log.append_many(
        [Append("s-1", (note("1"),), known=Position(0)), Append("s-7", (note("1"),), known=Position(0))]
    )

    assert isinstance(written, Receipt)
    assert isinstance(other, Unavailable)


def test_what_is_accepted_is_not_reported_again(store: Store) -> None:
    """A commit that was in doubt when its session lost its tail knows what was accepted meanwhile, and lands."""
    log = store.open()
    append(log, "s", "1")
    gone = Position(7, "0" * 20)
    log.witness.saw("s", gone)
    log._doubt([encode_append(Append("s", (note("2"),), known=gone))])
    assert [loss.session for loss in log.compare()] == ["s"]
    Epochs(store.open()).accept("tester")
    append(log, "t", "1")
    assert log.identity.epoch == 2

    assert log.append("s", note("2")).last_seq == 2
    assert log.losses == {}
    assert list(Epochs(log).reports()) == []


def test_accepting_that_broke_off_is_finished(store: Store) -> None:
    """The reports of the partitions it reached are gone; the others are raised all the same."""
    log = store.open()
    store.client.hset(store.keyspace.store_meta, "epoch", "2")
    store.client.hset(store.keyspace.partitions[0].meta, "epoch", "2")

    Epochs(log).accept("tester")

    metas = [store.keyspace.store_meta, *(keys.meta for keys in store.keyspace.partitions)]
    assert {store.client.hget(meta, "epoch") for meta in metas} == {b"3"}


@pytest.mark.parametrize("arguments", [("x", "me"), ("2",), ("1.5", "me"), ("2", "me", "more")])
def test_a_raise_that_makes_no_sense_accepts_nothing(store: Store, arguments: tuple[str, ...]) -> None:
    """What was reported stays, and no audit entry says otherwise."""
    log = store.open()
    refused(lambda: log.append("s", note(), known=Position(9, "0" * 20)), Damaged, "TAIL_LOST")
    keys, client = store.keyspace.of("s"), log.client
    before = store.snapshot()

    with pytest.raises(redis.ResponseError, match="ARGUMENTS_INVALID"):
        client.fcall("muster_raise_1", 3, keys.meta, keys.lost, keys.audit, log.identity.store, *arguments)

    assert store.snapshot() == before


# -- comparing -------------------------------------------------------------------------------------------------------


def test_a_comparison_that_cannot_be_made_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not say that nothing is lost, and stays due."""
    log = store.open(retry_for_s=0.0)
    append(log, "s", "1")

    def deaf(*_: Any) -> list[Any]:
        raise redis.ConnectionError("Connection closed by server.")

    with monkeypatch.context() as patched:
        patched.setattr(connection, "_send_once", deaf)
        refused(log.compare, Unavailable, "UNREACHABLE")
    log.witness.saw("s", Position(7, "0" * 20))
    assert [loss.session for loss in log.compare_if_changed()] == ["s"]


def test_a_damaged_session_keeps_no_other_from_being_compared(store: Store) -> None:
    """The comparison is made for all others, once."""
    log = store.open()
    append(log, "bad", "1")
    append(log, "s", "1")
    key = store.keyspace.of("bad").log("bad")
    store.client.delete(key)
    store.client.set(key, "x")
    log.witness.saw("s", Position(7, "0" * 20))

    assert [loss.session for loss in log.compare()] == ["s"]
    assert log.compare_if_changed() == []
    store.client.delete(key)


@pytest.mark.parametrize(("seen", "code", "first_bad_seq"), [(2, "FORK", 2), (3, "TAIL_LOST", 3), (9, "TAIL_LOST", 3)])
def test_who_knows_a_position_only_names_the_first_seq_that_differs(
    store: Store, seen: int, code: str, first_bad_seq: int
) -> None:
    """A worker has no receipts: what is missing begins at the end of the log, or where it saw something else."""
    append(store.open(), "s", "1", "2")
    worker = store.open()
    worker.witness.saw("s", Position(seen, "0" * 20))

    (loss,) = worker.compare()

    assert (loss.code, loss.first_bad_seq, loss.receipts) == (code, first_bad_seq, ())


def test_every_page_of_sessions_is_compared(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sessions are known."""
    monkeypatch.setattr("domain.log.witness.COMPARED_TOGETHER", 2)
    log = store.open()
    for session in "abcde":
        log.witness.saw(session, Position(1, "0" * 20))

    assert [loss.session for loss in log.compare()] == list("abcde")


def test_a_report_of_what_is_there_again_is_taken_back(store: Store) -> None:
    """On the server that it was written to."""
    log = store.open()
    append(log, "s", "1")
    key = store.keyspace.of("s").log("s")
    store.client.rename(key, key + "-away")
    assert [loss.session for loss in log.compare()] == ["s"]
    assert len(list(Epochs(log).reports())) == 1
    store.client.rename(key + "-away", key)

    assert log.compare() == []
    assert list(Epochs(log).reports()) == []


def test_a_witness_forgets_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions and receipts are bounded."""
    monkeypatch.setattr("domain.log.witness.REMEMBERED_SESSIONS", 2)
    monkeypatch.setattr("domain.log.witness.REMEMBERED_RECEIPTS", 3)
    witness = Witness()
    for seq in range(1, 6):
        witness.told(Receipt("s", seq, seq, "0" * 20, 0, 1))
    assert list(witness._receipts["s"]) == [3, 4, 5]

    for session in "tu":
        witness.told(Receipt(session, 1, 1, "0" * 20, 0, 1))

    assert witness.sessions() == ["t", "u"]
    assert witness.known("s") is None
    assert "s" not in witness._receipts


@pytest.mark.parametrize("changed", ["run_id", "master_replid"])
def test_either_id_tells_another_server(changed: str) -> None:
    """A restart changes the one, a failover within a process's life the other."""
    seen = ServerSeen()
    ids = {"run_id": "a", "master_replid": "b"}

    def meet() -> bool:
        seen.met("\r\n".join(f"{name}:{value}" for name, value in ids.items()).encode())
        return seen.changed

    assert not meet()
    assert not meet()
    ids[changed] = "c"
    assert meet()


def test_the_doubts_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten first."""
    monkeypatch.setattr("domain.log.exchange.REMEMBERED_DOUBTS", 2)
    log = store.open()
    requests = [encode_append(Append("s", (note(id),), known=Position(0))) for id in "123"]
    log._doubt(requests)

    assert [body for _, body in log._doubted] == [request.body for request in requests[1:]]
