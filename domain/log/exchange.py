"""What a log does around its requests, whatever carries them: stamps, remembers, proves durability, compares with
the server.

A *wire* is a generator that yields what is to be sent (`Sending`) and is sent the replies, or thrown the typed
error that sending raised. The shells drive wires; all that is decided between two sendings is decided here, once,
for the blocking and the asyncio log alike.

Theory of operation. After every failover, restart or restore the server at the other end may lack the end of the
log. New connections learn the server's run id and replication id. When they changed, everything this log was told
is in its store is compared with what is there, before the next answer is given. Apart from that every append
carries what is known of its session, so a session that lost its tail, or has other commits at the same seqs, takes
nothing more from a producer that knows. What is lost is reported into the store, for the operator, who accepts it
by raising the epoch; then it is forgotten here too.
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Generator, Sequence
from itertools import count, islice
from typing import Any, Final, TypeAlias, TypeVar
from uuid import uuid4

import msgspec
from msgspec import Struct, structs

from domain.codec import Commit, Limits, encode_body
from domain.errors import Damaged, Misconfigured, MusterError, OutcomeUnknown, Refused, Unavailable
from domain.events import Event
from domain.log.archive.joining import Opened, Wanted, is_short
from domain.log.archive.place import Archive
from domain.log.connection import ConnectionState, Line, connection_error, raised
from domain.log.contract import Append, AppendRequest, Position, Receipt
from domain.log.durability import Durability
from domain.log.following import Following
from domain.log.keys import Keyspace
from domain.log.lease import Tokens
from domain.log.observing import Observer
from domain.log.protocol import (
    Call,
    Command,
    Flow,
    Horizon,
    HorizonRequest,
    Protocol,
    RangeRequest,
    Ranging,
    Request,
    StretchRequest,
    with_ids,
)
from domain.log.spooling.appending import Steps, append_steps
from domain.log.spooling.draining import Pass, drain_steps
from domain.log.spooling.spool import Spool
from domain.log.store import Identity, parse_info
from domain.log.tracing import current_traceparent
from domain.log.witness import Loss, Witness

T = TypeVar("T")
logger = logging.getLogger(__name__)

UNREPORTED: Final = {"action": "log.loss_unreported"}
#: A server that was away for longer than this, in seconds, is not tried by every append before it is spooled.
BLIP_S: Final = 1.0
#: The field of a store's meta that says which other one it replaces.
REPLACES: Final = "replaces"
#: How many commits without a reply a log remembers.
REMEMBERED_DOUBTS = 1024


class Sending(Struct, frozen=True):
    """Commands to be sent in one write; `writes`: without a reply it is unknown what they did. `once`: without a reply
    they are not sent again, for whoever sends them will rather send something else.
    """

    commands: list[Command]
    writes: bool = False
    once: bool = False


class Fetching(Struct, frozen=True):
    """A segment of the archive is to be fetched. Answered by its content, in a list."""

    name: str


Wire: TypeAlias = Generator[Sending | Fetching, list[Any], T]


class _Ids:
    """Ids for events that come without one: 80 bits of chance, drawn once a process, and a number.

    Drawing them for every event would take longer than all else that is done for it.
    """

    def __init__(self) -> None:
        self._draw()
        os.register_at_fork(after_in_child=self._draw)  # else its numbers would be its parent's

    def _draw(self) -> None:
        self._drawn = (uuid4().hex[:20], count())

    def __call__(self) -> str:
        return self.many(1)[0]

    def many(self, wanted: int) -> list[str]:
        """So many ids; one for itself costs three times as much."""
        prefix, numbers = self._drawn
        return [f"{prefix}{number:012x}" for number in islice(numbers, wanted)]


#: An id for an event that came without one.
new_id: Final = _Ids()


class ServerClock:
    """The server's clock, as last heard of. It may jump, so a commit it takes for late is given a new time once."""

    def __init__(self) -> None:
        self._ahead_ms = 0.0

    def learn(self, server_ms: int) -> None:
        self._ahead_ms = server_ms - time.monotonic() * 1000

    def now(self) -> int:
        return int(time.monotonic() * 1000 + self._ahead_ms)


