"""`muster read-only`: closes a store for appends, by hand, and opens it; reading, verifying and freeing go on."""

from __future__ import annotations

import argparse
from typing import Any, Final

from domain.log.read_only import Closed, ReadOnlyMode
from projections.session_view import rfc3339
from workers.cli import arguments, printing
from workers.settings import Settings

SCHEMA: Final = "muster.read_only/1"


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)
    arguments.command(group, "show", "whether the store takes appends; who closed it, why, since when", run_show)
    on = arguments.command(group, "on", "have the store take no appends until it is opened", run_on)
    on.add_argument("--why", required=True, help="what producers are told")
    off = arguments.command(group, "off", "have the store take appends again", run_off)
    for command in (on, off):
        command.add_argument("--dry-run", action="store_true", help="only say what stands now")


def run_show(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened_log(settings) as log:
        printing.document(_document(ReadOnlyMode(log).standing()), options.output)
    return 0


def run_on(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened_log(settings) as log:
        mode, changed = ReadOnlyMode(log), 0
        if not options.dry_run:
            changed = mode.close(arguments.who(), options.why)
        printing.document(_document(mode.standing()) | {"partitions": changed}, options.output)
    return 0


def run_off(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened_log(settings) as log:
        mode, changed = ReadOnlyMode(log), 0
        if not options.dry_run:
            changed = mode.open(arguments.who())
        printing.document(_document(mode.standing()) | {"partitions": changed}, options.output)
    return 0


def _document(closed: Closed | None) -> dict[str, Any]:
    if closed is None:
        return {"schema": SCHEMA, "read_only": False}
    return {
        "schema": SCHEMA,
        "read_only": True,
        "who": closed.who,
        "why": closed.why,
        "since": rfc3339(closed.since_ms),
        "until": None if closed.until_ms is None else rfc3339(closed.until_ms),
    }
