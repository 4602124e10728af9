"""`muster session`: what sessions are doing, now or at a seq."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, Final

from projections.queries import Views
from projections.searching import Filter
from workers.cli import arguments, filtering, printing
from workers.settings import Settings

SCHEMA = "muster.session/1"
COUNT_SCHEMA: Final = "muster.count/1"
#: How many sessions are found at a time.
FOUND_PAGE: Final = 256
COLUMNS = ("session", "seq", "state", "first_actor", "last_type", "last_at", "quarantined")


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)
    ls = arguments.command(group, "ls", "list sessions by partition and id, or those that meet a filter", run_ls)
    ls.add_argument("--all", action="store_true", help="all of them; else --limit")
    ls.add_argument("--limit", type=int, default=50, help="how many (50)")
    ls.add_argument(
        "--after",
        metavar="SESSION",
        help="begin after this session: the last one of the page before; with a filter, after its `cursor`",
    )
    ls.add_argument("--count", action="store_true", help="how many there are, and nothing else")
    filtering.options(ls)
    show = arguments.command(group, "show", "show one session", run_show)
    show.add_argument("session")
    show.add_argument("--at", type=int, metavar="SEQ", help="as it stood right after this seq")


def run_ls(options: argparse.Namespace, settings: Settings) -> int:
    wanted = filtering.filter_of(options)
    with arguments.opened(settings) as (log, store):
        views, limit = Views(store, log), None if options.all else options.limit
        if options.count:
            printing.document({"schema": COUNT_SCHEMA, "sessions": views.count(wanted)}, options.output)
            return 0
        found = views.sessions(after=options.after, limit=limit)
        if wanted != Filter():
            found = _found(views, wanted, options.after, limit)
        printing.rows(map(with_schema, found), options.output, columns=COLUMNS)
    return 0


def _found(views: Views, wanted: Filter, after: str | None, limit: int | None) -> Iterator[dict[str, Any]]:
    """The sessions that meet a filter; says where the next page begins."""
    while limit is None or limit > 0:
        page = views.find(wanted, after=after, limit=FOUND_PAGE if limit is None else min(limit, FOUND_PAGE))
        yield from page.sessions
        after = page.cursor
        if after is None:
            return
        limit = None if limit is None else limit - len(page.sessions)
    printing.say(f"there may be more: --after {after}")


def run_show(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        views = Views(store, log)
        at = options.at
        found = views.session(options.session) if at is None else views.session_at(options.session, at)
        printing.document(with_schema(found), options.output)
    return 0


def with_schema(found: dict[str, Any]) -> dict[str, Any]:
    return {"schema": SCHEMA, **found}
