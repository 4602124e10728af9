"""A model of the log in a few lines of Python, held against the real ones through any sequence of operations.

The model knows what a producer can see: where commits stand, who may append, and which error it meets. It shares no
code with any log.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, Final, Protocol, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from msgspec import Struct, field

from domain import Append, Event, MemoryLog, MusterError, Receipt
from domain.log.contract import Expected, Policy, Position
from domain.log.protocol import Flow, TimeRequest
from tests.chaos.effort import FULL
from tests.conftest import Servers, Store
from tests.domain.log.logs import Blocking, RunnableLog, assert_chained

T = TypeVar("T")
#: Longer than any run, and over for certain after one look at the clock.
LONG_MS, SHORT_MS = 10**9, 1
AGENTS: Final = ("ann", "bob")
_NUMBERS: Final = count(1)


class Written(Struct):
    """A commit of the model."""

    events: tuple[Event, ...]
    first: int

    @property
    def last(self) -> int:
        return self.first + len(self.events) - 1


class Modelled(Struct):
    """A session of the model: commits, policy, and the lease (token "" when nobody can append by it)."""

    commits: list[Written] = field(default_factory=list)
    policy: Policy = "any"
    holder: str = ""
    token: str = ""
    is_live: bool = False

    @property
    def seq(self) -> int:
        return self.commits[-1].last if self.commits else 0

    def holding(self, id: str) -> int | None:
        """The seq of an event."""
        for commit in self.commits:
            for seq, event in enumerate(commit.events, commit.first):
                if event.id == id:
                    return seq
        return None

    def take(self, events: tuple[Event, ...], expected: Expected, token: str) -> str | Written:
        """What becomes of new events: the commit, or the code of the error."""
        if self.policy == "leased" and not token:
            return "LEASE_REQUIRED"
        if token and (self.policy != "leased" or token != self.token or not self.is_live):
            return "LEASE_LOST"
        if self.policy == "strict" and expected == "any":
            return "EXPECTED_REQUIRED"
        if expected not in ("any", self.seq) and not (expected == "new" and self.seq == 0):
            return "SEQ_CONFLICT"
        commit = Written(events, self.seq + 1)
        self.commits.append(commit)
        return commit

    def held_from(self, agent: str) -> bool:
        """Whether a live lease keeps this agent out."""
        return self.is_live and self.holder not in ("", agent)


class Logs(Protocol):
    """Opens a log of one kind; all that are opened hold the same sessions."""

    def __call__(self) -> RunnableLog: ...


def outcome(call: Callable[[], T]) -> T | str:
    """What a call returns, or the code of the error it raises."""
    try:
        return call()
    except MusterError as error:
        return error.code


def event_numbered(actor: str) -> Event:
    return Event.of("note.made", actor=actor, id=f"e{next(_NUMBERS)}")


class LogMachine(RuleBasedStateMachine):
    """Two producers, each with a log of its own, on a few sessions."""

    def __init__(self, open_log: Logs) -> None:
        super().__init__()
        self._open = open_log
        self.logs = [open_log(), open_log()]
        run = next(_NUMBERS)
        self.names = [f"m{run}-{n}" for n in range(2)]
        self.model = {name: Modelled() for name in self.names}
        #: The leases of each log: the token in the model by session and agent, and the lease itself.
        self.tokens: list[dict[tuple[str, str], str]] = [{}, {}]
        self.leases: list[tuple[int, str, str, str, int, Any]] = []

    # -- appending ---------------------------------------------------------------------------------------------------

    @rule(
        who=st.integers(0, 1),
        at=st.integers(0, 1),
        actor=st.sampled_from(AGENTS),
        size=st.integers(1, 3),
        expected=st.sampled_from(["any", "any", "new", "exact", "behind", "ahead"]),
    )
    def append(self, who: int, at: int, actor: str, size: int, expected: str) -> None:
        name, model = self.names[at], self.model[self.names[at]]
        seqs: dict[str, Expected] = {"any": "any", "new": "new", "exact": model.seq, "behind": max(model.seq - 1, 0)}
        wish = seqs.get(expected, model.seq + 1)
        events = tuple(event_numbered(actor) for _ in range(size))

        answer = outcome(lambda: self.logs[who].append(name, events, expected=wish))

        self._is(answer, model.take(events, wish, self._token(who, name, actor)))

    @precondition(lambda self: any(model.commits for model in self.model.values()))
    @rule(who=st.integers(0, 1), at=st.integers(0, 1), which=st.integers(0, 20), exact=st.booleans())
    def repeat(self, who: int, at: int, which: int, exact: bool) -> None:
        """The very commit again is recognised, whoever sends it and whatever came since."""
        name, model = self.names[at], self.model[self.names[at]]
        if not model.commits:
            return
        commit = model.commits[which % len(model.commits)]
        before = commit.first - 1
        wish: Expected = before if exact else "any"

        answer = outcome(lambda: self.logs[who].append(name, commit.events, expected=wish, known=Position(before)))

        assert isinstance(answer, Receipt), answer
        assert (answer.first_seq, answer.last_seq, answer.appended) == (commit.first, commit.last, 0)

    @rule(who=st.integers(0, 1), at=st.integers(0, 1), which=st.integers(0, 20), actor=st.sampled_from(AGENTS))
    def append_a_part_that_is_there(self, who: int, at: int, which: int, actor: str) -> None:
        """A commit of which one event is in another commit is refused, and says which."""
        name, model = self.names[at], self.model[self.names[at]]
        known = [(event, seq) for c in model.commits for seq, event in enumerate(c.events, c.first)]
        if not known:
            return
        old, seq = known[which % len(known)]

        with pytest.raises(MusterError) as raised:
            self.logs[who].append(name, [event_numbered(actor), old], known=Position(0))
        assert (raised.value.code, raised.value.facts["known"]) == ("PART_KNOWN", {old.id: seq})

    @rule(
        who=st.integers(0, 1),
        at=st.integers(0, 1),
        picks=st.lists(st.integers(0, 20), max_size=3),
        fresh=st.integers(0, 2),
        actor=st.sampled_from(AGENTS),
    )
    def append_what_is_missing(self, who: int, at: int, picks: list[int], fresh: int, actor: str) -> None:
        """A deduplicated append leaves out what is there, and appends the rest as any other append."""
        name, model = self.names[at], self.model[self.names[at]]
        stored = [event for commit in model.commits for event in commit.events]
        old = list({(e := stored[pick % len(stored)]).id: e for pick in picks}.values()) if stored else []
        new = tuple(event_numbered(actor) for _ in range(fresh))
        events = [*old, *new]
        if not events:
            return
        seqs = [seq for event in old if (seq := model.holding(event.id)) is not None]

        answer = outcome(lambda: self.logs[who].append(name, events, dedupe=True))

        actors = {event.actor for event in events}
        token = self._token(who, name, actors.pop()) if len(actors) == 1 else ""
        should = model.take(new, model.seq, token) if new else None
        if isinstance(should, str):
            assert answer == should
            return
        assert isinstance(answer, Receipt), answer
        assert (answer.appended, answer.duplicates) == (len(new), len(old))
        all_seqs = [*seqs, *range(model.seq - len(new) + 1, model.seq + 1)]
        assert (answer.first_seq, answer.last_seq) == (min(all_seqs), max(all_seqs))

    @rule(
        who=st.integers(0, 1),
        plan=st.lists(st.tuples(st.integers(0, 1), st.sampled_from(AGENTS)), min_size=1, max_size=6),
    )
    def append_many(self, who: int, plan: list[tuple[int, str]]) -> None:
        """Commits side by side: each with its own answer, in order within a session."""
        appends = [Append(self.names[at], (event_numbered(actor),)) for at, actor in plan]

        answers = self.logs[who].append_many(appends)

        for append, (_, actor), answer in zip(appends, plan, answers, strict=True):
            token = self._token(who, append.session, actor)
            should = self.model[append.session].take(append.events, "any", token)
            self._is(answer.code if isinstance(answer, MusterError) else answer, should)

    # -- who may append ----------------------------------------------------------------------------------------------

    @rule(who=st.integers(0, 1), at=st.integers(0, 1), policy=st.sampled_from(["any", "strict", "leased"]))
    def set_policy(self, who: int, at: int, policy: Policy) -> None:
        name, model = self.names[at], self.model[self.names[at]]

        answer = outcome(lambda: self.logs[who].set_policy(name, policy))

        if model.policy == "leased" and policy != "leased" and model.held_from(""):
            assert answer == "LEASE_HELD"
        else:
            assert answer is None
            model.policy = policy

    @rule(who=st.integers(0, 1), at=st.integers(0, 1), agent=st.sampled_from(AGENTS), long=st.booleans())
    def take_lease(self, who: int, at: int, agent: str, long: bool) -> None:
        """A lease is taken, if nobody else's lives; a short one is over when this returns."""
        name, model = self.names[at], self.model[self.names[at]]
        ttl_ms = LONG_MS if long else SHORT_MS

        answer = outcome(lambda: self.logs[who].lease(name, agent, ttl_ms))

        if model.held_from(agent):
            assert answer == "LEASE_HELD"
            return
        assert not isinstance(answer, str), answer
        model.policy, model.holder, model.is_live = "leased", agent, long
        model.token = self.tokens[who][name, agent] = f"t{next(_NUMBERS)}"
        self.leases.append((who, name, agent, model.token, ttl_ms, answer))
        if not long:
            self._wait_out()

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 20))
    def renew(self, which: int) -> None:
        """A lease that nobody took gets more time, also past its deadline; any other is lost."""
        _, name, _, token, ttl_ms, lease = self.leases[which % len(self.leases)]
        model = self.model[name]

        answer = outcome(lease.renew)

        if token != model.token:
            assert answer == "LEASE_LOST"
            return
        assert answer is None
        model.is_live = ttl_ms == LONG_MS
        self._wait_out()

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 20))
    def release(self, which: int) -> None:
        """A lease that is given back is free for all; giving back one that is lost changes nothing."""
        who, name, agent, token, _, lease = self.leases.pop(which % len(self.leases))
        model = self.model[name]

        lease.release()

        if self.tokens[who].get((name, agent)) == token:
            del self.tokens[who][name, agent]
        if token == model.token:
            model.token, model.is_live = "", False

    @rule(who=st.integers(0, 1), at=st.integers(0, 1), agent=st.sampled_from(AGENTS))
    def hand_off(self, who: int, at: int, agent: str) -> None:
        """Who holds the lease passes it on with the event; the other one alone can take it then."""
        name, model = self.names[at], self.model[self.names[at]]
        to = AGENTS[1 - AGENTS.index(agent)]
        event = Event.of("handoff", actor=agent, id=f"h{next(_NUMBERS)}", data={"to": to})
        token = self._token(who, name, agent)

        answer = outcome(lambda: self.logs[who].handoff(name, agent, to, event_id=event.id))

        should = model.take((event,), "any", token)
        self._is(answer, should)
        if token and not isinstance(should, str):
            # The log keeps the old token until the lease is released: what its holder still sends is fenced.
            model.holder, model.token = to, ""

    @rule(who=st.integers(0, 1))
    def reopen(self, who: int) -> None:
        """A log that is opened again holds no lease, and the sessions hold what they held."""
        self.logs[who] = self._open()
        self.tokens[who] = {}
        self.leases = [lease for lease in self.leases if lease[0] != who]

    # -- reading -----------------------------------------------------------------------------------------------------

    @rule(who=st.integers(0, 1), at=st.integers(0, 1), after=st.integers(0, 12), to=st.none() | st.integers(0, 12))
    def read(self, who: int, at: int, after: int, to: int | None) -> None:
        name, commits = self.names[at], self.model[self.names[at]].commits
        found = [(c.first_seq, c.events) for c in self.logs[who].read(name, after=after, to=to)]
        between = [c for c in commits if c.last > after and (to is None or (c.first <= to and to > after))]
        assert found == [(c.first, list(c.events)) for c in between]

    @rule(who=st.integers(0, 1), at=st.integers(0, 1), before=st.none() | st.integers(0, 12))
    def read_back(self, who: int, at: int, before: int | None) -> None:
        name, commits = self.names[at], self.model[self.names[at]].commits
        found = [(c.first_seq, c.events) for c in self.logs[who].read_back(name, before=before)]
        wanted = [c for c in reversed(commits) if before is None or c.first < before]
        assert found == [(c.first, list(c.events)) for c in wanted]

    @invariant()
    def heads_are_those_of_the_model(self) -> None:
        for name, model in self.model.items():
            head = self.logs[0].head(name)
            assert (head.seq if head else 0) == model.seq
            assert (head.policy if head else "any") == model.policy

    def teardown(self) -> None:
        for name, model in self.model.items():
            commits = list(self.logs[0].read(name))
            assert [(c.first_seq, tuple(c.events)) for c in commits] == [(c.first, c.events) for c in model.commits]
            if commits:
                assert_chained(name, commits, self.logs[0].head(name))

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _token(self, who: int, name: str, actor: str) -> str:
        """What an append through this log carries, in the model."""
        return self.tokens[who].get((name, actor), "")

    @staticmethod
    def _is(answer: Receipt | str | None, should: Written | str) -> None:
        if isinstance(should, str):
            assert answer == should
            return
        assert isinstance(answer, Receipt), answer
        assert (answer.first_seq, answer.last_seq) == (should.first, should.last)
        assert (answer.appended, answer.duplicates) == (len(should.events), 0)

    def _wait_out(self) -> None:
        """Returns when a short lease that was taken before is over by the server's clock."""
        begun = self._server_ms()
        while self._server_ms() <= begun + SHORT_MS:
            pass

    def _server_ms(self) -> int:
        def asking() -> Flow[int]:
            (now,) = yield [TimeRequest()]
            return int(now)

        return self.logs[0].run(asking())


def hold_against_model(open_log: Logs, examples: int) -> None:
    class Machine(LogMachine):
        def __init__(self) -> None:
            super().__init__(open_log)

    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=examples, stateful_step_count=30, print_blob=True),
    )


@pytest.mark.parametrize("face", ["blocking", "asyncio"])
@pytest.mark.parametrize("server", ["valkey", "redis7"] if FULL else ["valkey"])
def test_a_log_on_a_server_behaves_as_the_model(
    servers: Servers, make_store: Callable[..., Store], server: str, face: str
) -> None:
    """Any sequence of operations by two producers has the outcomes that the model has."""
    store = make_store(servers.url(server), partitions=1)
    opened: list[Blocking] = []

    def open_async() -> RunnableLog:
        opened.append(Blocking(store.open_async))
        return opened[-1]

    try:
        hold_against_model(store.open if face == "blocking" else open_async, 600 if FULL else 50)
    finally:
        for log in opened:
            log.close()


def test_the_log_in_memory_behaves_as_the_model() -> None:
    """What is tested on the log in memory is true of the others, because all are as the model."""
    ticks = count(1_700_000_000_000)
    first = MemoryLog(clock_ms=lambda: next(ticks))
    hold_against_model(first.another, 6000 if FULL else 300)
