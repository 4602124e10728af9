"""Measures Muster against the machine's limits and against what a user would pick instead, in one run.

    ./scripts/bench [--quick] [ROW …]        or: python -m tests.bench

The table and how far it is go to stderr, a summary of at most three lines to stdout. Exit 0 only if every goal was
reached, or is listed as out of reach with the reason.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import msgspec

from tests.bench.arena import Effort
from tests.bench.plot import draw
from tests.bench.report import document, markdown, row_lines, summary, table
from tests.bench.running import Found, find_rows, run_rows

#: How long the rows may take in all, in seconds: the whole run stays below a quarter of an hour, or two minutes.
WITHIN_S: Final = {Effort.FULL: 12 * 60.0, Effort.QUICK: 90.0, Effort.SMOKE: 60.0}


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    found = find_rows()
    if options.list:
        for each in found:
            print(f"{each.part}/{each.name:<24} {each.row.what}")
        return 0
    effort = Effort.SMOKE if options.smoke else Effort.QUICK if options.quick else Effort.FULL
    chosen = _chosen(found, options.rows, effort)
    if not chosen:
        print(f"no row is called so; there are: {' '.join(each.name for each in found)}", file=sys.stderr)
        return 2

    started_at, began = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    results = []
    for result in run_rows(chosen, effort, within_s=WITHIN_S[effort], peers=not options.no_peers, say=say):
        results.append(result)
        say("\n".join(row_lines(result)))
    say("\n".join(["", *table(results)]))
    report = document(results, effort=effort.name.lower(), started_at=started_at, seconds=time.monotonic() - began)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "bench.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
        (options.output / "bench.svg").write_text(draw(report))
        (options.output / "bench.md").write_text(markdown(results))
    lines, is_good = summary(results, options.output)
    print("\n".join(lines))
    return 0 if is_good else 1


def _chosen(found: list[Found], names: list[str], effort: Effort) -> list[Found]:
    if names:
        return [each for each in found if any(_is_called(each, name) for name in names)]
    return [each for each in found if each.row.is_quick or effort is not Effort.QUICK]


def _is_called(each: Found, name: str) -> bool:
    return fnmatch(each.name, name) or fnmatch(f"{each.part}/{each.name}", name) or each.part == name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help="only these: a name, a part (goals), or a pattern")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds: two minutes at most")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes, one round: do rows run at all?")
    parser.add_argument("--no-peers", action="store_true", help="without what a user would pick instead")
    parser.add_argument("--list", action="store_true", help="what rows there are")
    parser.add_argument("--output", type=Path, help="a folder for bench.json, bench.svg and bench.md")
    return parser


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
