"""What is said about settings and servers: how bad it is, what it is about, why, and what mends it.

An *error* loses events or keeps Muster from working, and stops the start in production; a *warning* will sooner or
later; a *recommendation* would be better.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

from msgspec import Struct, structs

from workers.settings import Profile

Level: TypeAlias = Literal["error", "warning", "recommendation"]
LEVELS: Final[tuple[Level, ...]] = ("error", "warning", "recommendation")
SCHEMA: Final = "muster.advice/1"


class Advice(Struct, frozen=True):
    """One thing to mend. `key` is a setting of Muster's, or of the server's, such as `server:maxmemory-policy`;
    `muster explain` says more about the `code`.
    """

    level: Level
    code: str
    key: str
    why: str
    remedy: str
    #: The line to run, where there is one that mends it at once.
    command: str = ""
    #: Whether it is as bad in every profile, since nothing works with it.
    always: bool = False


def for_profile(advice: Iterable[Advice], profile: Profile) -> list[Advice]:
    """Advice as bad as it is in a profile, the worst first: what loses events in production is a matter of taste on the
    machine of a developer.
    """
    lowered = {"production": 0, "staging": 1, "development": 2}[profile]
    ordered = sorted(advice, key=lambda one: LEVELS.index(one.level))
    judged = [
        one if one.always else structs.replace(one, level=LEVELS[min(LEVELS.index(one.level) + lowered, 2)])
        for one in ordered
    ]
    return sorted(judged, key=lambda one: LEVELS.index(one.level))
