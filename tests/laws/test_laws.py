"""The laws of Muster, as far as the log alone can show them. Read this first.

Each test is one law of the design. What the log promises in detail is in `tests/domain/log/test_contract.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from domain import Append, Conflict, Event, MusterError, Receipt, Refused
from domain.codec import chain, genesis
from domain.log import Connecting, connect, create_store
from domain.log.keys import KeyClass
from domain.log.redis_streams import SessionLog
from tests.conftest import Servers, Store, row_of


def did(type: str, id: str, actor: str = "agent-7") -> Event:
    return Event.of(type, actor=actor, id=id)


@pytest.mark.parametrize("server", ["valkey", "redis7"])
def test_law_2_an_acknowledged_commit_survives_the_death_of_the_server(tmp_path: Path, server: str) -> None:
    """What was acknowledged is there, unchanged, after the server was killed with SIGKILL; and so is the way on."""
    with Servers.make(server, tmp_path / server) as running:
        with connect(Connecting(running.url)) as client:
            create_store(client)
        with SessionLog.open(running.url) as log:
            receipts = [log.append(f"s-{n % 7}", [did("modified", f"{n}")]) for n in range(200)]

            running.kill()
            running.restart()

            for receipt in receipts:
                (commit,) = log.read(receipt.session, after=receipt.first_seq - 1, to=receipt.last_seq)
                assert (commit.digest, commit.at_ms) == (receipt.digest, receipt.at_ms)
            assert log.append("s-0", did("modified", "after")).first_seq == receipts[196].last_seq + 1


def test_law_3_a_commit_is_atomic_ordered_and_applied_once(store: Store) -> None:
    """Seqs are dense, digests follow from each other, and a retry returns the first receipt and writes nothing."""
    log = store.open()
    first = log.append("s-1", [did("start", "1"), did("modified", "2")], expected="new")
    second = log.append("s-1", did("test_pass", "3"), expected=2)
    before = store.snapshot()

    again = log.append("s-1", [did("start", "1"), did("modified", "2")], expected="new")

    assert (again.first_seq, again.last_seq, again.digest) == (first.first_seq, first.last_seq, first.digest)
    assert (again.appended, again.duplicates) == (0, 2)
    assert store.snapshot() == before
    digest = genesis("s-1")
    for commit, receipt in zip(log.read("s-1"), [first, second], strict=True):
        size = receipt.last_seq - receipt.first_seq + 1
        digest = chain(digest, "s-1", receipt.first_seq, size, receipt.at_ms, commit.body)
        assert commit.digest == receipt.digest == digest
    assert (first.first_seq, first.last_seq, second.first_seq, second.last_seq) == (1, 2, 3, 3)


def test_law_5_no_truth_can_expire(store: Store) -> None:
    """Every key is in the table of keys, with its type, and none that is truth or control has a time to live."""
    log = store.open()
    log.append_many([Append(f"s-{n}", (did("start", "1"),)) for n in range(50)])

    keys = store.keys()

    classes = [row.key_class for row in map(row_of, map(bytes.decode, keys)) if row is not None]
    assert len(classes) == len(keys)
    assert set(classes) == {KeyClass.TRUTH, KeyClass.CONTROL}
    assert {store.client.ttl(key) for key in keys} == {-1}
    store.check_keys()  # as after every other test


def test_law_6_one_sessions_trouble_stays_its_own(store: Store) -> None:
    """Among many commits of one call, those that are refused stop none of the others."""
    log = store.open()
    log.append("done", did("completed", "1"))

    answers = log.append_many([Append("done", (did("broke", "2"),)), Append("open", (did("broke", "2"),))])

    assert isinstance(answers[0], Refused)
    assert isinstance(answers[1], Receipt)


@pytest.mark.parametrize(
    ("session", "types", "expected", "code"),
    [
        ("not an id", ["start"], "any", "SESSION_INVALID"),
        ("s-1", [], "any", "COMMIT_EMPTY"),
        ("s-1", ["note.made"] * 1001, "any", "COMMIT_TOO_LARGE"),
        ("s-1", ["note.made"], 7, "SEQ_CONFLICT"),
        ("s-1", ["note.made"], "banana", "EXPECTED_INVALID"),
        ("done", ["note.made", "modified"], "any", "GATE_REFUSED"),
    ],
)
def test_law_7_what_is_refused_leaves_no_trace(
    store: Store, session: str, types: list[str], expected: int, code: str
) -> None:
    """A refusal comes before the first write: no key changes, and it says the code, the cause and the remedy."""
    log = store.open()
    log.append("done", did("completed", "1"))
    before, total = store.snapshot(), store.total()

    with pytest.raises((Refused, Conflict)) as error:
        log.append(session, [did(type, str(n)) for n, type in enumerate(types)], expected=expected)

    assert isinstance(error.value, MusterError)
    assert str(error.value) == f"{code}: {error.value.cause} ({error.value.remedy})"
    assert store.snapshot() == before
    assert store.total() == total == 1
