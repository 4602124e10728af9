"""Old shapes of events' data into the current one, when they are read: what is stored is never rewritten.

The shape of an event is a number that its producer states: the version of what its `data` looks like for its type.
Types of the user's own have as many shapes as there are steps for them, and one more:

    SHAPES = Upcasters({"llm.called": [tokens_as_numbers, with_model]})

`tokens_as_numbers` takes data of shape 1 and returns that of shape 2, `with_model` goes on to 3, the current one. The
projections that read such events name it as their `upcasters`; the built-in views read no data of types with a dot.
Built-in types have one shape in this release. An event of a shape that nobody here knows yet was written by a newer
program; it stalls its session, and nothing else, until a process that knows the shape takes over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from msgspec import Raw, structs

from domain.errors import Damaged, Misconfigured, MusterError
from domain.events import DOTTED_TYPE, MAX_TYPE_LENGTH, Event, check_plain, pack, shortened

#: Data of one shape in, data of the next one out. It may change what it is given.
Step: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]


class Upcasters:
    """The steps for each type, in order.

    Raises Misconfigured (UPCASTER_INVALID) for a type that is built in or none, and for what cannot be called.
    """

    def __init__(self, steps: Mapping[str, Sequence[Step]]) -> None:
        for type, chain in steps.items():
            if not DOTTED_TYPE.match(type) or len(type) > MAX_TYPE_LENGTH:
                raise Misconfigured("UPCASTER_INVALID", f"{shortened(type)} is no type of your own")
            if not all(callable(step) for step in chain):
                raise Misconfigured("UPCASTER_INVALID", f"a step for {type} cannot be called")
        self._steps = {type: tuple(chain) for type, chain in steps.items()}

    def current(self, type: str) -> int | None:
        """The current shape of a type; None if nothing is said of it here, so that every shape is taken as it is."""
        steps = self._steps.get(type)
        return None if steps is None else len(steps) + 1

    def upcast(self, event: Event) -> Event:
        """The event in the current shape; itself if it is.

        Raises Damaged (EVENT_NEWER) for a shape that is not known here yet, and (UPCAST_FAILED) if a step fails.
        """
        current = self.current(event.type)
        if current is None or event.shape == current:
            return event
        if event.shape > current:
            raise newer(event, current)
        data = event.payload()
        for shape, step in enumerate(self._steps[event.type][event.shape - 1 :], event.shape):
            data = _stepped(event, shape, step, data)
        return structs.replace(event, data=Raw(pack(data)), shape=current)


NO_UPCASTERS: Final = Upcasters({})


def newer(event: Event, current: int) -> Damaged:
    """The event is of a shape that this release does not know."""
    return Damaged(
        "EVENT_NEWER", f"event {shortened(event.id)} is of {event.type} in shape {event.shape}; here {current} is known"
    )


def _stepped(event: Event, shape: int, step: Step, data: dict[str, Any]) -> dict[str, Any]:
    where = f"the step of {event.type} from shape {shape} to {shape + 1}"
    try:
        made = step(data)
        if not isinstance(made, dict):
            raise TypeError(f"it gave a {type(made).__name__} and no dict")
        check_plain(made)
    except MusterError as error:
        raise Damaged("UPCAST_FAILED", f"{where} fails at event {shortened(event.id)}: {error.cause}") from error
    except Exception as error:
        cause = f"{where} fails at event {shortened(event.id)}: {type(error).__name__}: {error}"
        raise Damaged("UPCAST_FAILED", cause[:400]) from error
    return made
