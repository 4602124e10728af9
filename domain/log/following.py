"""Following sessions that were moved: which store is asked about which session, and when it is asked again.

Theory of operation. A session is moved in an instant: its source is sealed, then its target is opened, and a commit is
taken by one of the two or by neither. Who is told MOVED_TO sends the same request to the place that is named, if it is
one of those this log was told of; a commit that the source has taken already is recognised by its seq, because the
target holds the same log. Between seal and opening the target answers SESSION_ARRIVING, and is asked again. From then
on everything about the session goes there. And where the log's own server does not answer, and one of those places says
that it replaces it (`muster failover`), all of it goes there. Does no I/O.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Any, Final, TypeAlias

from msgspec import Struct

from domain.errors import MusterError
from domain.log.place import Place, parse_place
from domain.log.protocol import Request

#: How long to wait before a session that is on its way is asked for again, in seconds.
PAUSE_S: Final = 0.005


class Asking(Struct, frozen=True):
    """Requests for a store: the log's own (None), or one that was found. Answered by their answers; by an error, where
    there are none.

    `alone`: these are all there are, so what fails fails for all.
    """

    store: str | None
    requests: list[Request]
    alone: bool


class Finding(Struct, frozen=True):
    """The store at a place. Answered by whether this log can reach it, or why not now; of a session, by the way."""

    place: Place
    session: str | None


class Pausing(Struct, frozen=True):
    """Some time. Answered by nothing."""

    seconds: float


class Succeeding(Struct, frozen=True):
    """The store that replaces the log's own, which does not answer. Answered by its id; None: there is none."""


FollowingStep: TypeAlias = Asking | Finding | Pausing | Succeeding

#: What a server comes to that does not answer: then another one may have taken its place.
_SILENT: Final = frozenset({"UNREACHABLE", "OUTCOME_UNKNOWN"})


class Following:
    """Where the sessions are that were moved, as far as this log was told."""

    def __init__(self, own: str, patience_s: float) -> None:
        self._own = own
        self._patience_s = patience_s
        self._stores: dict[str, str] = {}
        #: The store that all sessions are in since the log's own was failed over from.
        self._successor: str | None = None

    def store_of(self, session: str) -> str | None:
        """The store that holds a session; None for the log's own."""
        return self._stores.get(session, self._successor)

    def is_at_home(self) -> bool:
        """No session was followed anywhere yet."""
        return not self._stores and self._successor is None

    def steps(self, requests: Sequence[Request]) -> Generator[FollowingStep, Any, list[Any]]:
        """The answers to requests, each from where its session is."""
        answers: list[Any] = [None] * len(requests)
        left = list(range(len(requests)))
        deadline = time.monotonic() + self._patience_s
        turned = 0
        while left:
            by_store: dict[str | None, list[int]] = {}
            for at in left:
                by_store.setdefault(self._store_for(requests[at]), []).append(at)
            left = []
            for store, places in by_store.items():
                asking = Asking(store, [requests[at] for at in places], len(places) == len(requests))
                found = yield asking
                if store is None and _is_silent(found) and all(_has_session(one) for one in asking.requests):
                    self._successor = yield Succeeding()
                    if self._successor is not None:
                        left += places
                        continue
                if asking.alone and isinstance(found, MusterError):
                    raise found
                if isinstance(found, MusterError):
                    found = [found] * len(places)
                for at, answer in zip(places, found, strict=True):
                    answers[at] = answer
                    if isinstance(answer, MusterError) and (yield from self._is_followed(store, answer, answers, at)):
                        left.append(at)
            if left:
                turned += 1
                if turned > 1:  # it is on its way: once is how anybody comes to know
                    if time.monotonic() > deadline:
                        break
                    yield Pausing(PAUSE_S)
        return answers

    def _is_followed(
        self, store: str | None, answer: MusterError, answers: list[Any], at: int
    ) -> Generator[FollowingStep, Any, bool]:
        """Whether a request is to be sent again, to where its session is by now."""
        if answer.code == "SESSION_ARRIVING":
            return store is not None
        place = parse_place(answer.facts["place"]) if answer.code == "MOVED_TO" else None
        if place is None:
            return False
        session: str = answer.facts["session"]
        if place.store == self._own:
            self._stores.pop(session, None)  # it was taken back
            return True
        found = yield Finding(place, session)
        if isinstance(found, MusterError):
            answers[at] = found
            return False
        if found:
            self._stores[session] = place.store
        return bool(found)

    def _store_for(self, request: Request) -> str | None:
        session = getattr(request, "session", None)
        return None if session is None else self.store_of(session)


def _is_silent(answer: Any) -> bool:
    """Whether a server did not answer at all."""
    return isinstance(answer, MusterError) and answer.code in _SILENT


def _has_session(request: Request) -> bool:
    """Whether a request is about a session, and so about the same one at another place."""
    return getattr(request, "session", None) is not None
