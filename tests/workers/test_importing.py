"""Importing lines: order is kept in each session, repeats change nothing, a refused line stands alone."""

from __future__ import annotations

import gzip
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import Event, Limits, Misconfigured, NotFound, SessionLog
from domain.codec import format_line
from domain.log.contract import Append, Receipt
from tests.conftest import Store
from tests.projections.world import did
from workers.cli.event import opened_file, read_lines
from workers.importing import (
    COMMIT_BYTES,
    WINDOW_BYTES,
    WINDOW_LINES,
    Importer,
    Line,
    Rejected,
    Report,
    commits_of,
    numbered_lines,
    paced,
    windows,
)


def line(session: str, id: str, type: str = "tool.called", **data: Any) -> bytes:
    return format_line(session, Event.of(type, actor="ann", id=id, data=data))


class Importing:
    """Imports into a store, with what was refused kept."""

    def __init__(self, log: SessionLog) -> None:
        self.log = log
        self.rejected: list[Rejected] = []

    def run(self, lines: Iterable[bytes], **options: Any) -> Report:
        importer = Importer(self.log, reject=self.rejected.append, progress=lambda _: None)
        report = importer.run(enumerate(lines, 1), **options)
        assert report.lines == report.appended + report.duplicates + report.refused
        return report

    def codes(self) -> dict[int, str]:
        return {rejected.line: rejected.code for rejected in self.rejected}

    def ids(self, session: str) -> list[str]:
        return [event.id for commit in self.log.read(session) for event in commit.events]


@pytest.fixture
def importing(store: Store) -> Importing:
    return Importing(store.open())


# -- cutting ---------------------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.sampled_from([1, 100, WINDOW_BYTES // 2]), max_size=20))
def test_windows_hold_every_line_once_in_order(sizes: list[int]) -> None:
    """No window is larger than it may be, but for its last line."""
    lines = [(number, b"x" * size) for number, size in enumerate(sizes)]

    cut = list(windows(lines, timed=False))

    assert [line for window in cut for line in window] == lines
    assert all(sum(len(raw) for _, raw in window[:-1]) < WINDOW_BYTES for window in cut)


def test_a_window_ends_after_so_many_lines() -> None:
    """However small they are."""
    cut = list(windows(((n, b"") for n in range(2 * WINDOW_LINES + 1)), timed=False))

    assert [len(window) for window in cut] == [WINDOW_LINES, WINDOW_LINES, 1]


def test_with_a_rate_a_window_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines do not wait for others longer than a moment."""
    now = 0.0

    def slow() -> Iterable[tuple[int, bytes]]:
        nonlocal now
        for number in range(6):
            now += 0.06
            yield number, b"x"

    monkeypatch.setattr(time, "monotonic", lambda: now)

    assert [len(window) for window in windows(slow(), timed=True)] == [2, 2, 2]


def test_a_rate_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th line is not let through before its time; nothing is caught up by bursts it did not earn."""
    now, slept = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)

    assert len(list(paced([(n, b"") for n in range(5)], 10))) == 5
    assert now == pytest.approx(0.4)
    assert list(paced([(1, b"")], None)) == [(1, b"")]


@given(sizes=st.lists(st.sampled_from([1, 1000, 200_000]), max_size=30), most=st.integers(1, 9))
def test_commits_are_as_large_as_allowed_and_no_larger(sizes: list[int], most: int) -> None:
    """Every line once, in order; no commit beyond the limits, unless one event alone is."""
    limits = Limits(commit_events=most)
    lines = [Line(n, "s", did("tool.called", id=f"{n}")) for n in range(len(sizes))]
    lines = [
        Line(n, "s", Event.of("tool.called", actor="ann", id=f"{n}", data={"t": "x" * size}))
        for n, size in enumerate(sizes)
    ]

    commits = list(commits_of(lines, limits))

    assert [line for commit in commits for line in commit] == lines
    assert all(0 < len(commit) <= most for commit in commits)
    for commit in commits:
        assert len(commit) == 1 or sum(sizes[line.number] for line in commit) <= COMMIT_BYTES


# -- reading files ---------------------------------------------------------------------------------------------------


def read(content: bytes, longest: int = 10) -> list[tuple[int, bytes]]:
    return list(numbered_lines(io.BytesIO(content), longest))


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"a\nb\n", [(1, b"a"), (2, b"b")]),
        (b"a\r\nb", [(1, b"a"), (2, b"b")]),
        (b"a\n\n  \nb\n", [(1, b"a"), (4, b"b")]),
        (b"0123456789\nb\n", [(1, b"0123456789"), (2, b"b")]),
        (b"0123456789\r\nb\n", [(1, b"0123456789"), (2, b"b")]),
        (b"0123456789", [(1, b"0123456789")]),
    ],
)
def test_lines_keep_their_numbers(content: bytes, lines: list[tuple[int, bytes]]) -> None:
    """Numbers count all lines of the file; empty ones are passed over, line ends of both kinds are cut off."""
    assert read(content) == lines


