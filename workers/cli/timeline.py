"""`muster session timeline`: what happened in a session, as text, as rows of JSON, or as one HTML file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from domain.errors import Damaged, Refused
from projections.queries import Views
from projections.stepping import Step, steps
from projections.timeline import IDLE_MS, timeline
from workers.cli import arguments, printing
from workers.cli.event import writable
from workers.settings import Settings
from workers.timeline_page import page
from workers.timeline_text import lines, rows

#: The schema of the states in a page: those of `muster session show`.
STATE_SCHEMA = "muster.session/1"


def configure(group: Any) -> None:
    command = arguments.command(group, "timeline", "what happened in a session, with the state at every seq", run)
    command.add_argument("session")
    command.add_argument(
        "--from", dest="first", metavar="SEQ|TIME", help="begin with this event, or the first after it"
    )
    command.add_argument("--to", dest="last", metavar="SEQ|TIME", help="end with this event")
    command.add_argument("--html", metavar="FILE", help="write one HTML file with a scrubber instead")
    command.add_argument(
        "--redact",
        choices=("known", "none"),
        default="known",
        help="of events' data show the known fields of built-in types alone (known), or all",
    )
    command.add_argument(
        "--clock",
        choices=("server", "producer"),
        default="server",
        help="times and pauses by the server's clock, or by what producers claimed (for histories that were imported)",
    )
    command.add_argument(
        "--idle", type=float, metavar="S", default=IDLE_MS / 1000, help="collapse pauses longer than this (60)"
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    idle_ms = int(options.idle * 1000)
    with arguments.opened(settings) as (log, store):
        views = Views(store, log)
        last = views.session(options.session)["seq"] if options.last is None else _seq(views, options, options.last)
        first = 1 if options.first is None else _first(views, options)
        if first > last:
            raise Refused("USAGE", f"there are no events from seq {first} to {last}")
        state = views.state_before(options.session, first)
        walk = _Walk(steps(log, state, to=last))
        while state.seq < first - 1:
            next(walk)
        if options.html is not None:
            made = page(
                state,
                walk,
                schema=STATE_SCHEMA,
                quarantined=views.session(options.session)["quarantined"],
                redaction=options.redact,
                idle_ms=idle_ms,
                clock=options.clock,
            )
            with writable(options.html) as file:
                file.write(made)
            printing.say(f"wrote {len(made.encode())} bytes to {options.html}: seq {first} to {state.seq}")
        else:
            items = timeline(walk, redaction=options.redact, idle_ms=idle_ms, clock=options.clock)
            if options.output == "table":
                for line in lines(items):
                    print(line)
            else:
                printing.rows(rows(items), options.output, columns=())
    if walk.damage is not None:
        raise walk.damage
    return 0


def _seq(views: Views, options: argparse.Namespace, text: str) -> int:
    return views.seq_at(options.session, arguments.moment(text))


def _first(views: Views, options: argparse.Namespace) -> int:
    """A seq; of a time, the one after the last commit before it."""
    moment = arguments.moment(options.first)
    if isinstance(moment, int):
        return views.seq_at(options.session, moment)
    return views.seq_before(options.session, moment) + 1


class _Walk:
    """Steps as far as the log verifies; why they end there is kept, so that all before it is told first."""

    def __init__(self, walk: Iterator[Step]) -> None:
        self._walk = walk
        self.damage: Damaged | None = None

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        try:
            return next(self._walk)
        except Damaged as damage:
            self.damage = damage
            raise StopIteration from None
