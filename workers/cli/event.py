"""`muster event`: appends, imports, shows and follows events."""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, cast
from uuid import uuid4

import msgspec

from domain.codec import Commit, parse_line
from domain.errors import NotFound, Refused
from domain.log import SessionLog, Spool
from domain.log.contract import Expected
from domain.log.protocol import unknown_session
from projections.session_view import rfc3339
from workers.cli import arguments, printing
from workers.importing import Importer, Rejected, Report, numbered_lines
from workers.settings import Settings

COLUMNS = ("seq", "type", "actor", "id", "at", "data")
#: What a gzip file begins with.
GZIP_MAGIC = b"\x1f\x8b"
#: How often a followed session is asked for more, in seconds.
FOLLOW_EVERY_S = 0.2


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)

    append = arguments.command(group, "append", "append one event to a session", run_append)
    append.add_argument("session")
    append.add_argument("type", help="a built-in type, or one with a dot")
    append.add_argument("--actor", required=True, help="who says so")
    append.add_argument("--data", default="{}", help="a JSON object")
    append.add_argument("--id", help="makes a repeat harmless (default: a new one)")
    append.add_argument("--time", help="when it happened by your clock, RFC 3339")
    append.add_argument("--expect", default="any", help="any, new, or the seq the session must stand at")
    append.add_argument("--traceparent", help="W3C trace context that travels with the commit")
    append.add_argument("--dry-run", action="store_true", help="check the event, append nothing")

    bring = arguments.command(group, "import", "append the events of a file, one JSON object a line", run_import)
    bring.add_argument("file", help="a file, also .gz; - for standard input")
    bring.add_argument("--rate", type=float, help="at most so many lines a second")
    bring.add_argument("--rejects", metavar="FILE", help="where refused lines go, as JSON lines")

    show = arguments.command(group, "show", "show the event at a seq of a session", run_show)
    show.add_argument("session")
    show.add_argument("seq", type=int)

    tail = arguments.command(group, "tail", "show the last events of a session", run_tail)
    tail.add_argument("session")
    tail.add_argument("-n", "--lines", type=int, default=10, help="how many (10)")
    tail.add_argument("-f", "--follow", action="store_true", help="go on with events as they come")


# -- append ----------------------------------------------------------------------------------------------------------


def run_append(options: argparse.Namespace, settings: Settings) -> int:
    fields = {
        "session": options.session,
        "type": options.type,
        "actor": options.actor,
        "id": options.id or uuid4().hex,
        **({"time": options.time} if options.time is not None else {}),
    }
    # The data is judged as it was written, before anything could repair it.
    line = json.dumps(fields, ensure_ascii=False)[:-1] + f', "data": {options.data}}}'
    session, event = parse_line(line.encode("utf-8", "surrogateescape"))
    if options.dry_run:
        printing.say(f"dry run: would append 1 event to session {session}")
        return 0
    spool = None if settings.spool.path is None else Spool(settings.spool.path, max_bytes=settings.spool.max_bytes)
    with arguments.opened_log(settings, spool) as log:
        wish = expected(options.expect)
        # An id of the caller's own makes a repeat harmless, also after a call of which nobody knows the outcome.
        dedupe = options.id is not None and wish == "any"
        receipt = log.append(session, event, expected=wish, dedupe=dedupe, traceparent=options.traceparent)
    if receipt.is_spooled:
        printing.say("the server is away: the event waits in the spool, for the next append or `muster spool drain`")
    printing.document({"schema": "muster.receipt/1", **msgspec.to_builtins(receipt)}, options.output)
    return 0


def expected(text: str) -> Expected:
    """`any`, `new` or a seq. Raises Refused (EXPECTED_INVALID)."""
    if text == "any":
        return "any"
    if text == "new":
        return "new"
    if not text.isdecimal():
        raise Refused("EXPECTED_INVALID", f"{text!r} is neither `any`, `new` nor a seq")
    return int(text)


# -- import ----------------------------------------------------------------------------------------------------------


