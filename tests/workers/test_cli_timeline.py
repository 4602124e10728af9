"""`muster session timeline`: as text, as rows, and as a page that shows in a browser what the command line says."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings

from domain import Event
from projections import session_view
from projections.stepping import steps
from tests.conftest import Store, missing
from tests.projections.world import Ran, World, did, foreign_append, histories, memory_log, run_cli
from workers import timeline_page
from workers.timeline_page import ADD, DELETE, INSERT, REMOVE, SET, page

HOSTILE: Final = (
    "</script><script>document.title='taken'</script>",
    "<!-- <script>",
    "__proto__",
    '"}];//',
    "\u2028line\u2029",
    "a&lt;b",
    "@@DATA@@",
    "constructor",
    "\U0001f600 beyond",
    "\uffff last",
)
SESSION: Final = "x@@DATA@@:1"
KEYS: Final = ["Home", "ArrowRight", "ArrowRight", "PageDown", "ArrowLeft", "PageUp", "End", "ArrowRight", "b"]


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A store with a session whose every text is hostile: 120 events in commits of one to four, by five agents."""
    world = World(make_store(server_url, partitions=4))
    chance = random.Random(1)
    for _ in range(50):
        events = []
        for _ in range(chance.randint(1, 4)):
            actor = chance.choice(("__proto__", "7", "ann", "constructor", "z/z"))
            data = {"change": {"entity_ids": chance.sample(HOSTILE, 2)}, chance.choice(HOSTILE): chance.choice(HOSTILE)}
            type = chance.choice(("modified", "broke", "test_pass", "handoff", "left", "tool.called"))
            events.append(Event.of(type, actor=actor, data=data if type != "handoff" else {"n": 2**60}))
        world.log.append(SESSION, events)
    world.project()
    return world


def rows_of(ran: Ran) -> list[dict[str, Any]]:
    """Its output as JSON lines, in which a text may hold what is a line's end elsewhere."""
    return [json.loads(line) for line in ran.out.split("\n") if line]


# -- text and rows ----------------------------------------------------------------------------------------------------


def test_the_text_tells_events_phases_breaks_and_hands(world: World) -> None:
    """Every seq has its line; what follows sums it up."""
    world.log.append("s", [did("start", "ann"), did("modified", "ann", entities=["a", "b", "c", "d"])])
    world.log.append("s", Event.of("broke", actor="bob", data={"impact": {"severity": "high", "tests_failed": ["t"]}}))
    world.log.append("s", Event.of("handoff", actor="bob", data={"to": "eve", "why": "lunch"}))
    world.log.append("s", did("test_pass", "eve"))

    lines = run_cli(world, "session", "timeline", "s", output="table").out.splitlines()

    assert [line.split()[0] for line in lines[:9] if "Z" not in line] == ["1", "2", "3", "4", "5"]
    assert [line.split()[1] for line in lines[:9] if "Z" in line] == ["working", "broken", "coordinating", "working"]
    text = "\n".join(lines)
    assert "a, b, c and 1 more" in text
    assert "high; 1 test failed" in text
    assert "to=eve; (1 hidden)" in text
    assert "lunch" not in text
    assert re.search(r"3  by bob \(high, 1 test failed\): repaired at 5 by eve after", text)
    assert re.search(r"1\.\.4 +ann → eve", text)
    assert "why=lunch" in run_cli(world, "session", "timeline", "s", "--redact", "none", output="table").out


def test_rows_are_told_from_a_seq_to_another(world: World) -> None:
    """As JSON, with the kind of each; also of a part that begins and ends inside commits."""
    rows = rows_of(run_cli(world, "session", "timeline", SESSION, "--from", "7", "--to", "31"))
    events = [row for row in rows if row["kind"] == "event"]

    assert {row["schema"] for row in rows} == {"muster.timeline/1"}
    assert {row["kind"] for row in rows} >= {"event", "phase", "turn"}
    assert [row["seq"] for row in events] == list(range(7, 32))
    for row in events[::5]:
        (shown,) = rows_of(run_cli(world, "session", "show", SESSION, "--at", str(row["seq"])))
        assert (row["state"], row["digest"], row["at"]) == (shown["state"], shown["digest"], shown["last_at"])
    assert json.loads(run_cli(world, "session", "timeline", SESSION, "--from", "31", "--to", "31", output="json").out)
    time = events[9]["at"]
    since = rows_of(run_cli(world, "session", "timeline", SESSION, "--from", time))
    assert since[0]["at"] == time


def test_an_imported_history_is_told_by_its_own_clock(world: World, tmp_path: Path) -> None:
    """As text, and in a page."""
    times = ("2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z")
    world.log.append("s", [Event.of("modified", actor="ann", time=time) for time in times])

    told = run_cli(world, "session", "timeline", "s", "--clock", "producer", output="table").out
    run_cli(world, "session", "timeline", "s", "--clock", "producer", "--html", str(tmp_path / "page.html"))

    assert told.startswith("2026-01-01T00:00:00.000Z  working")
    assert "… 2d0h without an event" in told
    assert data_of(tmp_path / "page.html")["pauses"] == {"1": 2 * 86_400_000}


