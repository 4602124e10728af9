"""Appends of a log that has a spool: straight to the server, or into the file while it is away. Does no I/O.

A commit goes into the spool if the server is away, and also if earlier ones of its session wait there: so an append
that began after another one to its session had returned comes after it. What a server refuses is refused as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from domain.codec import Limits
from domain.errors import Conflict, MusterError, OutcomeUnknown, Refused
from domain.log.connection import PASSES
from domain.log.contract import SPOOLED, Append, Receipt
from domain.log.protocol import Request, append_many_flow, check_deduped, encode_append
from domain.log.spooling.spool import Entry, Spool, Spooled

if TYPE_CHECKING:
    from domain.log.exchange import Wire

T = TypeVar("T")

#: What a step asks for: answers to requests (an error in its place for each that has none), the result of a wire, or of
#: work on the file, which takes as long as a disk does.
Step: TypeAlias = "list[Request] | Wire[Any] | Callable[[], Any]"
Steps: TypeAlias = Generator[Step, Any, T]
#: Proves the durability of receipts.
Acknowledge: TypeAlias = "Callable[[list[Any]], Wire[list[Any]]]"


def append_steps(
    spool: Spool,
    appends: Sequence[Append],
    acknowledge: Acknowledge,
    *,
    limits: Limits,
    epoch: int,
    is_away: bool,
) -> Steps[list[Receipt | MusterError]]:
    """Appends commits or spools them: a receipt or an error for each."""
    answers: list[Any] = [None] * len(appends)
    direct: list[int] = []
    for place, one in enumerate(appends):
        first = spool.first(one.session)
        if first is not None and first.code is not None:
            answers[place] = _held(first)
        elif first is None and not is_away:
            direct.append(place)
    if direct:
        found = yield from append_many_flow([appends[place] for place in direct], limits)
        for place, answer in zip(direct, (yield acknowledge(found)), strict=True):
            answers[place] = answer
    places, entries = _entries(appends, answers, limits, epoch)
    if entries:
        for place, refused in zip(places, (yield lambda: _added(spool, entries)), strict=True):
            answers[place] = _spooled(appends[place], answers[place], refused)
    return answers


def is_outage(answer: Any) -> bool:
    """Whether an append failed for a reason that passes by itself, or got no reply."""
    return isinstance(answer, MusterError) and (answer.code in PASSES or answer.code == "OUTCOME_UNKNOWN")


def _entries(
    appends: Sequence[Append], answers: list[Any], limits: Limits, epoch: int
) -> tuple[list[int], list[Entry]]:
    """What is to be spooled, and the places of it; what may not be gets its error here."""
    places: list[int] = []
    entries: list[Entry] = []
    for place, (one, answer) in enumerate(zip(appends, answers, strict=True)):
        if answer is not None and not is_outage(answer):
            continue
        if _is_overtaken(one.session, appends[place + 1 :], answers[place + 1 :]):
            continue  # what came after it is in the log: it would land behind
        doubts = answer.doubts if isinstance(answer, OutcomeUnknown) and not one.dedupe else ()
        try:
            if one.dedupe:
                check_deduped(one)
            request = doubts[0] if doubts else encode_append(one, limits)
        except Refused as refused:
            answers[place] = refused
            continue
        places.append(place)
        entries.append(Entry(request, epoch, one.dedupe, marked=bool(doubts)))
    return places, entries


def _is_overtaken(session: str, later: Sequence[Append], answers: Sequence[Any]) -> bool:
    return any(
        one.session == session and isinstance(answer, Receipt) for one, answer in zip(later, answers, strict=True)
    )


def _added(spool: Spool, entries: list[Entry]) -> list[MusterError | None]:
    try:
        return spool.add(entries)
    except MusterError as failed:
        return [failed] * len(entries)


def _spooled(append: Append, answer: Any, refused: MusterError | None) -> Receipt | MusterError:
    """What the caller is told of a commit that went to the spool. One that may be on the server stays in doubt."""
    if refused is not None:
        if isinstance(answer, OutcomeUnknown):
            return OutcomeUnknown(
                answer.code, f"{answer.cause}; and it is not in the spool: {refused.cause}", doubts=answer.doubts
            )
        return refused
    # Where it stands is known only of one that may land nowhere else.
    before = 0 if append.expected == "new" else append.expected
    first, last = (0, 0) if before == "any" else (before + 1, before + len(append.events))
    return Receipt(append.session, first, last, None, 0, appended=len(append.events), durability=SPOOLED)


def _held(first: Spooled) -> Conflict:
    session = first.request.session
    return Conflict(
        "SPOOL_HELD",
        f"session {session} has a commit in the spool that the server refused: {first.code}: {first.cause}",
        session=session,
        reason=first.code,
        number=first.number,
    )
