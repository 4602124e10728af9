"""`muster top`: server, fleet, lag, hot sessions, memory by kind of key, slow commands; in place on a terminal."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from collections.abc import Iterable
from typing import Final

import msgspec
import redis

from domain.errors import MusterError
from domain.log.connection import connection_error
from projections.session_view import rfc3339
from workers.cli import arguments, printing
from workers.fleet import until_stopped
from workers.overview.overview import Overview, look
from workers.settings import Settings
from workers.stopping import Stop

SCHEMA: Final = "muster.top/1"
#: How often it looks, in seconds, unless told otherwise.
EVERY_S: Final = 2.0
#: How many lines a panel has at most.
LINES: Final = 10
#: Another screen, so that what stood before is there afterwards; and back. Its top, what follows, and to a line's end.
_ENTER, _LEAVE, _TOP, _REST, _LINE_END = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H", "\x1b[J", "\x1b[K"


def configure(parser: argparse.ArgumentParser) -> None:
    arguments.server(parser)
    arguments.output(parser)
    parser.add_argument("--once", action="store_true", help="look once; so it does where the output is no terminal")
    parser.add_argument("--every", type=float, default=EVERY_S, metavar="S", help=f"look every so often ({EVERY_S:g})")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: Settings) -> int:
    rng = random.Random()
    if options.once or options.output != "table" or not sys.stdout.isatty():
        found = look(settings, rng)
        if options.output == "table":
            print("\n".join(lines(found)))
        else:
            printing.document({"schema": SCHEMA, **msgspec.to_builtins(found)}, options.output)
        return 0
    stop = Stop()
    with until_stopped(stop):
        sys.stdout.write(_ENTER)
        try:
            while True:
                _show(_lines_now(settings, rng))
                if stop.wait(max(0.1, options.every)):
                    return 0
        finally:
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()


def _lines_now(settings: Settings, rng: random.Random) -> list[str]:
    """What there is to see; a server that is away is seen to be."""
    try:
        return lines(look(settings, rng))
    except (MusterError, redis.RedisError, OSError) as error:
        typed = error if isinstance(error, MusterError) else connection_error(error)
        return [f"{typed.code}: {typed.cause}", typed.remedy]


def _show(told: list[str]) -> None:
    width, height = shutil.get_terminal_size()
    rows = [line[:width] + _LINE_END for line in told[: max(1, height - 1)]]
    sys.stdout.write(_TOP + "\n".join(rows) + "\n" + _REST)
    sys.stdout.flush()


def lines(found: Overview) -> list[str]:
    """All panels, as text."""
    told = [f"{rfc3339(found.server_ms)}  {found.sessions} sessions{_server(found)}"]
    told += [f"! {notice}" for notice in found.notices]
    told += [f"! {panel} is not to be seen: {why}" for panel, why in found.unseen.items()]
    if found.lags is not None:
        told += _panel(
            ("projection", "behind", "for s", "partitions in trouble", "waits"),
            ([one.projection, one.events, f"{one.seconds:.1f}", one.troubled, one.session] for one in found.lags),
        )
    if found.workers is not None:
        told += _panel(
            ("worker", "host", "partitions", "silent for ms"),
            ([one.pid, one.host, one.partitions, one.silent_ms] for one in found.workers),
        )
    if found.heat is not None:
        told += _panel(
            (f"hot sessions ({found.heat.per_s:.1f} events/s)", "events/s", "events", "bytes"),
            ([one.session, f"{one.per_s:.1f}", one.events, one.bytes] for one in found.heat.sessions),
        )
    if found.memory is not None:
        told += _panel(
            ("memory, about", "MiB", "of", "measured"),
            ([one.kind, f"{one.bytes / 2**20:.2f}", one.owners, one.measured] for one in found.memory),
        )
    if found.slow is not None:
        told += _panel(
            ("slow commands", "ms", "at", "arguments", "from"),
            (
                [one.command, f"{one.took_us / 1000:.1f}", rfc3339(one.at * 1000), one.arguments, one.client]
                for one in found.slow
            ),
        )
    return told


def _server(found: Overview) -> str:
    if found.server is None:
        return ""
    server = found.server
    limit = f" of {server.memory_limit_bytes / 2**20:.0f}" if server.memory_limit_bytes else ""
    return (
        f"  {server.version}  {server.commands_per_s} commands/s  {server.clients} clients"
        f"  {server.memory_bytes / 2**20:.1f}{limit} MiB"
    )


def _panel(titles: tuple[str, ...], rows: Iterable[list[object]]) -> list[str]:
    """A title line and at most so many rows, in columns."""
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    more = len(cells) - LINES
    cells = cells[:LINES]
    table = [[title.upper() for title in titles], *cells]
    widths = [max(len(row[column]) for row in table) for column in range(len(titles))]
    told = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return ["", *told, *([f"… and {more} more"] if more > 0 else [])]
