"""`muster config`: the settings in force, where each comes from, whether they and the server are fit, their schema."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from domain.errors import MusterError
from workers.advice import SCHEMA, Advice
from workers.cli import arguments, printing
from workers.describing import descriptions, schema
from workers.readiness import ready
from workers.settings import RELOADABLE, Reading, allowed, shown
from workers.validation import judge

COLUMNS: Final = ("setting", "value", "origin")


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)
    arguments.profile(arguments.command(group, "show", "every setting with its value and its origin", run_show))
    check = arguments.command(group, "check", "whether the settings are valid and fit for their profile", run_check)
    arguments.profile(check)
    check.add_argument("--live", action="store_true", help="also whether the server is, by asking it")
    arguments.command(group, "schema", "the JSON Schema of muster.toml", run_schema)


def run_show(options: argparse.Namespace, reading: Reading) -> int:
    loaded = reading.loaded()
    values, about = shown(loaded.valid()), descriptions()
    rows = (
        {
            "schema": "muster.setting/1",
            "setting": name,
            # JSON has no infinity.
            "value": str(value) if value == float("inf") else value,
            "origin": loaded.origins[name],
            "allowed": allowed(name),
            "reloadable": name in RELOADABLE,
            "description": about[name],
        }
        for name, value in values.items()
    )
    printing.rows(rows, options.output, columns=COLUMNS)
    return 0


def run_check(options: argparse.Namespace, reading: Reading) -> int:
    loaded = reading.loaded()
    rows = [invalid(problem) for problem in loaded.problems]
    if loaded.settings is not None:
        rows += [row(one) for one in (ready if options.live else judge)(loaded.settings)]
    if options.output == "table":
        for one in rows:
            print("\n".join(told(one)))
    else:
        printing.rows(rows, options.output, columns=())
    counts = {level: sum(one["level"] == level for one in rows) for level in ("error", "warning", "recommendation")}
    profile = loaded.settings.profile if loaded.settings is not None else "no valid settings"
    printing.say(f"{profile}: " + ", ".join(f"{count} {level}s" for level, count in counts.items()))
    if loaded.settings is None:
        return loaded.problems[0].exit_code
    return 1 if counts["error"] else 0


def run_schema(options: argparse.Namespace, reading: Reading) -> int:
    print(json.dumps(schema(), indent=2, ensure_ascii=False))
    return 0


def row(advice: Advice) -> dict[str, Any]:
    return {"schema": SCHEMA, **msgspec.to_builtins(advice)}


def told(one: Mapping[str, Any]) -> list[str]:
    """Advice for people, whole: a table would cut what matters."""
    lines = [f"{one['level']} {one['code']} ({one['key']})", f"   {one['why']}", f"   remedy: {one['remedy']}"]
    return [*lines, f"   run: {one['command']}"] if one["command"] else lines


def invalid(problem: MusterError) -> dict[str, Any]:
    """What was refused, as advice."""
    key = str(problem.facts.get("key", "file"))
    return row(Advice("error", problem.code, key, problem.cause, problem.remedy, always=True))
