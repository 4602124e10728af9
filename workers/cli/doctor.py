"""`muster doctor`: what is wrong, in one line; then why, ranked, and the command that mends each."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

import msgspec
from msgspec import structs

from workers.advice import Advice
from workers.cli import arguments, printing
from workers.cli.config import row, told
from workers.doctor import READ_FOR_S, diagnose
from workers.settings import Reading


def configure(parser: argparse.ArgumentParser) -> None:
    arguments.server(parser)
    arguments.output(parser)
    arguments.profile(parser)
    parser.add_argument(
        "--read-for",
        type=float,
        default=READ_FOR_S,
        metavar="S",
        help=f"look for drift so many seconds (default {READ_FOR_S:g}); `projection verify --all` reads everything",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, reading: Reading) -> int:
    found = diagnose(reading.loaded(), read_for_s=options.read_for)
    findings = [_runnable(one, options) for one in found.findings]
    if options.output == "table":
        _say(found.verdict, findings, [(step.name, step.told) for step in found.steps])
    else:
        document: dict[str, Any] = {
            "schema": "muster.diagnosis/1",
            "verdict": found.verdict,
            "code": findings[0].code if findings else None,
            "findings": msgspec.to_builtins(findings),
            "steps": msgspec.to_builtins(found.steps),
        }
        printing.document(document, options.output)
    return 1 if found.is_ill else 0


def _say(verdict: str, findings: list[Advice], steps: list[tuple[str, str]]) -> None:
    print(f"verdict: {verdict}")
    for number, one in enumerate(findings, 1):
        print(f"\n{number}. " + "\n".join(told(row(one))))
    print("\nlooked at:")
    for name, came_of_it in steps:
        print(f"  {name:<14}{came_of_it}")


def _runnable(one: Advice, options: argparse.Namespace) -> Advice:
    """With the options this command was given, so that its line does what is meant where it is pasted."""
    if not one.command.startswith("muster "):
        return one
    given = [(name, getattr(options, name)) for name in ("url", "environment", "namespace")]
    where = "".join(f" --{name} {shlex.quote(value)}" for name, value in given if value is not None)
    return structs.replace(one, command=one.command + where)
