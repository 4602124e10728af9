"""`muster stats`: figures over all sessions, now and over time."""

from __future__ import annotations

import argparse
from typing import Final

from domain.errors import Refused
from projections.queries import Views
from projections.statistics import BUCKETS
from workers.cli import arguments, filtering, printing
from workers.settings import Settings

SCHEMA: Final = "muster.statistics/1"
TIME_SCHEMA: Final = "muster.statistics-time/1"
COLUMNS: Final = ("from", "started", "completed", "last_appended")


def configure(parser: argparse.ArgumentParser) -> None:
    arguments.server(parser)
    arguments.output(parser)
    parser.set_defaults(run=run)
    parser.add_argument("--by", choices=tuple(BUCKETS), help="over time: a row an hour or a day (UTC)")
    parser.add_argument("--agents", action="store_true", help="how many agents there are too: reads the totals of each")
    filtering.times(parser)


def run(options: argparse.Namespace, settings: Settings) -> int:
    if options.by is None and (options.since, options.until) != (None, None):
        raise Refused("USAGE", "figures of a time are over time: add --by hour or --by day")
    with arguments.opened(settings) as (log, store):
        views = Views(store, log)
        if options.by is None:
            printing.document({"schema": SCHEMA, **views.statistics(agents=options.agents)}, options.output)
        else:
            found = views.statistics_over_time(options.by, since=options.since, until=options.until)
            printing.rows(({"schema": TIME_SCHEMA, **row} for row in found), options.output, columns=COLUMNS)
    return 0
