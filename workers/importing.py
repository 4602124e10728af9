"""Importing producers' lines from a file: the order of lines is kept within each session, repeats change nothing.

A window of lines is read, sorted by session, and each session's lines become commits as large as allowed. What the
session holds already is a duplicate; what its gate refuses is refused line by line and holds nothing else back.
Every commit carries the exact seq it expects, so an import that was cut off, or runs twice at once, ends in the
same log.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Final

from msgspec import Struct

from domain.codec import Limits, check_size, fingerprint, id_of_line, parse_line, require_id
from domain.errors import Conflict, Misconfigured, MusterError, Refused, Unavailable
from domain.events import Event
from domain.log import SessionLog
from domain.log.contract import Append, Receipt
from domain.log.protocol import Flow, KnownEvents, encode_append, gate_refused, taken, together
from domain.session import gate_after, kind_of

#: A window holds at most so many lines and bytes.
WINDOW_LINES: Final = 16384
WINDOW_BYTES: Final = 8 * 1024 * 1024
#: With a rate, a window ends after this long, so that lines do not wait for others.
WINDOW_S: Final = 0.1
#: Commits of an import stay below this, so that several sessions share one call.
COMMIT_BYTES: Final = 512 * 1024
#: How many event ids are remembered between windows; sessions beyond it are read again when they come back.
REMEMBERED_IDS: Final = 2_000_000
#: What an append is told where other producers were quicker.
_MOVED_ON: Final = frozenset({"SEQ_CONFLICT", "PART_KNOWN", "LEASE_LOST", "GATE_REFUSED"})
#: How often a session is decided again when other producers are quicker.
ATTEMPTS: Final = 32


class Line(Struct, frozen=True):
    """A line that could be read: its number from 1, and its event."""

    number: int
    session: str
    event: Event


class Rejected(Struct, frozen=True):
    """A refused line. `id` is None where it cannot be read."""

    line: int
    id: str | None
    code: str
    cause: str


class Report(Struct):
    """How far an import is; `lines` = `appended` + `duplicates` + `refused` at the end of every window."""

    lines: int = 0
    appended: int = 0
    duplicates: int = 0
    refused: int = 0


class Importer:
    """One import. `reject` gets every refused line, `progress` the report after every window."""

    def __init__(
        self, log: SessionLog, *, reject: Callable[[Rejected], None], progress: Callable[[Report], None]
    ) -> None:
        self.report = Report()
        self._log = log
        self._limits: Limits = log.limits
        self._reject = reject
        self._progress = progress
        self._known: OrderedDict[str, KnownEvents] = OrderedDict()
        self._remembered = 0

    def run(self, lines: Iterable[tuple[int, bytes]], *, rate: float | None = None) -> Report:
        """Imports numbered lines, at most `rate` a second.

        Raises Unavailable if the server stays away, Misconfigured if its store does not fit any more; what was imported
        stays, and the same import completes it.
        """
        for window in windows(paced(lines, rate), timed=rate is not None):
            self._import(window)
            self._progress(self.report)
        return self.report

    def _import(self, window: Sequence[tuple[int, bytes]]) -> None:
        by_session: dict[str, list[Line]] = {}
        for number, raw in window:
            try:
                session, event = parse_line(raw, self._limits)
                require_id(event)
            except Refused as refused:
                self._refuse(number, id_of_line(raw), refused)
            else:
                by_session.setdefault(session, []).append(Line(number, session, event))
        flows = [self._session_flow(session, lines) for session, lines in by_session.items()]
        outcomes = self._log.run(together(flows))
        self.report.lines += len(window)
        self._forget()
        for outcome in outcomes:
            if isinstance(outcome, MusterError):
                raise outcome

    def _session_flow(self, session: str, lines: list[Line]) -> Flow[None]:
        """Brings a session's lines in. Refusals are noted line by line; only what may pass later is raised."""
        known = self._known.get(session)
        if known is None:
            known = self._known[session] = KnownEvents(session)
        self._known.move_to_end(session)
        before = len(known)
        try:
            for _ in range(ATTEMPTS):
                yield from known.refresh_flow()
                lines = yield from self._append_flow(known, lines)
                if not lines:
                    return
            raise Conflict("SEQ_CONFLICT", f"session {session} moves too fast to import into", session=session)
        except (Unavailable, Misconfigured):
            raise  # the lines are as good as they were: the same import completes them
        except MusterError as error:
            for line in lines:
                self._refuse(line.number, line.event.id, error)
        finally:
            self._remembered += len(known) - before

    def _append_flow(self, known: KnownEvents, lines: list[Line]) -> Flow[list[Line]]:
        """Appends what is new, in commits as large as allowed; returns what is left if the session moved meanwhile."""
        new: list[Line] = []
        ids: dict[str, Event] = {}
        gate = known.gate
        for line in lines:
            try:
                if known.holds(line.event) or _repeats(ids, line.event, known):
                    self.report.duplicates += 1
                    continue
                after, refused = gate_after(gate, kind_of(line.event.type))
                if refused is not None:
                    raise gate_refused(known.session, 1, gate, known.seq + len(new))
            except Refused as refusal:
                self._refuse(line.number, line.event.id, refusal)
                continue
            gate = after
            ids[line.event.id] = line.event
            new.append(line)
        for commit in commits_of(new, self._limits):
            events = tuple(line.event for line in commit)
            (answer,) = yield [encode_append(Append(known.session, events, known.seq), self._limits)]
            if isinstance(answer, MusterError) and answer.code in _MOVED_ON:
                return new[new.index(commit[0]) :]
            if isinstance(answer, MusterError) and not isinstance(answer, (Unavailable, Misconfigured)):
                for line in new[new.index(commit[0]) :]:
                    self._refuse(line.number, line.event.id, answer)
                return []
            receipt: Receipt = taken(answer)
            known.add(events, receipt)
            # Another import of the same lines may have been quicker: then this very commit is there already.
            self.report.appended += receipt.appended
            self.report.duplicates += receipt.duplicates
        return []

    def _refuse(self, number: int, event_id: str | None, error: MusterError) -> None:
        self.report.refused += 1
        self._reject(Rejected(number, event_id, error.code, error.cause))

    def _forget(self) -> None:
        while self._remembered > REMEMBERED_IDS and self._known:
            _, known = self._known.popitem(last=False)
            self._remembered -= len(known)