@given(long=st.integers(11, 5000), rest=st.sampled_from([b"", b"\n", b"\nb\n", b"\nb"]))
def test_an_over_long_line_comes_out_too_long_and_the_next_is_whole(long: int, rest: bytes) -> None:
    """It is cut, but never to something that could be right, and the line after it is read as it is."""
    first, *others = read(b"x" * long + rest)

    assert first[0] == 1
    assert 10 < len(first[1]) <= 12
    assert others == ([(2, b"b")] if b"b" in rest else [])


def test_a_file_without_line_breaks_does_not_fill_the_memory(importing: Importing, tmp_path: Path) -> None:
    """A huge line is refused as too long, and reading it holds little more than a line may be."""
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    with opened_file(str(path)) as opened:
        ((number, raw),) = read_lines(opened, importing.log.limits.line_bytes)

    assert number == 1
    assert len(raw) <= importing.log.limits.line_bytes + 2
    assert importing.run([raw]).refused == 1
    assert importing.codes() == {1: "LINE_TOO_LONG"}


def test_a_compressed_file_is_read_like_any_other(tmp_path: Path) -> None:
    """The same lines come out of it."""
    path = tmp_path / "events.gz"
    path.write_bytes(gzip.compress(b"a\nb\n"))

    with opened_file(str(path)) as opened:
        assert list(read_lines(opened, 10)) == [(1, b"a"), (2, b"b")]


def broken(content: bytes, damage: str) -> bytes:
    match damage:
        case "cut off":
            return content[: len(content) // 2]
        case "altered":
            middle = len(content) // 2
            return (
                content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 40]) + content[middle + 40 :]
            )
        case "a wrong checksum":
            return content[:-8] + b"\x00" * 8
        case _:
            return content[:2] + b"nothing that gzip knows"


@pytest.mark.parametrize("damage", ["cut off", "altered", "a wrong checksum", "no gzip"])
def test_a_broken_compressed_file_is_an_error_after_what_could_be_read(
    importing: Importing, tmp_path: Path, damage: str
) -> None:
    """The lines before the damage are imported, then the file is said to be unreadable."""
    path = tmp_path / "events.gz"
    content = b"".join(line("s", f"{n}", n=str(n * 7919)) + b"\n" for n in range(3000))
    path.write_bytes(broken(gzip.compress(content), damage))

    with opened_file(str(path)) as opened, pytest.raises(NotFound) as raised:
        importing.run(raw for _, raw in read_lines(opened, importing.log.limits.line_bytes))

    assert raised.value.code == "FILE_UNREADABLE"
    head = importing.log.head("s")
    ids = importing.ids("s")
    assert ids == [f"{n}" for n in range(len(ids))]
    assert (head is not None) == (damage != "no gzip")


# -- importing -------------------------------------------------------------------------------------------------------


def test_the_order_of_lines_is_kept_in_each_session(importing: Importing) -> None:
    """However sessions are mixed, each gets its own lines in their order, in few commits."""
    lines = [line(f"s-{n % 7}", f"{n}") for n in range(3000)]

    report = importing.run(lines)

    assert (report.lines, report.appended) == (3000, 3000)
    for session in range(7):
        assert importing.ids(f"s-{session}") == [f"{n}" for n in range(session, 3000, 7)]
        assert len(list(importing.log.read(f"s-{session}"))) == 1


def test_an_import_twice_is_an_import_once(importing: Importing, store: Store) -> None:
    """The second time everything is a duplicate, whatever the windows, and no key changes."""
    lines = [line(f"s-{n % 50}", f"{n}") for n in range(500)]
    importing.run(lines)
    before = store.snapshot()

    again = Importing(store.open()).run(lines, rate=1e9)

    assert (again.appended, again.duplicates) == (0, 500)
    assert store.snapshot() == before


def test_an_id_repeated_in_the_file_is_the_same_event_or_refused(importing: Importing) -> None:
    """The same content again is a duplicate, also with its keys in another order; other content is ID_REUSED."""
    first = b'{"session":"s","type":"x.y","actor":"ann","id":"1","data":{"a":1,"b":[2]}}'
    other_order = b'{"id":"1","data":{"b":[2],"a":1},"session":"s","actor":"ann","type":"x.y"}'
    other = b'{"session":"s","type":"x.y","actor":"ann","id":"1","data":{"a":1,"b":[3]}}'
    elsewhere = b'{"session":"t","type":"x.y","actor":"ann","id":"1","data":{}}'

    together = importing.run([first, first, other_order, other, elsewhere])
    later = importing.run([first, other_order, other])

    assert (together.appended, together.duplicates, together.refused) == (2, 2, 1)
    assert (later.appended, later.duplicates, later.refused) == (0, 2, 1)
    assert {(rejected.line, rejected.id, rejected.code) for rejected in importing.rejected} == {
        (4, "1", "ID_REUSED"),
        (3, "1", "ID_REUSED"),
    }


