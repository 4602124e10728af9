"""The file of the spool: what was taken is there, in order, whoever opens it, and nothing else passes for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from domain import Append, Conflict, Damaged, Misconfigured, MusterError, Unavailable
from domain.log import Spool
from domain.log.contract import AppendRequest, Position
from domain.log.protocol import encode_append
from domain.log.spooling.spool import Entry, Spooled
from domain.log.store import Identity
from tests.domain.log.logs import note, refused

ROOT = Path(__file__).parents[4]
STORE = Identity("store-1", 1, 32)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with_file = Spool(tmp_path / "spool.db")
    yield with_file
    with_file.close()


def request(session: str, id: str) -> AppendRequest:
    return encode_append(Append(session, (note(id),), ids=(id,)))


def entry(session: str, id: str) -> Entry:
    return Entry(request(session, id), 1)


def ids(waiting: Iterator[Spooled] | list[Spooled]) -> list[str]:
    return [one.request.ids[0] for one in waiting]


def test_what_was_taken_is_there_for_the_next_process(spool: Spool) -> None:
    """As it is to be sent, to the byte, in the order in which it was taken."""
    sent = encode_append(
        Append("s", (note("1"),), 7, Position(6, "ab"), "00-trace", "token", "heir", ("1",)),
    )
    assert spool.add([Entry(sent, 3, dedupe=True, marked=True), entry("t", "2"), entry("s", "3")]) == [None] * 3
    spool.close()
    again = Spool(spool.path)
    first, *rest = again.each()
    assert (first.request, first.epoch, first.dedupe, first.marked, first.code) == (sent, 3, True, True, None)
    assert ids(rest) == ["2", "3"]
    assert [one.number for one in again.each()] == [1, 2, 3]
    again.close()


def test_only_its_owner_may_read_it(spool: Spool) -> None:
    """It holds what agents say."""
    spool.add([entry("s", "1")])
    files = list(spool.path.parent.glob("spool.db*"))
    assert len(files) > 1
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600] * len(files)


def test_every_commit_is_synced(spool: Spool) -> None:
    """A receipt may outlive the power."""
    with spool._opened() as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"


def test_threads_and_processes_share_it(spool: Spool) -> None:
    """Each one's commits keep their order, and none is lost; the file is made by whoever comes first."""
    path = spool.path.with_name("shared.db")
    program = (
        "import sys; from tests.domain.log.spooling.test_spool import *\n"
        "spool = Spool(sys.argv[1])\n"
        "for n in range(50): assert spool.add([entry('s', f'{sys.argv[2]}-{n}')]) == [None]\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", program, str(path), f"p{number}"], cwd=ROOT) for number in range(3)
    ]
    shared = Spool(path)

    def add(number: int) -> None:
        for n in range(50):
            assert shared.add([entry("s", f"t{number}-{n}")]) == [None]

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(add, range(3)))
    assert [child.wait() for child in children] == [0, 0, 0]
    found = ids(shared.each())
    for who in ("p0", "p1", "p2", "t0", "t1", "t2"):
        assert [id for id in found if id.startswith(who)] == [f"{who}-{n}" for n in range(50)]
    assert shared.totals().commits == len(found) == 300
    shared.close()


def test_a_forked_child_does_not_touch_its_parents_connection(spool: Spool) -> None:
    spool.add([entry("s", "1")])
    child = os.fork()
    if child == 0:
        try:
            taken = spool.add([entry("s", "2")]) == [None] and ids(spool.each()) == ["1", "2"]
        finally:
            os._exit(0 if taken else 1)
    assert os.waitpid(child, 0)[1] == 0
    spool.add([entry("s", "3")])
    assert ids(spool.each()) == ["1", "2", "3"]


def test_it_takes_no_more_than_it_may(tmp_path: Path) -> None:
    """Counted in bytes; what does not fit is refused, smaller ones after it are not, and what leaves makes room."""
    spool = Spool(tmp_path / "small.db", max_bytes=1500)
    large = Entry(encode_append(Append("s", (note("large", text="x" * 1200),))), 1)
    assert spool.add([entry("s", "1")]) == [None]
    answers = spool.add([large, entry("s", "2")])
    assert isinstance(answers[0], Unavailable)
    assert (answers[0].code, answers[1]) == ("SPOOL_FULL", None)
    totals = spool.totals()
    assert 0 < totals.bytes <= totals.max_bytes == 1500
    spool.remove(one.number for one in list(spool.each()))
    assert spool.totals().bytes == 0
    spool.close()


