"""`muster explain CODE|TEXT`: what the code of an error or a finding, or the text of an error, means; what to do."""

from __future__ import annotations

import argparse

from domain.errors import Refused
from workers.cli import arguments, printing
from workers.explaining import explained, markdown
from workers.settings import Reading


def configure(parser: argparse.ArgumentParser) -> None:
    arguments.output(parser)
    parser.add_argument("text", nargs="*", help="a code, or the text of an error as it was met")
    parser.add_argument("--all", action="store_true", help="all codes, as docs/errors.md has them")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, reading: Reading) -> int:
    if options.all:
        for line in markdown():
            print(line)
        return 0
    if not options.text:
        raise Refused("USAGE", "give a code, the text of an error, or --all")
    printing.document(explained(" ".join(options.text)), options.output)
    return 0