class ServerSeen:
    """Which server the connections of a log lead to: its run id and replication id, and whether they changed."""

    def __init__(self) -> None:
        self._met: tuple[str, str] | None = None
        self.changed = False
        #: Idle connections may still lead to the server from before.
        self.has_moved = False

    def met(self, info: bytes) -> None:
        """Notes what a new connection was told (`INFO server replication`)."""
        fields = parse_info(info)
        met = (fields.get("run_id", ""), fields.get("master_replid", ""))
        if self._met is not None and met != self._met:
            logger.warning(
                "the server changed: run id %s, replication id %s", *met, extra={"action": "log.server_changed"}
            )
            self.changed = self.has_moved = True
        self._met = met


class Exchanges:
    """What both shells share: the protocol of the open store, and what this log was told and promised.

    A commit is in doubt from when it was sent until its caller is told a receipt (a caller that was cancelled is told
    nothing, though the reply comes): its repeat counts what was known when it was first sent, not what is known since,
    or it would not be recognised.
    """

    def __init__(
        self,
        keyspace: Keyspace,
        identity: Identity,
        *,
        limits: Limits,
        durability: Durability,
        server: ServerSeen,
        lifetime_ms: int,
        wait_ms: int,
        line: Line,
        observer: Observer,
        spool: Spool | None,
        archive: Archive,
        following_s: float | None = None,
    ) -> None:
        self.keyspace = keyspace
        self.identity = identity
        self.limits = limits
        self.tokens = Tokens()
        self.witness = Witness()
        #: What was found lost and is not accepted yet, by session.
        self.losses: dict[str, Loss] = {}
        #: What was known and is accepted as lost, at the last epoch that was adopted.
        self._accepted: set[tuple[str, Position | None]] = set()
        self._durability = durability
        self._server = server
        self._protocol = Protocol(keyspace, identity.store, identity.epoch)
        self._doubted: OrderedDict[tuple[str, bytes], Position] = OrderedDict()
        self.clock = ServerClock()
        self._lifetime_ms = lifetime_ms
        self._wait_ms = wait_ms
        self._name = new_id()[:12]
        self._line = line
        self._observer = observer
        self.spool = spool
        self.archive = archive
        self._opened = Opened()
        #: Until when whoever appends to a partition waits, by the monotonic clock: the store is short of memory.
        self._held_back: dict[int, float] = {}
        #: Where moved sessions are; None where this log follows none.
        self._following = None if following_s is None else Following(identity.store, following_s)

    @property
    def connection(self) -> ConnectionState:
        """Whether the server answers; if not, since when, and why."""
        return self._line.state

    def _appending(self, spool: Spool, appends: Sequence[Append]) -> Steps[list[Receipt | MusterError]]:
        """Appends commits, or spools them where the server is away."""
        since = self._line.state.waiting_since
        return append_steps(
            spool,
            appends,
            self._all_acknowledged,
            limits=self.limits,
            epoch=self.identity.epoch,
            is_away=since is not None and time.time() - since > BLIP_S,
        )

    def _draining(self, spool: Spool) -> Steps[Pass]:
        """Sends a page of what waits in the spool."""
        acknowledge = self._all_acknowledged
        return drain_steps(spool, self._known, acknowledge, limits=self.limits, epoch=self.identity.epoch)

    def _known(self, session: str) -> Position | None:
        """The last position known of a session, wherever it is."""
        return self._witness_of(session).known(session)

    def _witness_of(self, session: str) -> Witness:
        """Who remembers what was told of a session."""
        return self.witness

    def _hand_over(self, session: str, witness: Witness) -> None:
        """What was told of a session is known at its new place, too."""
        known = self.witness.known(session)
        if known is not None:
            witness.saw(session, known)

    def _hand_all_over(self, other: Exchanges) -> None:
        """All that was told of here is compared with what there is at the place that replaces this one."""
        for session in self.witness.sessions():
            self._hand_over(session, other.witness)
        other._server.changed = True

    def is_spooled(self, session: str) -> bool:
        """Whether commits of a session wait in the spool."""
        return self.spool is not None and self.spool.first(session) is not None

    def _wait_s(self, requests: Sequence[Request]) -> float:
        """How long these appends are to wait because the store is short of memory, in seconds."""
        partitions = {self.keyspace.partition_of(one.session) for one in requests if isinstance(one, AppendRequest)}
        now = time.monotonic()
        waits = {partition: until - now for partition, until in self._held_back.items()}
        self._held_back = {partition: now + wait for partition, wait in waits.items() if wait > 0}
        return max((waits.get(partition, 0.0) for partition in partitions), default=0.0)

    # -- before a request is sent ------------------------------------------------------------------------------------

    def _completed(self, append: Append) -> Append:
        """The append with ids for events that have none, what is known of its session, the lease's token, its trace.

        A deduplicated one has ids, and reads what is known.
        """
        token = append.token or self.tokens.of(append.session, append.events)
        trace = append.traceparent or current_traceparent()
        if append.dedupe:
            return structs.replace(append, token=token, traceparent=trace)
        given = tuple([event.id for event in append.events if event.id])
        events = with_ids(append.events, new_id.many)
        known = append.known
        if known is None:
            known = (self.witness.known if self._following is None else self._known)(append.session)
        doubted = self._known_when_first_sent(append.session, events) if self._doubted else None
        if doubted is not None and (known is None or doubted.seq < known.seq):
            known = doubted
        return structs.replace(append, events=events, known=known, token=token, ids=given, traceparent=trace)

    def _stamped(self, requests: Sequence[Request]) -> list[Request]:
        """The requests, each append with the time after which the server is to refuse it."""
        not_after = self.clock.now() + self._lifetime_ms
        return [
            structs.replace(request, not_after=not_after) if isinstance(request, AppendRequest) else request
            for request in requests
        ]

    def _mistimed(self, requests: Sequence[Request], answers: Sequence[Any]) -> list[int]:
        """Which appends were refused as late although their time is not over here: then the server's clock jumped.

        None of them is there, and none will come: they may be sent again with another time.
        """
        late = []
        for index, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            is_late = isinstance(answer, Refused) and answer.code == "TOO_LATE"
            if is_late and isinstance(request, AppendRequest) and (request.not_after or 0) > self.clock.now():
                late.append(index)
        for index in late:
            self.clock.learn(answers[index].facts["server_ms"])
        return late

    def _known_when_first_sent(self, session: str, events: Sequence[Event]) -> Position | None:
        """What was known of the session when this commit, which is in doubt, was sent; None if it is not in doubt."""
        try:
            return self._doubted.get((session, encode_body(events, self.limits)))
        except Refused:
            return None  # it was never sent; the flow says so, of this commit alone

    def _doubt(self, requests: Sequence[Request]) -> None:
        """Notes commits that were sent and whose callers were told no outcome."""
        for request in requests:
            if isinstance(request, AppendRequest) and request.known is not None:
                self._doubted[request.session, request.body] = request.known
                if len(self._doubted) > REMEMBERED_DOUBTS:
                    self._doubted.popitem(last=False)

    def _settle(self, requests: Sequence[Request], answers: Sequence[Any]) -> None:
        """Forgets the doubts about commits whose callers are told a receipt; no other answer settles anything."""
        if self._doubted:
            for request, answer in zip(requests, answers, strict=True):
                if isinstance(request, AppendRequest) and isinstance(answer, Receipt):
                    self._doubted.pop((request.session, request.body), None)

    # -- wires -------------------------------------------------------------------------------------------------------

    def _answering(self, requests: list[Request]) -> Wire[list[Any]]:
        """The answers to requests."""
        answers = yield from self._asking(requests)
        if any(_has_code(answer, "EPOCH_CHANGED") for answer in _errors(answers)):
            yield from self._adopting(requests, answers)
        if not [request for request in requests if isinstance(request, AppendRequest)]:
            return answers
        if self._accepted:
            yield from self._letting_go(requests, answers)
        if self._durability.level != "memory":
            answers = [self._judged(request, answer) for request, answer in zip(requests, answers, strict=True)]
        receipts = [answer for answer in answers if isinstance(answer, Receipt)]
        self.witness.told(*receipts)
        for receipt in receipts:
            if receipt.wait_ms:
                self._held_back[self.keyspace.partition_of(receipt.session)] = time.monotonic() + receipt.wait_ms / 1000
        if self._server.changed and any(_is_decided(answer) for answer in answers):
            yield from self._comparing_if_it_answers()
        lost = [answer for answer in answers if isinstance(answer, Damaged) and _is_lost(answer)]
        if lost:
            yield from self._hearing(lost)
            answers = [self._named(answer) if _is_lost(answer) else answer for answer in answers]
        return answers

    def _asking(self, requests: Sequence[Request]) -> Wire[list[Any]]:
        """The answers as the server gives them; receipts with the durability that was proved along the way."""
        calls = self._protocol.calls(requests)
        writing = [call for call in calls if call.writes]
        writes = writing != []
        proof = self._durability if writes else Durability()
        before, after = proof.before(), proof.after(self._wait_ms)
        replies = yield Sending([*before, *[call.command for call in calls], *after], writes)
        end = len(before) + len(calls)
        answers = _distribute(calls, replies[len(before) : end], len(requests))
        if writing != calls:
            yield from self._joining(requests, answers)
        receipts = [answer for answer in answers if isinstance(answer, Receipt)]
        if proof.level == "memory" or not receipts:
            return answers
        if any(receipt.appended for receipt in receipts):
            word = proof.proved([*replies[: len(before)], *replies[end:]])
        else:
            word = yield from self._proving(receipts)
        return [structs.replace(one, durability=word) if isinstance(one, Receipt) else one for one in answers]

    def _joining(self, requests: Sequence[Request], answers: list[Any]) -> Wire[None]:
        """Has answers that lack what is archived begin with it."""
        short = [
            (place, request)
            for place, (request, answer) in enumerate(zip(requests, answers, strict=True))
            if isinstance(request, RangeRequest | StretchRequest) and is_short(request, answer)
        ]
        if not short:
            return
        calls = self._protocol.calls([HorizonRequest(request.session) for _, request in short])
        replies = yield Sending([call.command for call in calls])
        horizons = _distribute(calls, replies, len(short))
        for (place, request), horizon in zip(short, horizons, strict=True):
            if isinstance(horizon, MusterError):
                answers[place] = horizon
            elif horizon is not None and request.from_seq <= horizon.seq:
                try:
                    answers[place] = yield from self._joined(request, answers[place], horizon)
                except MusterError as error:
                    answers[place] = error

    def _joined(self, request: Ranging, answer: Any, horizon: Horizon) -> Wire[Any]:
        """An answer, with what it lacks from the archive. Raises what the archive says (ARCHIVE_…)."""
        wanted = Wanted(self.identity.store, request, answer, horizon)
        for name in wanted.names:
            commits = self._opened.get(name)
            if commits is None:
                (content,) = yield Fetching(name)
                commits = self._opened.open(name, content)
            wanted.take(commits)
            if wanted.is_met:
                break
        return wanted.answer()

    def _fetch(self, fetching: Fetching) -> list[Any]:
        """A segment of the archive. Raises what the archive says."""
        return [self.archive.get(fetching.name)]

    def _proving(self, receipts: Sequence[Receipt]) -> Wire[str]:
        """What can be proved of commits that were written before: nothing can be waited for but a real write, and that
        says something of them only on a server that has them.
        """
        before, after = self._durability.before(), self._durability.after(self._wait_ms)
        touch: Command = ["FCALL", "muster_touch_1", 1, self.keyspace.of(receipts[0].session).meta, self.identity.store]
        looks = [RangeRequest(receipt.session, receipt.last_seq, None, 1) for receipt in receipts]
        calls = self._protocol.calls(looks)
        try:
            replies = yield Sending([*before, touch, *(call.command for call in calls), *after])
        except MusterError:
            return "memory"
        start = len(before) + 1
        found = _distribute(calls, replies[start : start + len(calls)], len(looks))
        yield from self._joining(looks, found)
        has_all = all(_is_held(receipt, page) for receipt, page in zip(receipts, found, strict=True))
        if replies[len(before)] != b"OK" or not has_all:
            return "memory"
        return self._durability.proved([*replies[: len(before)], *replies[start + len(calls) :]])

    def _acknowledged(self, found: Receipt) -> Wire[Receipt]:
        """The receipt of an append, also of a commit that was found by reading. Raises OutcomeUnknown
        (DURABILITY_SHORT).
        """
        if not self._durability.is_reached(found.durability):
            found = structs.replace(found, durability=(yield from self._proving([found])))
            if not self._durability.is_reached(found.durability):
                raise self._short(found)
        return found

    def _all_acknowledged(self, answers: list[Receipt | MusterError]) -> Wire[list[Receipt | MusterError]]:
        """As `_acknowledged`, of each receipt; what it raises is the answer."""
        for place, answer in enumerate(answers):
            if isinstance(answer, Receipt):
                try:
                    answers[place] = yield from self._acknowledged(answer)
                except OutcomeUnknown as short:
                    answers[place] = short
        return answers

    def _judged(self, request: Request, answer: Any) -> Any:
        """The answer, unless it is a receipt for less durability than wanted: that acknowledges nothing."""
        if not isinstance(answer, Receipt) or self._durability.is_reached(answer.durability):
            return answer
        self._doubt([request])
        return self._short(answer, request)

    def _short(self, receipt: Receipt, *doubts: Request) -> OutcomeUnknown:
        return OutcomeUnknown(
            "DURABILITY_SHORT",
            f"session {receipt.session}: seqs {receipt.first_seq} to {receipt.last_seq} are written, "
            f"but {receipt.durability} is proved where {self._durability.word} is wanted",
            receipt=receipt,
            wanted=self._durability.word,
            doubts=doubts,
        )

    def _adopting(self, requests: Sequence[Request], answers: list[Any]) -> Wire[None]:
        """Goes on at the store's new epoch. What fails here fails for those that were not let in, for no others."""
        places = [place for place, answer in enumerate(answers) if _has_code(answer, "EPOCH_CHANGED")]
        try:
            unheard = yield from self._adopted()
        except MusterError as error:
            for place in places:
                answers[place] = error
            return
        again: dict[int, Request] = {}
        for place in places:
            request = requests[place]
            if isinstance(request, AppendRequest) and request.session in unheard:
                answers[place] = lost_error(unheard[request.session])
            else:
                again[place] = request
        yield from self._asking_again(again, answers)

    def _adopted(self) -> Wire[dict[str, Loss]]:
        """Takes over the store's epoch, which an operator raised: all that is known is compared once more, and what
        is lost is forgotten. Returns what nobody was told of before; it is reported.

        Several threads may be in here: whoever comes second finds it done.
        """
        heard = set(self.losses)
        (reply,) = yield Sending([["HMGET", self.keyspace.store_meta, "store", "epoch"]])
        store, epoch = raised(reply)
        if store != self.identity.store.encode() or int(epoch or 0) <= self.identity.epoch:
            return {}
        logger.warning("the store is at epoch %s now", epoch.decode(), extra={"action": "log.epoch_changed"})
        self._server.changed = False
        try:
            lost = yield from self._asked(self.witness.compare_flow(self.witness.sessions()))
            if int(epoch) <= self.identity.epoch:
                return {}
            unheard = {loss.session: loss for loss in lost if loss.session not in heard}
            yield from self._reporting(unheard.values())
        except MusterError:
            self._server.changed = True
            raise
        self._accepted = {
            (loss.session, position)
            for loss in (*self.losses.values(), *lost)
            for position in (loss.last, *(receipt.position for receipt in loss.receipts))
        }
        self.identity = structs.replace(self.identity, epoch=int(epoch))
        self._protocol = Protocol(self.keyspace, self.identity.store, self.identity.epoch)
        self.witness.forget(loss.session for loss in lost)
        self.losses.clear()
        return unheard

    def _letting_go(self, requests: Sequence[Request], answers: list[Any]) -> Wire[None]:
        """Sends commits again that were refused for a loss which is accepted: they were on their way or in doubt, or
        their callers go by an old receipt.
        """
        again: dict[int, Request] = {}
        for place, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            if not isinstance(request, AppendRequest) or not _is_lost(answer):
                continue
            if (request.session, request.known) in self._accepted:
                again[place] = structs.replace(request, known=Position(0))
        yield from self._asking_again(again, answers)

    def _asking_again(self, again: dict[int, Request], answers: list[Any]) -> Wire[None]:
        """Puts the answers to these requests into their places, or why there are none."""
        if not again:
            return
        try:
            found = yield from self._asking(list(again.values()))
        except OutcomeUnknown as unknown:
            self._doubt(list(again.values()))
            found = [OutcomeUnknown(unknown.code, unknown.cause, doubts=(request,)) for request in again.values()]
        except MusterError as error:
            found = [error] * len(again)
        for place, answer in zip(again, found, strict=True):
            answers[place] = answer

    def _comparing(self, sessions: Sequence[str] | None = None) -> Wire[list[Loss]]:
        """Holds all that this log was told against the server, or what it was told of some sessions; reports what
        is lost.

        Raises what the server's not answering raises; the comparison stays due then.
        """
        if sessions is None:
            self._server.changed = False
        asked = self.witness.sessions() if sessions is None else sessions
        try:
            lost = yield from self._asked(self.witness.compare_flow(asked))
            found = {loss.session: loss for loss in lost}
            healed = [session for session in asked if session in self.losses and session not in found]
            yield from self._reporting(lost, healed)
        except MusterError:
            self._server.changed = True
            raise
        for session in healed:
            self.losses.pop(session, None)
        for loss in lost:
            about = {"action": "log.lost", "session": loss.session, "first_bad_seq": loss.first_bad_seq}
            logger.error("%s", lost_error(loss).cause, extra=about)
        self.losses |= found
        return lost

    def _comparing_if_it_answers(self, sessions: Sequence[str] | None = None) -> Wire[None]:
        """As `_comparing`, for appends that have their answers whatever becomes of it."""
        try:
            yield from self._comparing(sessions)
        except MusterError as error:
            about = {"action": "log.not_compared"}
            logger.warning("what is known could not be compared with the server: %s", error, extra=about)

    def _hearing(self, answers: Sequence[Damaged]) -> Wire[None]:
        """Finds out all that is lost of sessions whose appends met a loss; one that only the caller knew of counts
        too."""
        sessions = list(dict.fromkeys(answer.facts["session"] for answer in answers))
        yield from self._comparing_if_it_answers(sessions)
        told = [_told(answer) for answer in answers if answer.facts["session"] not in self.losses]
        try:
            yield from self._reporting(told)
        except MusterError as error:
            logger.error("a loss could not be reported: %s", error, extra=UNREPORTED)
        self.losses |= {loss.session: loss for loss in told}

    def _reporting(self, lost: Any, healed: Sequence[str] = ()) -> Wire[None]:
        """Writes what is lost into the store, for the operator; takes back what is there after all."""
        reports = [(loss.session, msgspec.json.encode(loss)) for loss in lost] + [(session, b"") for session in healed]
        commands: list[Command] = []
        for session, report in reports:
            keys = self.keyspace.of(session)
            commands.append(
                ["FCALL", "muster_report_1", 2, keys.meta, keys.lost, self.identity.store, session, self._name, report]
            )
        if commands:
            for reply in (yield Sending(commands)):
                if isinstance(reply, Exception):
                    logger.error("a loss could not be reported: %s", connection_error(reply), extra=UNREPORTED)

    def _named(self, answer: Damaged) -> Damaged:
        """The error of an append that met a loss, with all that is known of it."""
        loss = self.losses.get(answer.facts["session"])
        return answer if loss is None else lost_error(loss)

    def _asked(self, flow: Flow[T]) -> Wire[T]:
        """Runs a flow of the protocol that only reads."""
        try:
            requests = next(flow)
            while True:
                calls = self._protocol.calls(requests)
                replies = yield Sending([call.command for call in calls])
                answers = _distribute(calls, replies, len(requests))
                yield from self._joining(requests, answers)
                requests = flow.send(answers)
        except StopIteration as done:
            result: T = done.value
            return result