def run_import(options: argparse.Namespace, settings: Settings) -> int:
    began = time.monotonic()
    progress = printing.Progress()

    def report(so_far: Report) -> None:
        rate = so_far.lines / (time.monotonic() - began)
        progress(
            f"import: {so_far.lines} lines, {so_far.appended} appended, {so_far.duplicates} duplicates, "
            f"{so_far.refused} refused, {rate:.0f} lines/s"
        )

    with ExitStack() as stack:
        log = stack.enter_context(arguments.opened_log(settings))
        file = stack.enter_context(opened_file(options.file))
        rejects: IO[str] | None = None
        if options.rejects is not None:
            rejects = stack.enter_context(writable(options.rejects))

        def reject(line: Rejected) -> None:
            if rejects is not None:
                print(msgspec.json.encode(line).decode(), file=rejects, flush=True)
            else:
                printing.say(f"refused: line {line.line}, id {line.id}: {line.code}: {line.cause}")

        importer = Importer(log, reject=reject, progress=report)
        try:
            importer.run(read_lines(file, log.limits.line_bytes), rate=options.rate)
        finally:
            done = importer.report
            seconds = round(time.monotonic() - began, 3)
            printing.document(
                {"schema": "muster.import/1", **msgspec.to_builtins(done), "seconds": seconds}, options.output
            )
    return 7 if done.refused else 0


@contextmanager
def opened_file(name: str) -> Iterator[IO[bytes]]:
    """A file to read lines from, unpacked if it is compressed; - is standard input.

    Raises NotFound (FILE_UNREADABLE).
    """
    with ExitStack() as stack:
        try:
            source: str | int = sys.stdin.fileno() if name == "-" else name
            file = stack.enter_context(open(source, "rb", closefd=name != "-"))
            is_compressed = file.peek(2)[:2] == GZIP_MAGIC
        except OSError as error:
            raise NotFound("FILE_UNREADABLE", f"{name} cannot be read: {error.strerror}") from None
        if is_compressed:
            unpacked = gzip.GzipFile(fileobj=file)
            stack.callback(unpacked.close)
            yield cast(IO[bytes], unpacked)
        else:
            yield file


def writable(name: str) -> IO[str]:
    """A file to write lines to. Raises NotFound (FILE_UNREADABLE)."""
    try:
        return open(name, "w", encoding="utf-8")
    except OSError as error:
        raise NotFound("FILE_UNREADABLE", f"{name} cannot be written: {error.strerror}") from None


def read_lines(file: IO[bytes], longest: int) -> Iterator[tuple[int, bytes]]:
    """The numbered lines of a file. Raises NotFound (FILE_UNREADABLE) where it breaks off or is not what its name
    says.
    """
    try:
        yield from numbered_lines(file, longest)
    except (OSError, EOFError, zlib.error) as error:
        raise NotFound("FILE_UNREADABLE", f"the file breaks off: {error}") from None


# -- show and tail ---------------------------------------------------------------------------------------------------


def run_show(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened_log(settings) as log:
        for commit in log.read(options.session, after=max(0, options.seq - 1), to=options.seq):
            for event in events_of(commit):
                if event["seq"] == options.seq:
                    printing.document(event, options.output)
                    return 0
        head = log.head(options.session)
        if head is None:
            raise unknown_session(options.session)
        raise NotFound("SEQ_UNKNOWN", f"session {options.session} has the seqs 1 to {head.seq}, not {options.seq}")


def run_tail(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened_log(settings) as log:
        head = log.head(options.session)
        if head is None and not options.follow:
            raise unknown_session(options.session)
        after = max(0, (head.seq if head is not None else 0) - options.lines)
        output = "jsonl" if options.follow and options.output == "json" else options.output
        after = print_after(log, options.session, after, output)
        while options.follow:
            time.sleep(FOLLOW_EVERY_S)
            after = print_after(log, options.session, after, output)
    return 0


def print_after(log: SessionLog, session: str, after: int, output: str) -> int:
    """Prints the events after a seq, and returns the last one's."""
    events = [event for commit in log.read(session, after=after) for event in events_of(commit) if event["seq"] > after]
    printing.rows(events, output, columns=COLUMNS)
    sys.stdout.flush()
    return events[-1]["seq"] if events else after


def events_of(commit: Commit) -> Iterator[dict[str, Any]]:
    """The events of a commit as they are printed; the digest stands at the last one."""
    for seq, event in enumerate(commit.events, commit.first_seq):
        yield {
            "schema": "muster.event/1",
            "session": commit.session,
            "seq": seq,
            "type": event.type,
            "actor": event.actor,
            "id": event.id,
            "time": event.time,
            "at": rfc3339(commit.at_ms),
            "data": event.payload(),
            "digest": commit.digest if seq == commit.last_seq else None,
            "traceparent": commit.traceparent,
        }
