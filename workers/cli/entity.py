"""`muster entity`: what was done to entities, over all sessions."""

from __future__ import annotations

import argparse
from typing import Final

from projections.queries import Views
from workers.cli import arguments, printing
from workers.settings import Settings

SCHEMA: Final = "muster.entity/1"
COLUMNS: Final = ("entity", "sessions")


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)
    ls = arguments.command(group, "ls", "list entities by name, and how many sessions touched each", run_ls)
    arguments.page(ls, "begin after this entity: the last one of the page before")
    ls.add_argument("--prefix", default="", help="those that begin so")
    show = arguments.command(group, "show", "show what was done to one entity", run_show)
    show.add_argument("entity")
    show.add_argument("--sessions", type=int, default=1000, metavar="N", help="read at most so many sessions (1000)")


def run_ls(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        limit = None if options.all else options.limit
        found = Views(store, log).entities(prefix=options.prefix, after=options.after, limit=limit)
        printing.rows(({"schema": SCHEMA, **entity} for entity in found), options.output, columns=COLUMNS)
    return 0


def run_show(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        found = Views(store, log).entity(options.entity, most=options.sessions)
        printing.document({"schema": SCHEMA, **found}, options.output)
    return 0
