"""Law: a bug in Muster's own code does not go unnoticed. Each one here is put into the code, and verification finds it.

The fold of workers is the fold of recovery, so a bug in it makes every view wrong in the same way. It is put into this
whole process, validator included: only the second reading of the log can tell.
"""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import pytest

import domain.log
from domain import Event, MusterError, agent, impact, invariants, session
from projections import catchup, indexing, session_view, store
from tests.conftest import Servers, Store
from tests.projections.world import World, did, foreign_append, notes
from tests.waiting import wait_until

PACKAGES: Final = ("domain", "projections", "workers")


class Bug(NamedTuple):
    """Words of the code, in a function, and what stands there instead."""

    name: str
    where: Any
    function: str
    right: str
    wrong: str


FOLD: Final = [
    Bug("a type is counted twice", session.Session, "follow", "get(type, 0) + 1", "get(type, 0) + 2"),
    Bug("an agent's events are counted twice", session.Session, "follow", "part.events += 1", "part.events += 2"),
    Bug(
        "an agent's last seq is off by one", session.Session, "follow", "part.last_seq = seq", "part.last_seq = seq - 1"
    ),
    Bug("an agent that left stays present", session.Session, "follow", 'part.present = type != "left"', "pass"),
    Bug("an agent begins at 0", session.Session, "follow", "Participation(1, seq, seq", "Participation(1, 0, seq"),
    Bug(
        "the wrong agent ends coordinating",
        session.Session,
        "follow",
        "actor not in (self.handed",
        "actor in (self.handed",
    ),
    Bug(
        "the state before the rule",
        session.Session,
        "follow",
        "ENTERS.get(type, state)",
        "ENTERS.get(type, self.state)",
    ),
    Bug(
        "who handed off is lost", session.Session, "_mark", "self.handed_off_by, self.last_handoff = actor, seq", "pass"
    ),
    Bug("the first actor is the last", session.Session, "follow", "if self.first_actor is None", "if True"),
    Bug(
        "the last type is the first",
        session.Session,
        "follow",
        "self.last_type = type",
        "self.last_type = self.last_type or type",
    ),
    Bug(
        "old entities are lost",
        session.Session,
        "follow",
        "self.entities.update(change.entity_ids)",
        "self.entities = set(change.entity_ids)",
    ),
    Bug(
        "only the first entity",
        session.Session,
        "follow",
        "self.entities.update(change.entity_ids)",
        "self.entities.update(change.entity_ids[:1])",
    ),
    Bug("it began at its last commit", session.Session, "dated", "self.started_at or at_ms", "at_ms"),
    Bug(
        "it never moves on in time",
        session.Session,
        "dated",
        "self.last_at = at_ms",
        "self.last_at = self.started_at",
    ),
    Bug(
        "a commit's last event is lost",
        session.Session,
        "follow",
        "for gist in gists",
        "for gist in gists[: len(gists) // 2 + 1]",
    ),
    Bug(
        "two events change places",
        session.Session,
        "follow",
        "for gist in gists",
        "for gist in reversed(gists)",
    ),
    Bug(
        "a type is counted twice, among many",
        session.Session,
        "count",
        "get(type, 0) + count",
        "get(type, 0) + 2 * count",
    ),
    Bug(
        "an agent's events are counted twice, among many",
        session.Session,
        "count",
        "part.events += events",
        "part.events += 2",
    ),
    Bug(
        "an agent's last seq is off by one, among many",
        session.Session,
        "count",
        "part.last_seq = begin + last",
        "part.last_seq = begin + last - 1",
    ),
    Bug(
        "an agent that left stays present, among many",
        session.Session,
        "count",
        'part.present = types[last] != "left"',
        "pass",
    ),
    Bug(
        "an agent begins at 0, among many",
        session.Session,
        "count",
        "Participation(0, begin + actors.index(actor)",
        "Participation(0, 0",
    ),
    Bug(
        "the first actor is the last, among many",
        session.Session,
        "count",
        "if self.first_actor is None",
        "if True",
    ),
    Bug(
        "the last type is the first, among many",
        session.Session,
        "count",
        "self.last_type = types[-1]",
        "self.last_type = self.last_type or types[-1]",
    ),
    Bug(
        "old entities are lost, among many",
        session.Session,
        "count",
        "self.entities.update(change.entity_ids)",
        "self.entities = set(change.entity_ids)",
    ),
    Bug(
        "only the first entity, among many",
        session.Session,
        "count",
        "self.entities.update(change.entity_ids)",
        "self.entities.update(change.entity_ids[:1])",
    ),
    Bug("many begin at their last commit", invariants, "_count", "next(filter(None, times), 0)", "times[-1]"),
    Bug("many never move on in time", invariants, "_count", "dated(times[-1])", "dated(times[0])"),
    Bug("what says more is only counted", session, "says_more", "if gist.type in _SAYS_MORE", "if False"),
    Bug("impacts are only counted", session, "says_more", "data.impact or data.tags or data.priority", "False"),
    Bug("who wakes a session is only counted", session.Session, "count", " or self.state == COORDINATING", ""),
    Bug(
        "the last events are lost, of many",
        session.Session,
        "count",
        "types, actors =",
        "gists = gists[: len(gists) // 2 + 1]; types, actors =",
    ),
    Bug(
        "events change places, of many",
        session.Session,
        "count",
        "types, actors =",
        "gists = gists[::-1]; types, actors =",
    ),
    Bug(
        "the end of a stretch is lost",
        invariants,
        "_count",
        "gists[begin:end]",
        "gists[begin : max(end - 1, begin + 1)]",
    ),
    Bug("a stretch ends with its first digest", invariants, "fold_lawful", "digests[end - 1]", "digests[begin]"),
    Bug("a checkpoint is off by one", session_view, "_is_due", "(first_seq - 1) //", "first_seq //"),
    Bug(
        "no checkpoint of a handoff",
        session_view,
        "_is_due",
        "CHECKPOINT_TYPES.isdisjoint",
        '{"broke", "completed"}.isdisjoint',
    ),
    Bug(
        "the oldest checkpoints are kept",
        session_view.Folding,
        "_keep_checkpoint",
        "min(self.checkpoints)",
        "max(self.checkpoints)",
    ),
    Bug(
        "contributes where it left",
        agent,
        "_contribution",
        "return Totals(part.events, 1, int(part.present))\n",
        "return Totals(part.events, 1, 1)\n",
    ),
    Bug("tags are replaced", session.Session, "_note", "self.tags.add(tag)", "self.tags = {tag}"),
    Bug("the first priority stays", session.Session, "_note", "self.priority = priority", "pass"),
    Bug(
        "a reopened session stays completed",
        session.Session,
        "_mark",
        "self.completed_at, self.outcome = 0, None",
        "pass",
    ),
    Bug("an outcome is lost", session.Session, "_mark", "_label(data.outcome) if data is not None else None", "None"),
    Bug("a break stays open", session.Session, "_mark", "self.open_breaks = []", "pass"),
    Bug("a handoff closes breaks", session.Session, "_mark", 'elif type == "broke"', 'elif type != "test_pass"'),
    Bug("a transition is counted back to front", session.Session, "follow", "{before}>{state}", "{state}>{before}"),
    Bug("the pair of types is not moved on", session.Session, "_mark", "self.last_entering = type", "pass"),
    Bug("a checkpoint is forgotten", session.Session, "_mark", "self.last_checkpoint = seq", "pass"),
    Bug("a severity is counted once", impact.Impacts, "add", "get(severity, 0) + 1", "get(severity, 0) * 0 + 1"),
    Bug("the last perf_delta is the sum", impact.Impacts, "add", "self.perf_delta += delta", "self.perf_delta = delta"),
    Bug("the highest perf_delta is the lowest", impact.Impacts, "add", "min(self.lowest", "max(self.lowest"),
    Bug("a perf_delta is rounded down", impact, "units", "2 * over * SCALE + under", "2 * over * SCALE"),
    Bug(
        "a stretch makes its newest checkpoint alone",
        session_view.Folding,
        "_take",
        "islice(due, CHECKPOINTS_KEPT)",
        "islice(due, 1)",
    ),
]

