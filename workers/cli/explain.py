"""`muster explain CODE`: what an error code, or the code of a finding, means and what to do."""

from __future__ import annotations

import argparse

from domain.errors import REGISTRY, NotFound
from projections.findings import KINDS
from workers.cli import arguments, printing
from workers.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    arguments.output(parser)
    parser.add_argument("code")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: Settings) -> int:
    code = options.code.upper()
    found = {"schema": "muster.code/1", "code": code}
    if code in REGISTRY:
        raised_as, remedy = REGISTRY[code]
        meaning = (raised_as.__doc__ or "").strip()
        found |= {
            "raised_as": raised_as.__name__,
            "meaning": meaning,
            "exit_code": str(raised_as.exit_code),
            "remedy": remedy,
        }
    if code in KINDS:
        kind = KINDS[code]
        found |= {"finding": kind.kind, "severity": kind.severity, "remedy_of_finding": kind.remedy}
    if len(found) == 2:
        raise NotFound("CODE_UNKNOWN", f"there is no code {code}")
    printing.document(found, options.output)
    return 0