def test_what_a_foreign_producer_writes_does_nothing_to_a_terminal(world: World) -> None:
    """Controls come out as what they are called."""
    body = [{"type": "tool.called", "id": "1", "actor": "a", "data": {"\u001b[2J": "\u001b]0;x\u0007"}}]
    foreign_append(world.store, "s", ".", json.dumps(body).encode())

    ran = run_cli(world, "session", "timeline", "s", "--redact", "none", output="table")

    assert "\\x1b[2J" in ran.out
    assert "\x1b" not in ran.out


def test_a_damaged_session_is_told_as_far_as_it_verifies(world: World, tmp_path: Path) -> None:
    """Then the damage is the error; a page holds what verifies."""
    commits = list(world.log.read(SESSION))
    world.redis.xdel(world.keyspace.of(SESSION).log(SESSION), f"{commits[20].last_seq}-{len(commits[20].events)}")
    good = commits[19].last_seq

    ran = run_cli(world, "session", "timeline", SESSION)
    assert (ran.code, "LOG_GAP" in ran.err) == (8, True)
    assert [row["seq"] for row in rows_of(ran) if row["kind"] == "event"] == list(range(1, good + 1))
    assert run_cli(world, "session", "timeline", SESSION, "--html", str(tmp_path / "page.html")).code == 8
    assert data_of(tmp_path / "page.html")["changes"][good - 1 :] != []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("none",), 4),
        ((SESSION, "--from", "9999"), 4),
        ((SESSION, "--from", "9", "--to", "8"), 9),
        ((SESSION, "--html", "/no/such/folder/page.html"), 4),
        ((SESSION, "--redact", "all"), 2),
    ],
)
def test_what_cannot_be_told_has_its_exit_code(world: World, arguments: tuple[str, ...], code: int) -> None:
    """As everywhere: 4 what is not there, 9 what is refused, 2 usage."""
    ran = run_cli(world, "session", "timeline", *arguments)

    assert (ran.code, ran.out) == (code, "")


# -- the page ---------------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """The tags of a page, with their attributes, as a browser finds them; and what stands in its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def data_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Tags(path.read_text("utf-8")).scripts[0])
    return found


