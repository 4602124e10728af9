"""The projections of the user's own that this process knows: by setting, and by entry points.

MUSTER_PROJECTIONS=shop.tokens:TokensByModel,shop.tokens:TokensPerSession
[project.entry-points."muster.projections"]    in the pyproject.toml of the user's package
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final

from domain.errors import Misconfigured
from projections.projection import Definition, Projection
from workers.settings import Settings

GROUP: Final = "muster.projections"


def registered(settings: Settings) -> list[Definition]:
    """All of them, checked. Raises Misconfigured (PROJECTION_INVALID) for one that cannot be loaded or cannot work."""
    named = [name.strip() for name in settings.projections.split(",") if name.strip()]
    named += [point.value for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)]
    definitions: dict[str, Definition] = {}
    for name in dict.fromkeys(named):
        definition = _definition(name)
        if definition.label in definitions:
            raise _invalid(name, f"there is another class for {definition.label}")
        definitions[definition.label] = definition
    return list(definitions.values())


def _definition(name: str) -> Definition:
    module, _, attribute = name.partition(":")
    try:
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        made = found() if isinstance(found, type) else found
    except Exception as error:
        raise _invalid(name, f"it cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(made, Projection):
        raise _invalid(name, "it is no subclass of projections.projection.Projection")
    return Definition(made)


def _invalid(name: str, cause: str) -> Misconfigured:
    return Misconfigured("PROJECTION_INVALID", f"the projection {name!r}: {cause}")