CATCH_UP: Final = [
    Bug("an index keeps what is no more", indexing.IndexMoves, "move", "before.values - after.values", "set()"),
    Bug("an index lacks what is new", indexing.IndexMoves, "move", "after.values - before.values", "set()"),
    Bug("entities are not indexed", indexing, "entries", "for entity in view.entities if", "for entity in () if"),
    Bug(
        "a time does not move",
        indexing.IndexMoves,
        "move",
        "before.scores.get(name) != score",
        "name not in before.scores",
    ),
    Bug("statistics move backwards", catchup, "_outcome", "(gives.sums, gave.sums, -1)", "(gave.sums, gives.sums, -1)"),
    Bug("statistics forget what was", catchup, "writes", "indexing.plus(kept, sums)", "sums"),
    Bug("completed sessions take no time", indexing, "sums", "view.completed_at - view.started_at", "1"),
    Bug(
        "a session that moved is passed over",
        catchup,
        "fold_span",
        "view.seq >= span.to_seq",
        "view.seq >= span.from_seq - 1 > 0",
    ),
    Bug(
        "totals move backwards",
        catchup,
        "_outcome",
        "difference(before, contributions(view))",
        "difference(contributions(view), before)",
    ),
    Bug("totals forget what was", catchup, "writes", "totals + moved[agent]", "moved[agent]"),
    Bug(
        "the last session of a batch is lost",
        catchup,
        "writes",
        "outcomes:\n        yield write_view",
        "outcomes[:-1]:\n        yield write_view",
    ),
    Bug(
        "a session counts again each time",
        catchup,
        "fold_span",
        "before, gave = contributions(view),",
        "before, gave = {},",
    ),
    Bug(
        "agents that are not new do not move",
        agent,
        "difference",
        "before.get(agent, NOTHING) for agent in agents",
        "NOTHING for agent in agents",
    ),
    Bug("sums lose who is present", agent.Totals, "__add__", "self.present + other.present", "self.present"),
    Bug(
        "checkpoints of a batch replace the newest",
        store,
        "write_checkpoints",
        "[-session_view.CHECKPOINTS_KEPT :]",
        "[: session_view.CHECKPOINTS_KEPT]",
    ),
]