def replaces_wire(keyspace: Keyspace) -> Wire[str | None]:
    """The id of the store that an open one replaces since a failover; None if it replaces none."""
    (reply,) = yield Sending([["HGET", keyspace.store_meta, REPLACES]])
    found = raised(reply)
    return None if found is None else str(found.decode())


def lost_error(loss: Loss) -> Damaged:
    """The error that names a loss."""
    named = ", ".join(f"{receipt.first_seq} to {receipt.last_seq}" for receipt in loss.receipts[:8])
    more = f" and {len(loss.receipts) - 8} more" if len(loss.receipts) > 8 else ""
    what = "other commits stand in their place" if loss.code == "FORK" else "nothing stands in their place"
    return Damaged(
        loss.code,
        f"session {loss.session} lost acknowledged commits from seq {loss.first_bad_seq} on "
        f"({len(loss.receipts)} with a receipt here: {named}{more}); {what}",
        session=loss.session,
        first_bad_seq=loss.first_bad_seq,
        lost=list(loss.receipts),
        last=loss.last,
    )


def _is_held(receipt: Receipt, page: Any) -> bool:
    """Whether the commit that holds a receipt's last seq, as it was read, is the receipt's."""
    if not isinstance(page, list) or not page:
        return False
    commit: Commit = page[0]
    if receipt.digest is None:
        return commit.first_seq <= receipt.last_seq
    return (commit.last_seq, commit.digest) == (receipt.last_seq, receipt.digest)


