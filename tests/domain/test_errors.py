"""The registry of errors: every code that is raised is in it, and every code in it can be met."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from domain.errors import CAUSES, REGISTRY, Conflict, MusterError, OutcomeUnknown, Refused, Unavailable

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("domain", "projections", "workers")
CODE: Final = re.compile(r"[A-Z]+(_[A-Z]+)+\Z")
CLASSES: Final = {entry.raised_as.__name__ for entry in REGISTRY.values()}

#: Codes that nothing raises yet, and what they are kept for.
KEPT_FOR: Final = {"USAGE": "the command line"}


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text("utf-8"))


def raised() -> Iterator[tuple[str, str, str]]:
    """(place, class, code) of every error that is made with a literal code."""
    for path, module in sources():
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in CLASSES and isinstance(node.args[0].value, str):
                    yield f"{path}:{node.lineno}", name, node.args[0].value


def mentioned() -> set[str]:
    """Every registered code that stands as a literal in a source other than the registry, or in the functions."""
    found: set[str] = set()
    for path, module in sources():
        if path != Path("domain/errors.py"):
            found |= {
                node.value for node in ast.walk(module) if isinstance(node, ast.Constant) and node.value in REGISTRY
            }
    lua = (ROOT / "domain/log/functions.lua").read_text("utf-8")
    return found | (set(re.findall(r"'([A-Z_]+)", lua)) & REGISTRY.keys())


def test_every_code_that_is_raised_is_registered_for_its_class() -> None:
    """Nobody meets an error that `explain` does not know, nor one of another class than it is registered for."""
    wrong = [
        (place, name, code)
        for place, name, code in raised()
        if code not in REGISTRY or REGISTRY[code].raised_as.__name__ != name
    ]

    assert len(list(raised())) > 50
    assert wrong == []


def test_every_refusal_of_the_functions_is_registered() -> None:
    """The codes that the server's functions answer are in the registry."""
    lua = (ROOT / "domain/log/functions.lua").read_text("utf-8")
    refusals = set(re.findall(r"'(?:REFUSED|DAMAGED)', '([A-Z_]+)'", lua))
    errors = set(re.findall(r"error_reply\('([A-Z_]+) ", lua)) - {"ERR"}

    assert refusals >= {"COMMIT_TOO_LARGE", "GATE_REFUSED", "HEAD_MISSING", "LOG_AHEAD", "QUARANTINED", "TOO_LATE"}
    assert errors >= {"STORE_MISSING", "STORE_CHANGED", "EPOCH_CHANGED"}
    assert refusals | errors <= REGISTRY.keys()


def test_every_registered_code_can_be_met() -> None:
    """What is registered is raised somewhere, or stands above with what it is kept for."""
    assert REGISTRY.keys() - mentioned() <= KEPT_FOR.keys()
    assert KEPT_FOR.keys() <= REGISTRY.keys()


@pytest.mark.parametrize("code", sorted(REGISTRY))
def test_an_error_says_its_code_cause_and_remedy(code: str) -> None:
    """Whoever meets an error reads what it is called, why it happened, and what to do: in one line."""
    entry = REGISTRY[code]
    error = entry.raised_as(code, "because of a test", session="s")

    assert CODE.match(code) or code in ("BEHIND", "FORK", "QUARANTINED", "UNREACHABLE", "USAGE")
    assert str(error) == f"{code}: because of a test ({entry.remedy})"
    assert error.facts == {"session": "s"}
    assert len(entry.remedy) > 10
    assert "\n" not in entry.remedy
    assert not entry.remedy.endswith(".")


def test_every_code_says_what_happened() -> None:
    """In one sentence of its own, so that `explain` says more than the class does."""
    assert CAUSES.keys() == REGISTRY.keys()
    assert len(set(CAUSES.values())) == len(CAUSES)
    assert all(len(cause) > 10 and "\n" not in cause and not cause.endswith(".") for cause in CAUSES.values())


def test_an_unregistered_code_cannot_be_raised() -> None:
    """A code that is not in the registry, or stands there for another class, is a bug that shows at once."""
    with pytest.raises(LookupError, match="BANANA"):
        Refused("BANANA", "no such code")
    with pytest.raises(LookupError, match="SEQ_CONFLICT"):
        Refused("SEQ_CONFLICT", "a code of another class")
    with pytest.raises(LookupError, match="UNREACHABLE"):
        Conflict("UNREACHABLE", "a code of another class")


def test_every_class_has_its_exit_code() -> None:
    """The exit codes of the command line follow the class, so a script can tell what to do."""
    codes = {cls.__name__: cls.exit_code for cls in _subclasses(MusterError)}

    assert codes == {
        "Refused": 9,
        "Conflict": 6,
        "NotFound": 4,
        "Unavailable": 5,
        "OutcomeUnknown": 5,
        "DeadlineExceeded": 10,
        "Misconfigured": 3,
        "Damaged": 8,
    }
    assert MusterError.exit_code == 70
    assert issubclass(OutcomeUnknown, Unavailable)


def _subclasses(cls: type[MusterError]) -> Iterator[type[MusterError]]:
    for sub in cls.__subclasses__():
        if sub.__module__ == "domain.errors":
            yield sub
            yield from _subclasses(sub)
