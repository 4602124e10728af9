"""`muster health`: how every part is, why, since when, what to do. Ends within `health.timeout_s`, whatever hangs."""

from __future__ import annotations

import argparse
from typing import Final

from workers.cli import arguments, printing
from workers.health.component import Component, Status, overall, status_document
from workers.health.looking import Health
from workers.health.probes import DEEP, PROBES, READY
from workers.settings import Settings

COLUMNS: Final = ("component", "status", "code", "since", "reason")


def configure(parser: argparse.ArgumentParser) -> None:
    arguments.server(parser)
    arguments.output(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--live", action="store_true", help="only whether this program runs; asks nobody")
    which.add_argument("--ready", action="store_true", help="only whether appends are taken")
    which.add_argument("--deep", action="store_true", help="also whether settings and server are fit for the profile")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: Settings) -> int:
    if options.live:
        printing.document({"schema": "muster.live/1", "status": "alive"}, options.output)
        return 0
    health = Health(settings, {**PROBES, **DEEP})
    components = health.look(READY if options.ready else {**PROBES, **DEEP} if options.deep else PROBES)
    return shown(components, options.output)


def shown(components: list[Component], output: str) -> int:
    """Prints how components are; exit 1 if one is critical or down."""
    documents = [one.document() for one in components]
    if output == "table":
        printing.rows(documents, output, columns=COLUMNS)
        for one in components:
            if one.remedy is not None:
                print(f"{one.name}: {one.reason}\n   {one.code}: {one.remedy}")
    elif output == "jsonl":
        printing.rows(documents, output, columns=COLUMNS)
    else:
        printing.document(status_document(components) | {"components": documents}, output)
    return 1 if overall(components) >= Status.CRITICAL else 0
