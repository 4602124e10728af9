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
from domain import Event, MusterError, agent, invariants, session
from projections import catchup, session_view, store
from tests.conftest import Servers, Store
from tests.projections.world import World, did, foreign_append, notes

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
    Bug("who handed off is lost", session.Session, "follow", "self.handed_off_by = actor", "pass"),
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
        "_follow_all",
        "get(type, 0) + count",
        "get(type, 0) + 2 * count",
    ),
    Bug(
        "an agent's events are counted twice, among many",
        session.Session,
        "_follow_all",
        "part.events += events",
        "part.events += 2",
    ),
    Bug(
        "an agent's last seq is off by one, among many",
        session.Session,
        "_follow_all",
        "part.last_seq = begin + last",
        "part.last_seq = begin + last - 1",
    ),
    Bug(
        "an agent that left stays present, among many",
        session.Session,
        "_follow_all",
        "part.present = is_present",
        "pass",
    ),
    Bug(
        "an agent begins at 0, among many",
        session.Session,
        "_follow_all",
        "Participation(events, first_seq",
        "Participation(events, 0",
    ),
    Bug(
        "the wrong agent ends coordinating, among many",
        session.Session,
        "_follow_all",
        "not {self.handed_off_by",
        "{self.handed_off_by",
    ),
    Bug(
        "the state before the rule, among many",
        session.Session,
        "_follow_all",
        "state = ENTERS[types[since - 1]]",
        "state = ENTERS.get(self.last_type, state)",
    ),
    Bug(
        "who handed off is lost, among many",
        session.Session,
        "_follow_all",
        "self.handed_off_by = actors",
        "lost = actors",
    ),
    Bug(
        "the first actor is the last, among many",
        session.Session,
        "_follow_all",
        "if self.first_actor is None",
        "if True",
    ),
    Bug(
        "the last type is the first, among many",
        session.Session,
        "_follow_all",
        "self.last_type = types[-1]",
        "self.last_type = self.last_type or types[-1]",
    ),
    Bug(
        "old entities are lost, among many",
        session.Session,
        "_follow_all",
        "self.entities.update(change.entity_ids)",
        "self.entities = set(change.entity_ids)",
    ),
    Bug(
        "only the first entity, among many",
        session.Session,
        "_follow_all",
        "self.entities.update(change.entity_ids)",
        "self.entities.update(change.entity_ids[:1])",
    ),
    Bug("it began at its last commit", invariants, "_stand", "if session.started_at == 0", "if True"),
    Bug("it never moves on in time", invariants, "_stand", "session.last_at = at_ms", "session.last_at = began"),
    Bug(
        "the last events are lost, of many",
        session.Session,
        "_follow_all",
        "types, actors =",
        "gists = gists[: len(gists) // 2 + 1]; types, actors =",
    ),
    Bug(
        "events change places, of many",
        session.Session,
        "_follow_all",
        "types, actors =",
        "gists = gists[::-1]; types, actors =",
    ),
    Bug(
        "the end of a stretch is lost",
        invariants,
        "fold_lawful",
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
        "a stretch makes its newest checkpoint alone",
        session_view.Folding,
        "_take",
        "islice(due, CHECKPOINTS_KEPT)",
        "islice(due, 1)",
    ),
    Bug("contributes where it left", agent, "contributions", "int(part.present)", "1"),
]

CATCH_UP: Final = [
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
    Bug("a session counts again each time", catchup, "fold_span", "before = contributions(view)", "before = {}"),
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
    "the digest leaves out where the commit stands": (
        ".. integer(first) .. '|' .. integer(count)",
        ".. integer(count)",
    ),
    "the digest leaves out what was before": ("local chained = head.digest ..", "local chained ="),
    "a body loses its last byte": ("'b', commit.body }", "'b', string.sub(commit.body, 1, -2) }"),
    "the head keeps the gate of before": ("gate = gate, ms = ms", "gate = head.gate, ms = ms"),
    "time runs backwards": ("local ms = math.max(written_at(meta, now), head.ms)", "local ms = now - seq * 1000"),
    "a completed session takes anything": ("  c = { s = 'o',", "  c = { b = 'c', s = 'o',"),
    "the running total counts commits": ("events_fed = events_fed + events", "events_fed = events_fed + 1"),
    "the feed tells of the first event only": ("tonumber(reply[3]), #commit.body", "tonumber(reply[2]), #commit.body"),
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
    log.append(first, did("completed", "ann"))
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
