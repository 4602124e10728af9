"""`muster diagnostics`: one archive for whoever helps, without secrets and without what sessions said."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from domain.errors import NotFound
from workers.cli import arguments, printing
from workers.diagnostics.bundle import SCHEMA, collect, write
from workers.diagnostics.parts import Sources
from workers.diagnostics.redaction import Redaction, secrets_of
from workers.settings import Reading

#: How long is collected, in seconds, unless told otherwise.
TIMEOUT_S: Final = 20.0


def configure(parser: argparse.ArgumentParser) -> None:
    arguments.server(parser)
    arguments.output(parser)
    arguments.profile(parser)
    parser.add_argument("--to", type=Path, metavar="FILE", help="the archive (muster-diagnostics-<time>.tar.gz)")
    parser.add_argument(
        "--log",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="also the end of this file; repeatable",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT_S,
        metavar="S",
        help=f"collect for so many seconds ({TIMEOUT_S:g}); what is not there then is left out",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, reading: Reading) -> int:
    """Exit 7 if a part is missing."""
    loaded = reading.loaded()
    redaction = Redaction(secrets_of(loaded.settings, reading.environ))
    collected = collect(Sources(loaded, tuple(options.log)), redaction, timeout_s=options.timeout)
    try:
        path = write(collected, options.to, redaction)
    except OSError as error:
        raise NotFound("FILE_UNREADABLE", f"the archive cannot be written: {error}") from None
    missing = [one for one in collected if one.content is None]
    for one in missing:
        printing.say(f"missing: {one.file}: {one.code}: {one.why}")
    document = {
        "schema": SCHEMA,
        "file": str(path),
        "bytes": path.stat().st_size,
        "whole": [one.file for one in collected if one.state == "whole"],
        "cut": [one.file for one in collected if one.state == "cut"],
        "missing": [one.file for one in missing],
    }
    printing.document(document, options.output)
    return 7 if missing else 0