def test_a_refused_line_holds_nothing_else_back(importing: Importing) -> None:
    """Lines that cannot be read, break a rule, or are illegal now are refused one by one; all others are appended."""
    lines = [
        line("s", "1", "start"),
        b"no json",
        line("s", "2", "completed"),
        line("s", "3", "modified"),
        b'{"session":"s","type":"x.y","actor":"ann","data":{}}',
        b'{"session":"s","type":"x.y","actor":"ann","id":"9","data":{},"more":1}',
        line("s", "4"),
        line("t", "1", "modified"),
        line("s", "5", "start"),
        line("s", "3", "modified"),
    ]

    report = importing.run(lines)

    assert (report.appended, report.refused) == (6, 4)
    assert importing.codes() == {2: "LINE_NOT_JSON", 4: "GATE_REFUSED", 5: "FIELD_MISSING", 6: "FIELD_UNKNOWN"}
    assert importing.ids("s") == ["1", "2", "4", "5", "3"]
    assert importing.ids("t") == ["1"]


def test_a_quarantined_session_is_refused_line_by_line(importing: Importing, store: Store) -> None:
    """Each of its new lines says QUARANTINED, what it holds already is a duplicate; other sessions are imported."""
    importing.run([line("bad", "1"), line("good", "1")])
    keys = store.keyspace.of("bad")
    store.client.fcall("muster_quarantine_1", 2, keys.head("bad"), keys.hold("bad"), "bad", "LOG_GAP", 1)

    report = importing.run([line("bad", "1"), line("bad", "2"), line("good", "2"), line("bad", "3")])

    assert (report.appended, report.duplicates, report.refused) == (1, 1, 2)
    assert importing.codes() == {2: "QUARANTINED", 4: "QUARANTINED"}


def test_a_store_with_lower_limits_refuses_and_the_numbers_still_add_up(
    server_url: str, make_store: Callable[..., Store]
) -> None:
    """What the store does not take is refused line by line, and no line is counted twice."""
    importing = Importing(make_store(server_url, limits=Limits(commit_events=3)).open())
    importing.run([line("s", "1")])

    report = importing.run([line("s", "1"), *[line("s", f"{n}") for n in range(2, 9)], line("t", "1")])

    assert (report.appended, report.duplicates, report.refused) == (1, 1, 7)
    assert set(importing.codes().values()) == {"COMMIT_TOO_LARGE"}


def test_a_store_that_vanished_ends_the_import(importing: Importing, store: Store) -> None:
    """That is no fault of the lines: none is refused for it, and the error says what to do."""
    importing.run([line("s", "1")])
    store.client.delete(*store.keys())

    with pytest.raises(Misconfigured) as raised:
        importing.run([line("s", "2"), line("t", "1")])

    assert raised.value.code == "STORE_MISSING"
    assert importing.rejected == []


def test_imports_of_the_same_file_at_once_end_in_the_same_log(importing: Importing, store: Store) -> None:
    """Every line is there once and in order; each import counts what it did itself."""
    lines = [line(f"s-{n % 5}", f"{n}") for n in range(2000)]
    others = [Importing(store.open()) for _ in range(3)]
    reports: list[Report] = []
    threads = [Thread(target=lambda other=other: reports.append(other.run(lines, rate=20_000))) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(reports) == 3
    assert [other.rejected for other in others] == [[], [], []]
    assert sum(report.appended for report in reports) == 2000
    for session in range(5):
        assert importing.ids(f"s-{session}") == [f"{n}" for n in range(session, 2000, 5)]


def test_producers_beside_an_import_lose_nothing(importing: Importing, store: Store) -> None:
    """While others append to the same sessions, every line of the file is there once and in order."""
    log = store.open()
    done: list[object] = []

    def produce() -> None:
        for number in range(120):
            done.extend(log.append_many([Append(f"s-{n}", (did("tool.called", id=f"p-{number}"),)) for n in range(5)]))

    thread = Thread(target=produce)
    thread.start()
    report = importing.run([line(f"s-{n % 5}", f"f-{n}") for n in range(3000)], rate=30_000)
    thread.join()

    assert (report.appended, report.refused) == (3000, 0)
    assert all(isinstance(receipt, Receipt) for receipt in done)
    for session in range(5):
        ids = importing.ids(f"s-{session}")
        assert [id for id in ids if id.startswith("f-")] == [f"f-{n}" for n in range(session, 3000, 5)]
        assert [id for id in ids if id.startswith("p-")] == [f"p-{n}" for n in range(120)]


def test_what_is_remembered_between_windows_is_bounded(importing: Importing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions beyond the bound are read again when they come back, with the same result."""
    from workers import importing as module

    monkeypatch.setattr(module, "REMEMBERED_IDS", 10)
    monkeypatch.setattr(module, "WINDOW_LINES", 7)
    lines = [line(f"s-{n % 20}", f"{n // 3}") for n in range(200)]

    importing.run(lines)
    report = importing.run(lines)

    assert report.appended == 0
    counted = Counter((json.loads(raw)["session"], json.loads(raw)["id"]) for raw in lines)
    assert sum(len(importing.ids(f"s-{n}")) for n in range(20)) == len(counted)