#: In the functions on the server: what is right, and what is wrong.
FUNCTIONS: Final = {
    "the digest leaves out where the commit stands": ("first .. '|' .. integer(count)", "integer(count)"),
    "the digest leaves out what was before": ("sha1hex(head.digest .. '|1|'", "sha1hex('|1|'"),
    "a body loses its last byte": ("reply[4], 'b', body)", "reply[4], 'b', string.sub(body, 1, -2))"),
    "the head keeps the gate of before": ("digest, gate, ms, reply, body", "digest, head.gate, ms, reply, body"),
    "time runs backwards": ("local ms = math.max(call.at, head.ms)", "local ms = call.now - seq * 1000"),
    "a completed session takes anything": ("  c = { s = 'o',", "  c = { b = 'c', s = 'o',"),
    "the running total counts commits": ("events_fed = events_fed + #kinds", "events_fed = events_fed + 1"),
    "the feed tells of the first event only": ("+ 1, last, #body", "+ 1, last - #kinds + 1, #body"),
    "a step loses its first write": (
        "for _, operation in ipairs(operations) do\n    local needs",
        "for at in ipairs(operations) do\n    local operation = operations[at + 1] or operations[at]\n    local needs",
    ),
}


def histories(world: World) -> None:
    """What a fold has to get right, in batches, the views caught up after each; in one partition and in others."""
    log = world.log
    together = [name for name in (f"t-{n}" for n in range(200)) if world.keyspace.partition_of(name) == 0][:4]
    for name in together:
        log.append(name, [did("start", "ann"), did("modified", "bob", entities=("a", "b")), did("joined", "eve")])
    world.project()
    for name in together:
        log.append(name, [did("modified", "ann", entities=("c",)), did("broke", "bob"), did("test_pass", "ann")])
        log.append(name, did("handoff", "ann"))
        log.append(name, did("tool.called", "ann"))
    world.project()
    for name in together:
        log.append(name, did("tool.called", "bob"))
        log.append(name, [*notes(39, "ann"), did("left", "eve")])
        log.append(name, notes(1, "ann"))
        log.append(name, did("joined", "eve"))
        log.append(name, did("left", "bob"))
    world.project()
    first = together[0]
    log.append(first, notes(300, "zoe"))
    for _ in range(6):
        log.append(first, [did("handoff", "bob"), did("broke", "eve")])
        log.append(first, notes(1, "eve"))
    hurt = {"severity": "high", "perf_delta": 0.0000017}
    for _ in range(2):
        said = {"impact": hurt, "tags": [f"t{log.head(first).seq}"], "priority": "low"}  # type: ignore[union-attr]
        log.append(first, Event.of("broke", actor="eve", data=said))
        world.project()
    log.append(first, Event.of("modified", actor="eve", data={"impact": {"perf_delta": -3}, "priority": "high"}))
    log.append(first, [did("handoff", "eve"), did("checkpoint", "eve")])
    log.append(first, Event.of("completed", actor="ann", data={"outcome": "done"}))
    world.project()
    log.append(first, did("tool.called", "ann"))
    lines = [{"type": "start", "id": "j-1", "actor": "json", "data": {"change": {"entity_ids": ["ü"]}}}]
    assert foreign_append(world.store, first, "s", json.dumps(lines).encode())[0] == "APPENDED"
    log.append(together[1], did("completed", "ann"))
    log.append(together[2], did("expired", "ann"))
    log.append(together[3], [did("handoff", "ann"), did("tool.called", "ann")])
    log.append("many", [did("start", "ann"), *notes(9, "ann"), did("modified", "bob", entities=("p", "q"))])
    world.project()
    log.append("many", [*notes(9, "ann"), did("modified", "eve", entities=("r", "s")), did("handoff", "bob")])
    world.project()
    plain = [*notes(9, "kim"), did("modified", "bob", entities=("p", "q")), did("joined", "kim"), did("left", "kim")]
    later = [
        did("modified", "ann", entities=("r", "s")),
        *notes(9, "kim"),
        did("left", "kim"),
        did("tool.called", "ann"),
    ]
    loud = Event.of("modified", actor="eve", data={"impact": hurt, "tags": ["late"]})
    batches: list[list[Event]] = [plain, later, [*notes(9, "ann"), loud, *notes(9, "ann")]]
    for events in batches:
        for event in events:
            wait_until_after(world, log.append("plain", event).at_ms)
        world.project()


