"""`muster spool`: what waits in an outage spool on this host; sending it; taking it out.

The file is that of `--spool` or MUSTER_SPOOL__PATH. `ls` and `export` need no server.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from domain.codec import decode_body, format_line
from domain.errors import Conflict, DeadlineExceeded, NotFound, Refused
from domain.log import Spool
from domain.log.spooling.spool import Spooled
from projections.session_view import rfc3339
from workers.cli import arguments, printing
from workers.settings import Settings

SCHEMA: Final = "muster.spool/1"
COLUMNS: Final = ("session", "commits", "events", "since", "code", "cause")
#: How many commits are taken out at a time, after they stand in the exported file.
REMOVED_TOGETHER: Final = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)
    ls = arguments.command(group, "ls", "list the sessions of which commits wait, since when, and what is held", run_ls)
    drain = arguments.command(group, "drain", "send what waits, held commits too, and wait until it arrived", run_drain)
    drain.add_argument("--timeout", type=float, metavar="S", default=float("inf"), help="wait so long at most")
    export = arguments.command(group, "export", "write what waits as producers' lines, for `event import`", run_export)
    export.add_argument("file", help="where the lines go; - for standard output")
    export.add_argument("--session", help="only of this session")
    export.add_argument("--held", action="store_true", help="only of sessions of which a commit is held")
    export.add_argument("--remove", action="store_true", help="take out of the spool what is safely in the file")
    for command in (ls, drain, export):
        command.add_argument("--spool", metavar="PATH", help="the spool's file (MUSTER_SPOOL__PATH)")
    for command in (drain, export):
        command.add_argument("--dry-run", action="store_true", help="only say how much it would touch")


def run_ls(options: argparse.Namespace, settings: Settings) -> int:
    with opened(options, settings) as spool:
        printing.rows(by_session(spool.each()), options.output, columns=COLUMNS)
        totals = spool.totals()
    printing.say(
        f"{totals.commits} commits of {totals.sessions} sessions wait, {totals.held} of these held; "
        f"{totals.bytes} of {totals.max_bytes} bytes"
    )
    return 0


def by_session(waiting: Iterable[Spooled]) -> list[dict[str, Any]]:
    """A row a session, in the order of their oldest commits; that one says why a session is held."""
    found: dict[str, dict[str, Any]] = {}
    for one in waiting:
        row = found.setdefault(
            one.request.session,
            {
                "schema": SCHEMA,
                "session": one.request.session,
                "commits": 0,
                "events": 0,
                "since": rfc3339(one.at_ms),
                "code": one.code,
                "cause": one.cause,
            },
        )
        row["commits"] += 1
        row["events"] += len(one.request.kinds)
    return list(found.values())


def run_drain(options: argparse.Namespace, settings: Settings) -> int:
    with opened(options, settings) as spool:
        before = spool.totals()
        if options.dry_run:
            printing.say(f"dry run: would send {before.commits} commits of {before.sessions} sessions")
            return 0
        spool.release()
        with arguments.opened_log(settings, spool) as log:
            progress = printing.Progress()
            until = time.monotonic() + options.timeout
            while not log.drained(timeout_s=0.5):
                left = spool.totals().commits
                progress(f"spool drain: {left} commits wait; server: {log.connection.last_error or 'answers'}")
                if time.monotonic() > until:
                    raise DeadlineExceeded("SPOOL_WAITS", f"{left} commits still wait after {options.timeout:g} s")
        after = spool.totals()
    printing.document(
        {"schema": SCHEMA, "waited": before.commits, "left": after.commits, "held_sessions": after.held}, options.output
    )
    return 7 if after.commits else 0


def run_export(options: argparse.Namespace, settings: Settings) -> int:
    if options.remove and options.file == "-":
        raise Refused("USAGE", "what goes to standard output cannot be known to be safe: name a file with --remove")
    with opened(options, settings) as spool, spool.sending() as is_ours:
        if options.remove and not is_ours:
            raise Conflict("SPOOL_IN_USE", f"a process is sending what is in {spool.path}")
        chosen = spool.each(options.session, held=options.held)
        if options.dry_run:
            printing.say(f"dry run: would write {sum(len(one.request.kinds) for one in chosen)} events")
            return 0
        events, written = 0, []
        with target(options.file) as file:
            for one in chosen:
                for event in decode_body(one.request.body):
                    file.write(format_line(one.request.session, event) + b"\n")
                events += len(one.request.kinds)
                written.append(one.number)
            file.flush()
            if options.remove:
                os.fsync(file.fileno())
        if options.remove:
            for start in range(0, len(written), REMOVED_TOGETHER):
                spool.remove(written[start : start + REMOVED_TOGETHER])
    printing.say(f"{events} events of {len(written)} commits written{', and taken out' if options.remove else ''}")
    return 0


@contextmanager
def target(name: str) -> Iterator[IO[bytes]]:
    """A new file to write lines to; - is standard output. Raises NotFound (FILE_UNREADABLE), also if it is there."""
    if name == "-":
        yield sys.stdout.buffer
        return
    try:
        with open(name, "xb") as file:
            yield file
    except OSError as error:
        raise NotFound("FILE_UNREADABLE", f"{name} cannot be written: {error.strerror}") from None


@contextmanager
def opened(options: argparse.Namespace, settings: Settings) -> Iterator[Spool]:
    """The spool that is named. Raises Refused (USAGE) if none is, NotFound (FILE_UNREADABLE) if there is none."""
    path = options.spool or settings.spool.path
    if path is None:
        raise Refused("USAGE", "no spool is named: give --spool PATH or MUSTER_SPOOL__PATH")
    if not Path(path).is_file():
        raise NotFound("FILE_UNREADABLE", f"there is no spool {path}")
    spool = Spool(path, max_bytes=settings.spool.max_bytes)
    try:
        yield spool
    finally:
        spool.close()