def test_a_page_holds_the_oldest_and_nothing_of_a_held_session(spool: Spool) -> None:
    spool.add([entry("s", "1"), entry("t", "2"), entry("s", "3"), entry("u", "4")])
    assert ids(spool.page(1)) == ["1", "2", "3", "4"]
    spool.settle([2], {1: Conflict("SEQ_CONFLICT", "moved")}, 1)
    assert ids(spool.page(1)) == ["4"]
    assert ids(spool.each(held=True)) == ["1", "3"]
    assert ids(spool.each("u")) == ["4"]
    first = spool.first("s")
    assert first is not None
    assert (first.code, first.cause) == ("SEQ_CONFLICT", "moved")
    totals = spool.totals()
    assert (totals.commits, totals.sessions, totals.held) == (3, 2, 1)
    assert spool.release() == 1
    assert ids(spool.page(1)) == ["1", "3", "4"]


def test_a_loss_holds_until_the_epoch_is_raised(spool: Spool) -> None:
    """And again, if the server says so again."""
    spool.add([entry("s", "1")])
    spool.settle([], {1: Damaged("TAIL_LOST", "lost")}, 1)
    assert (ids(spool.page(1)), ids(spool.page(2))) == ([], ["1"])
    spool.settle([], {1: Damaged("FORK", "another")}, 2)
    assert (ids(spool.page(2)), ids(spool.page(3))) == ([], ["1"])


def test_a_commit_is_marked_once(spool: Spool) -> None:
    """Whoever marks it first says what was known of its session before it was sent; nobody overwrites that."""
    spool.add([entry("s", "1"), entry("t", "2")])
    assert spool.mark({1: Position(4, "aa")}) == {1}
    assert spool.mark({1: Position(9, "bb"), 2: None, 3: None}) == {2}
    assert [(one.marked, one.request.known) for one in spool.each()] == [(True, Position(4, "aa")), (True, None)]


def test_it_belongs_to_one_store(spool: Spool) -> None:
    """While it holds commits. Empty, it goes over to another; its epoch and partitions may move."""
    assert spool.identity("dev", "main") is None
    spool.belongs_to("dev", "main", STORE)
    assert spool.identity("dev", "main") == STORE
    refused(lambda: spool.identity("dev", "other"), Misconfigured, "SPOOL_DIFFERS")
    spool.add([entry("s", "1")])
    spool.belongs_to("dev", "main", Identity("store-1", 2, 32))
    for environment, namespace, store in [
        ("dev", "main", "store-2"),
        ("dev", "x", "store-1"),
        ("x", "main", "store-1"),
    ]:
        with pytest.raises(Misconfigured, match="holds commits for store store-1"):
            spool.belongs_to(environment, namespace, Identity(store, 1, 32))
    spool.remove([1])
    spool.belongs_to("dev", "x", Identity("store-2", 1, 8))
    assert spool.identity("dev", "x") == Identity("store-2", 1, 8)


def test_what_is_no_spool_is_said_to_be_none(tmp_path: Path) -> None:
    """A file of something else, a folder that is not there, a spool of a later release."""

    def error_of(path: Path) -> MusterError:
        with pytest.raises(MusterError) as raised:
            Spool(path)
        return raised.value

    (tmp_path / "text").write_bytes(b"this is no database" * 100)
    assert error_of(tmp_path / "text").code == "SPOOL_DAMAGED"
    assert error_of(tmp_path / "missing" / "spool.db").code == "SPOOL_FAILED"
    later = Spool(tmp_path / "later.db")
    with later._transaction() as db:
        db.execute("UPDATE about SET value = 2 WHERE name = 'version'")
    later.close()
    assert error_of(tmp_path / "later.db").code == "SPOOL_DIFFERS"


def test_a_torn_page_is_damage_and_no_empty_spool(spool: Spool) -> None:
    spool.add([entry("s", str(number)) for number in range(200)])
    spool.close()  # the last one to close brings the WAL into the file
    with spool.path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(8 * 4096))
    with pytest.raises(MusterError) as raised:
        list(spool.each())
    assert raised.value.code in ("SPOOL_DAMAGED", "SPOOL_FAILED")