def wait_until_after(world: World, at_ms: int) -> None:
    """Returns when what is appended next is of a later time."""
    wait_until(lambda: world.projections.server_ms() > at_ms)


@pytest.fixture
def put_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Bug], None]:
    """Puts a bug into the code that runs, wherever that was imported."""

    def put_in(bug: Bug) -> None:
        original = getattr(bug.where, bug.function)
        source = textwrap.dedent(inspect.getsource(original))
        right, wrong = bug.right, bug.wrong
        assert source.count(right) == 1, f"{bug.name}: {right!r} stands {source.count(right)} times in {bug.function}"
        code = compile("from __future__ import annotations\n" + source.replace(right, wrong), bug.name, "exec")
        defined: dict[str, Any] = {}
        exec(code, sys.modules[original.__module__].__dict__, defined)
        if not isinstance(bug.where, ModuleType):
            monkeypatch.setattr(bug.where, bug.function, defined[bug.function])
            return
        ours = [module for name, module in sys.modules.items() if name.partition(".")[0] in PACKAGES]
        for module in ours:
            if getattr(module, bug.function, None) is original:
                monkeypatch.setattr(module, bug.function, defined[bug.function])

    return put_in


def test_the_code_as_it_is_has_none_of_these_bugs(world: World) -> None:
    assert found_in_a_busy_store(world) == set()
    histories(world)
    assert world.verify() == []


@pytest.mark.parametrize("bug", FOLD, ids=lambda bug: bug.name)
def test_a_bug_in_the_fold_is_found(world: World, put_in: Callable[[Bug], None], bug: Bug) -> None:
    put_in(bug)
    histories(world)
    assert world.codes()


@pytest.mark.parametrize("bug", FOLD, ids=lambda bug: bug.name)
def test_what_a_right_release_built_is_not_blamed_by_a_wrong_one(
    world: World, put_in: Callable[[Bug], None], bug: Bug
) -> None:
    """The validator's own fold is wrong, the views are right: it says that readings differ, not that views do."""
    histories(world)
    put_in(bug)
    assert set(world.codes()) <= {"FOLD_DIFFERS"}
    world.recover()
    assert not any(finding.quarantined for finding in world.verify())


@pytest.mark.parametrize("bug", CATCH_UP, ids=lambda bug: bug.name)
def test_a_bug_in_catching_up_is_found(world: World, put_in: Callable[[Bug], None], bug: Bug) -> None:
    put_in(bug)
    histories(world)
    assert world.codes()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_bug_in_the_functions_on_the_server_is_found(own_server_url: str, name: str) -> None:
    right, wrong = FUNCTIONS[name]
    source = (Path(domain.log.__file__).parent / "functions.lua").read_text()
    assert source.count(right) == 1, f"{right!r} stands {source.count(right)} times"
    store = Store(own_server_url, partitions=4)
    try:
        store.client.function_load(source.replace(right, wrong), replace=True)
        assert found_in_a_busy_store(World(store))
    finally:
        store.close()


@pytest.fixture(scope="module")
def own_server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose functions may be broken: all tests share the others."""
    own = Servers(tmp_path_factory.mktemp("broken"))
    yield own.url("valkey")
    own.stop()


def found_in_a_busy_store(world: World) -> set[str]:
    """Appends as far as a store that is wrong takes it; what is found before and after the views are caught up.

    A worker that meets a gap in the feed builds the partition again, and all is well: so it must be found before.
    """
    found: set[str] = set()
    log = world.log
    for type in ("start", "completed", "modified", "broke"):
        with suppress(MusterError):  # a right store refuses some of it; one that is wrong may notice
            log.append("s-1", [Event.of(type, actor="ann"), Event.of("tool.called", actor="ann")])
        with suppress(MusterError):
            log.append("s-2", [Event.of("modified", actor="bob")])
        found |= set(world.codes())
        world.project()
        found |= set(world.codes())
    return found
