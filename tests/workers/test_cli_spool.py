"""`muster spool`: what waits on a host is listed, sent and taken out, with and without a server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from domain import Event, SessionLog
from domain.log import Connecting, Spool
from tests.chaos.proxy import Proxy, proxied
from tests.conftest import ENVIRONMENT, Store
from tests.domain.log.logs import ids, note
from workers.cli import main


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def proxy(store: Store) -> Iterator[Proxy]:
    with proxied(store.url) as proxy:
        yield proxy


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


@pytest.fixture
def run(
    store: Store, proxy: Proxy, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """Runs a command whose way to the server leads through the proxy."""
    monkeypatch.setenv("MUSTER_SPOOL__PATH", str(path))
    monkeypatch.setenv("MUSTER_REDIS__RETRY_FOR_S", "0.05")

    def run(*arguments: str) -> Ran:
        flags = ["--url", proxy.url, "--environment", ENVIRONMENT, "--namespace", store.namespace, "-o", "jsonl"]
        code = main([*arguments, *flags])
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def spooled(store: Store, proxy: Proxy, path: Path) -> None:
    """Three commits of the session s and two of t in the spool, of which the first of t will be refused."""
    with SessionLog.open(
        Connecting(proxy.url, retry_for_s=0.05), environment=ENVIRONMENT, namespace=store.namespace, spool=path
    ) as log:
        log.append("t", Event.of("completed", actor="a", id="t0"))
        with proxy.cut():
            for number in range(3):
                log.append("s", note(f"s{number}"))
            log.append("t", Event.of("modified", actor="a", id="t1"))
            log.append("t", note("t2"))
            log.close()


@pytest.mark.usefixtures("spooled")
def test_what_waits_is_listed_without_a_server(run: Callable[..., Ran], proxy: Proxy) -> None:
    with proxy.cut():
        ran = run("spool", "ls")
    assert ran.code == 0
    assert [(row["session"], row["commits"], row["events"], row["code"]) for row in ran.rows] == [
        ("s", 3, 3, None), ("t", 2, 2, None),
    ]  # fmt: skip
    assert "5 commits of 2 sessions wait" in ran.err


@pytest.mark.usefixtures("spooled")
def test_draining_sends_what_can_be_sent_and_says_what_is_held(
    run: Callable[..., Ran], store: Store, proxy: Proxy
) -> None:
    """Exit 7 while something is held; 10 if the time is over; 0 when all arrived, also what was held before."""
    with proxy.cut():
        assert run("spool", "drain", "--timeout", "0.1").code == 10
    assert run("spool", "drain", "--dry-run").code == 0
    ran = run("spool", "drain")
    assert (ran.code, ran.rows[0]["waited"], ran.rows[0]["left"], ran.rows[0]["held_sessions"]) == (7, 5, 2, 1)
    (held,) = run("spool", "ls").rows
    assert (held["session"], held["code"]) == ("t", "GATE_REFUSED")
    log = store.open()
    assert ids(log.read("s")) == ["s0", "s1", "s2"]

    log.append("t", Event.of("start", actor="a", id="again"))
    ran = run("spool", "drain")
    assert (ran.code, ran.rows[0]["left"]) == (0, 0)
    assert ids(log.read("t")) == ["t0", "again", "t1", "t2"]


@pytest.mark.usefixtures("spooled")
def test_what_is_taken_out_stands_in_a_file_that_can_be_imported(
    run: Callable[..., Ran], store: Store, path: Path, tmp_path: Path
) -> None:
    """In its order, with its ids; nothing is taken out before it is safely there, and an import brings it in once."""
    assert run("spool", "drain").code == 7
    lines = tmp_path / "held.ndjson"
    assert run("spool", "export", "-", "--remove").code == 9
    assert run("spool", "export", str(lines), "--held", "--remove", "--dry-run").code == 0
    assert not lines.exists()
    ran = run("spool", "export", "-", "--held")
    assert [row["id"] for row in ran.rows] == ["t1", "t2"]
    assert run("spool", "export", str(lines), "--held", "--remove").code == 0
    assert [json.loads(line)["id"] for line in lines.read_text().splitlines()] == ["t1", "t2"]
    assert run("spool", "ls").rows == []
    assert run("spool", "export", str(lines), "--remove").code == 4, "a file that is there is not written over"

    log = store.open()
    log.append("t", Event.of("start", actor="a", id="again"))
    assert run("event", "import", str(lines)).code == 0
    assert run("event", "import", str(lines)).rows[0]["duplicates"] == 2
    assert ids(log.read("t")) == ["t0", "again", "t1", "t2"]


def test_an_event_appended_during_an_outage_waits_for_the_next_command(
    run: Callable[..., Ran], store: Store, proxy: Proxy, path: Path
) -> None:
    """A shell script need not know that the server is away."""
    append = ("event", "append", "s", "note.made", "--actor", "a")
    assert run(*append, "--id", "1").code == 0
    with proxy.cut():
        ran = run(*append, "--id", "2")
        assert (ran.code, ran.rows[0]["durability"]) == (0, "spooled")
        assert "waits in the spool" in ran.err
        assert run(*append, "--id", "3").code == 0
    assert run("spool", "drain").code == 0
    assert ids(store.open().read("s")) == ["1", "2", "3"]


def test_a_spool_that_is_not_there_is_said_not_to_be(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    """And is not made by looking."""
    assert run("spool", "ls").code == 4
    assert not path.exists()
    monkeypatch.delenv("MUSTER_SPOOL__PATH")
    assert run("spool", "ls").code == 9
    Spool(path).close()
    assert run("spool", "ls", "--spool", str(path)).rows == []