def _told(answer: Damaged) -> Loss:
    """The loss that the caller of an append knew of."""
    facts = answer.facts
    return Loss(facts["session"], answer.code, facts["first_bad_seq"], facts["seen"], ())


def _errors(answers: Sequence[Any]) -> list[MusterError]:
    return [answer for answer in answers if isinstance(answer, MusterError)]


def _has_code(answer: Any, code: str) -> bool:
    return isinstance(answer, Misconfigured) and answer.code == code


def _is_decided(answer: Any) -> bool:
    """Whether the store answered; a server that only turned the append away could not be compared with either."""
    return not isinstance(answer, Unavailable | Misconfigured)


def _is_lost(answer: Any) -> bool:
    """Whether the server said so just now, and nobody asked yet what else is lost."""
    return isinstance(answer, Damaged) and "seen" in answer.facts


def _distribute(calls: Sequence[Call], replies: Sequence[Any], count: int) -> list[Any]:
    """The answers to `count` requests, from the replies to the calls they became."""
    answers: list[Any] = [None] * count
    for call, reply in zip(calls, replies, strict=True):
        found: list[Any]
        if isinstance(reply, Exception):
            found = [connection_error(reply)] * len(call.places)
        else:
            try:
                found = call.answers(reply)
            except MusterError as error:
                found = [error] * len(call.places)
        for place, answer in zip(call.places, found, strict=True):
            answers[place] = answer
    return answers