def test_a_page_holds_no_markup_of_a_producer_and_asks_nobody_for_anything(world: World, tmp_path: Path) -> None:
    """Two scripts, ours, which the policy names by their hash; no address; no text of a producer's outside the data."""
    target = tmp_path / "page.html"
    assert run_cli(world, "session", "timeline", SESSION, "--redact", "none", "--html", str(target)).code == 0
    text = target.read_text("utf-8")
    page = Tags(text)

    own = Tags(Path(timeline_page.__file__).with_name("timeline.html").read_text("utf-8"))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in own.tags]
    assert page.scripts[1] == own.scripts[1]
    told = json.loads(page.scripts[0])
    assert told["initial"]["session"] == SESSION
    assert HOSTILE[0] in json.dumps(told["changes"])
    assert not any({"src", "href", "style", "onload"} & set(attributes) for _, attributes in page.tags)
    # The one name of a kind of element, which is no address.
    assert set(re.findall(r"\w+://[\w.]*", text)) == {"http://www.w3.org"}
    (policy,) = [attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert b64encode(sha256(page.scripts[1].encode()).digest()).decode() in policy


def test_a_page_holds_only_known_data_unless_told_otherwise(world: World, tmp_path: Path) -> None:
    """By default nothing of what producers wrote beside the known fields is in the file at all."""
    world.log.append("s", [did("start"), Event.of("tool.called", actor="a", data={"password": "hunter2"})])
    world.log.append("s", Event.of("modified", actor="a", data={"metadata": {"t": "hunter2"}, "tags": ["kept"]}))
    known, all = tmp_path / "known.html", tmp_path / "all.html"
    run_cli(world, "session", "timeline", "s", "--html", str(known))
    run_cli(world, "session", "timeline", "s", "--redact", "none", "--html", str(all))

    assert all.read_text("utf-8").count("hunter2") == 2
    assert ("hunter2" in known.read_text("utf-8"), "password" in known.read_text("utf-8")) == (False, False)
    assert "kept" in known.read_text("utf-8")


@settings(max_examples=25)
@given(histories())
def test_the_changes_of_a_page_make_every_state(commits: list[list[Event]]) -> None:
    """Brought in one after another, also from the middle on, they give the document of each seq, in its order."""
    log = memory_log("s", commits)
    count = sum(map(len, commits))
    begin = next(iter(log.read("s"))).last_seq
    for first in {0, begin} - {count}:
        before = session_view.initial("s")
        list(steps(log, before, to=first))
        told = json.loads(Tags(page(before, steps(log, before), schema="x/1")).scripts[0])
        states = [{"schema": "x/1", **session_view.document(step.state, digest=step.digest is not None)}
                  for step in steps(log, session_view.initial("s"))]  # fmt: skip
        document = told["initial"]
        for seq, operations in enumerate(told["changes"], first + 1):
            for operation in operations:
                document = changed(document, told["paths"], operation)
            assert json.dumps(document) == json.dumps(states[seq - 1])


def changed(document: dict[str, Any], paths: list[list[str]], operation: list[Any]) -> dict[str, Any]:
    """A document after an operation, as the page does it."""
    kind, path, *rest = operation
    at: Any = document
    *way, last = paths[path]
    for name in way:
        at = at[name]
    if kind == SET:
        at[last] = rest[0]
    elif kind == DELETE:
        del at[last]
    elif kind == ADD:
        entries = list(at.items())
        entries.insert(rest[0], (last, rest[1]))
        at.clear()
        at.update(entries)
    elif kind == INSERT:
        at[last].insert(rest[0], rest[1])
    elif kind == REMOVE:
        del at[last][rest[0]]
    return document


def test_a_page_of_too_many_events_is_refused(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written; a part of them is taken."""
    monkeypatch.setattr(timeline_page, "MOST_EVENTS", 20)
    target = tmp_path / "page.html"

    ran = run_cli(world, "session", "timeline", SESSION, "--html", str(target))
    assert (ran.code, "--from" in ran.err, target.exists()) == (9, True, False)
    assert run_cli(world, "session", "timeline", SESSION, "--from", "11", "--to", "30", "--html", str(target)).code == 0
    assert len(data_of(target)["changes"]) == 20


# -- in a browser -----------------------------------------------------------------------------------------------------


def browse(page: Path, fragment: str = "") -> str:
    """The document that a headless browser makes of a page."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        missing("there is no chromium on the PATH")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=5000")
    profile = f"--user-data-dir={page.parent / 'profile'}"
    ran = subprocess.run(
        [browser, *options, profile, "--dump-dom", f"file://{page}{fragment}"],
        capture_output=True, timeout=120, check=True, text=True,
    )  # fmt: skip
    return ran.stdout


def pre(dom: str, name: str) -> str:
    found = re.search(rf'<pre id="{name}">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[:2000]
    return unescape(found[1])


@pytest.fixture
def written(world: World, tmp_path: Path) -> Path:
    target = tmp_path / "page.html"
    assert run_cli(world, "session", "timeline", SESSION, "--html", str(target)).code == 0
    return target


def test_a_browser_shows_the_state_that_the_command_prints(world: World, written: Path) -> None:
    """At a seq that the address names; the hostile texts are shown, and did nothing."""
    for seq in (1, 41):
        dom = browse(written, f"#seq={seq}&json")

        shown = json.loads(run_cli(world, "session", "show", SESSION, "--at", str(seq)).out)
        assert json.loads(pre(dom, "state-json")) == shown
        assert f"<title>{SESSION}: timeline</title>" in dom
        assert f"seq {seq} of " in dom


def test_scrubbing_shows_the_right_state_at_every_seq(world: World, written: Path) -> None:
    """Forward, backward and across, by the range input and by keys, in one page: each state is the one of its seq."""
    last = world.views.session(SESSION)["seq"]
    jumps = [*range(1, last + 1), *range(last, 0, -3), *random.Random(2).sample(range(1, last + 1), 40)]
    driver = f"""
      document.getElementById("json").open = true;
      const seen = [], scrubber = $("scrubber"), result = document.createElement("pre");
      const note = (how) => seen.push([how, Number(scrubber.value), $("state-json").textContent]);
      for (const seq of {jumps}) {{
        scrubber.value = String(seq);
        scrubber.dispatchEvent(new Event("input"));
        note("range");
      }}
      for (const key of {KEYS}) {{
        document.dispatchEvent(new KeyboardEvent("keydown", {{ key }}));
        note(key);
      }}
      document.body.append(Object.assign(result, {{ id: "seen", textContent: JSON.stringify(seen) }}));
    """
    # The page's own policy would not let this script run.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", written.read_text("utf-8"))
    written.write_text(text.replace("</body>", f"<script>{driver}</script></body>"), "utf-8")

    seen = json.loads(pre(browse(written), "seen"))

    shown = {seq: world.views.session_at(SESSION, seq) for seq in range(1, last + 1)}
    for how, seq, state in seen:
        assert json.loads(state) == {"schema": "muster.session/1", **shown[seq]}, (how, seq)
    assert [seq for how, seq, _ in seen if how == "range"] == jumps
    by_keys = [seq for how, seq, _ in seen if how != "range"]
    assert by_keys[:8] == [1, 2, 3, 13, 12, 2, last, last]
    assert by_keys[8] == data_of(written)["breaks"][0][0]


def test_the_policy_lets_no_other_script_run(written: Path) -> None:
    """A script that somebody put into the page does nothing."""
    text = written.read_text("utf-8")
    written.write_text(text.replace("</body>", "<script>document.title = 'taken'</script></body>"), "utf-8")

    assert "<title>taken" not in browse(written)