def _repeats(ids: dict[str, Event], event: Event, known: KnownEvents) -> bool:
    """Whether an earlier line of the same window is this event. Raises Refused (ID_REUSED) if it is another one."""
    earlier = ids.get(event.id)
    if earlier is not None and fingerprint(earlier) != fingerprint(event):
        raise known.reused(event.id)
    return earlier is not None


def commits_of(lines: Sequence[Line], limits: Limits) -> Iterator[list[Line]]:
    """The lines in order, cut into commits within the limits."""
    commit: list[Line] = []
    size = 0
    for line in lines:
        event_size = check_size(line.event, limits)
        if commit and (len(commit) == limits.commit_events or size + event_size > COMMIT_BYTES):
            yield commit
            commit, size = [], 0
        commit.append(line)
        size += event_size
    if commit:
        yield commit


def windows(lines: Iterable[tuple[int, bytes]], *, timed: bool) -> Iterator[list[tuple[int, bytes]]]:
    """The lines in order, cut into windows. Where the lines break off with an error, those before it come first."""
    window: list[tuple[int, bytes]] = []
    size = 0
    began = time.monotonic()
    broken: MusterError | None = None
    try:
        for line in lines:
            window.append(line)
            size += len(line[1])
            over = timed and time.monotonic() - began >= WINDOW_S
            if over or len(window) == WINDOW_LINES or size >= WINDOW_BYTES:
                yield window
                window, size, began = [], 0, time.monotonic()
    except MusterError as error:
        broken = error
    if window:
        yield window
    if broken is not None:
        raise broken


def paced(lines: Iterable[tuple[int, bytes]], rate: float | None) -> Iterator[tuple[int, bytes]]:
    """The lines, at most `rate` a second."""
    began = time.monotonic()
    for count, line in enumerate(lines):
        if rate is not None:
            time.sleep(max(0.0, began + count / rate - time.monotonic()))
        yield line


def numbered_lines(file: IO[bytes], longest: int) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers from 1, without line ends; empty lines are passed over.

    A line longer than `longest` comes out cut right after that many bytes, which no line that is right can be; so a
    file without line breaks does not fill the memory.
    """
    number = 0
    while line := file.readline(longest + 2):
        number += 1
        if not line.endswith(b"\n") and len(line) > longest:
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
        line = line.rstrip(b"\r\n")
        if line.strip():
            yield number, line
