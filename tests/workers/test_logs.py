"""What worker processes log: a line a fact with a stable action, and neither secrets nor what events say."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec import structs

from domain import Event, Misconfigured, SessionLog
from domain.log import create_store
from projections.projection import RecordedEvent
from tests.conftest import Store
from tests.own_server import OwnServer
from tests.projections.examples import Spent, SpentPerSession, spec
from tests.projections.world import World, did
from tests.waiting import wait_until
from workers import logs
from workers.child_process import ChildProcess, start_child
from workers.settings import JobSettings, LogSettings, RedisSettings, ServeSettings, Settings
from workers.topics import TOPICS, parse_topics, set_debug_topics, switch_all, topic_of

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
PASSWORD: Final = "s3cr3t-pa55-of-the-test"
TOKEN: Final = "a-t0ken-that-nobody-may-see"
PAYLOAD: Final = "what-an-agent-said-in-c0nfidence"


class Telling(SpentPerSession):
    """Fails, and its error's text says what the event says."""

    name = "telling"

    def apply(self, state: Spent, event: RecordedEvent) -> Spent:
        raise ValueError(f"cannot count {event.data}")


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url, partitions=4))


@contextmanager
def worker(settings: Settings, output: Path) -> Iterator[ChildProcess]:
    """A worker process whose lines go to a file."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
    environ |= {**settings.environ(), "PYTHONPATH": str(ROOT)}
    with output.open("wb") as file:
        child = start_child([sys.executable, "-m", "workers.process"], env=environ, stderr=file)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGCONT)
        child.terminate()
        child.wait(60)


@contextmanager
def captured(settings: Settings) -> Iterator[io.StringIO]:
    """What this process logs meanwhile, as a worker process would with these settings."""
    said = io.StringIO()
    with redirect_stderr(said), logs.logging_as(settings):
        yield said


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text().splitlines()]


def actions(output: Path) -> list[str]:
    return [line["action"] for line in lines(output)]


# -- actions ---------------------------------------------------------------------------------------------------------


def logging_calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Every call that logs a line."""
    levels = {"debug", "info", "warning", "error", "exception", "critical", "log"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in levels:
            name = ast.unparse(node.func.value)
            if name in ("logger", "self._logger"):
                yield node


def told_actions(path: Path) -> list[str]:
    """The actions that a module names."""
    tree = ast.parse(path.read_text("utf-8"))
    found = [
        part.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "action"
        for part in ast.walk(value)
        if isinstance(part, ast.Constant) and re.fullmatch(r"[a-z]+\.[a-z_]+", str(part.value))
    ]
    found += [
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "met"
        and isinstance(node.args[0], ast.Constant)
    ]
    return [str(action) for action in found]


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("domain", "projections", "workers"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def test_every_line_has_an_action_whose_first_word_is_the_topic_of_its_module() -> None:
    """No call that logs goes without one, and no action is told by two topics."""
    found = 0
    for name, path in modules():
        for call in logging_calls(ast.parse(path.read_text("utf-8"))):
            given = {keyword.arg for keyword in call.keywords}
            assert "extra" in given, f"{path}:{call.lineno} logs without an action"
            found += 1
        for action in told_actions(path):
            assert action.split(".")[0] == topic_of(name), f"{path} tells {action}"
    assert found > 40


def test_the_page_lists_every_action_and_every_topic() -> None:
    """docs/telemetry.md has them all, and no other."""
    page = (DOCS / "telemetry.md").read_text("utf-8").split("## Logs")[1].split("\n## ")[0]
    told = {action for _, path in modules() for action in told_actions(path)}
    listed = {
        f"{topic}.{word}"
        for topic in TOPICS
        for line in page.splitlines()
        if line.startswith(f"| `{topic}` |")
        for word in line.split("|")[3].replace("`", "").replace(",", " ").split()
    }
    assert listed - {"library.other"} == told
    assert all(f"| `{topic}` |" in page for topic in TOPICS)


# -- what is told ----------------------------------------------------------------------------------------------------


def test_no_secret_and_nothing_that_events_say_is_ever_logged(tmp_path: Path) -> None:
    """Planted in address, token and event, with every topic on, an error of the user's code, and a server that dies."""
    server = OwnServer(tmp_path / "server", "--requirepass", PASSWORD)
    server.launch()
    url = f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0"
    settings = Settings(
        redis=RedisSettings(url, retry_for_s=0.1),
        jobs=JobSettings(f"redis://:{PASSWORD}@127.0.0.1:{server.port}/1"),
        serve=ServeSettings(token=TOKEN),
        log=LogSettings("json", ",".join(TOPICS)),
        projections=spec(Telling),
    )
    output = tmp_path / "said"
    try:
        with server.client(password=PASSWORD) as client:
            create_store(client, environment="dev", namespace="main", partitions=2)
            with worker(settings, output) as child, SessionLog.open(url) as log:
                log.append("s-1", Event.of("tool.called", actor="ann", data={"why": PAYLOAD}))
                parked = log.keyspace.of("s-1").parked("telling@1")
                wait_until(lambda: client.hlen(parked), message="the user's code has failed")
                client.set(log.keyspace.of("s-1").parked("sessions"), PAYLOAD)  # of another type: every batch fails
                log.append("s-1", Event.of("tool.called", actor="ann", data={"why": PAYLOAD}))
                wait_until(lambda: "projection.hindered" in actions(output), message="it is logged")
                server.kill()
                wait_until(lambda: "lease.unkept" in actions(output), message="the outage is logged")
                child.terminate()
                child.wait(60)
    finally:
        server.stop()
    said = output.read_text()
    for secret in (PASSWORD, TOKEN, PAYLOAD):
        assert secret not in said
    assert {"worker.runs", "lease.claimed", "feed.batch", "worker.shutdown"} <= set(actions(output))
    for line in lines(output):
        assert list(line)[:5] == ["at", "level", "action", "message", "logger"], line
        assert line["action"].split(".")[0] in TOPICS
        assert line["pid"] == child.pid


def test_what_is_secret_is_masked_wherever_it_stands() -> None:
    """In words, in fields, in a traceback, in an address of somebody else, in a command that redis-py repeats."""
    settings = Settings(redis=RedisSettings(f"redis://me:{PASSWORD}@here/0"), serve=ServeSettings(token=TOKEN))
    with captured(settings) as said:
        logger = logging.getLogger("workers.of_the_test")
        try:
            raise OSError(f"no way to {PASSWORD}")
        except OSError:
            logger.exception("it failed", extra={"action": "worker.test", "where": TOKEN})
        logging.getLogger("urllib3").warning("cannot reach %s", "https://them:hush@there/path")
        logger.warning("Command # 1 (SET {p}:view:s %s) of pipeline caused error: full", PAYLOAD)
    text = said.getvalue()
    assert "OSError: no way to ***" in text
    assert "where=***" in text
    assert f"https://***@there/path [library.other pid={os.getpid()}]" in text
    assert f"(SET {{p}}:view:s …) of pipeline caused error: full [worker.other pid={os.getpid()}]" in text
    for secret in (PASSWORD, TOKEN, "hush", PAYLOAD):
        assert secret not in text


def test_an_error_tells_where_it_came_from_but_only_ours_tell_their_text() -> None:
    """Of any other, type and frames; the errors behind it too."""
    with captured(Settings(log=LogSettings("json"))) as said:
        try:
            try:
                raise KeyError(PAYLOAD)
            except KeyError as error:
                raise Misconfigured("SETTING_INVALID", "this one is ours") from error
        except Misconfigured:
            logging.getLogger("workers.x").exception("failed", extra={"action": "worker.test"})
    (line,) = map(json.loads, said.getvalue().splitlines())
    assert (line["action"], line["level"], line["message"]) == ("worker.test", "error", "failed")
    assert "KeyError\n\n… and then:" in line["error"]
    assert line["error"].splitlines()[-1].startswith("Misconfigured: SETTING_INVALID: this one is ours"), line["error"]
    assert "test_an_error_tells_where_it_came_from" in line["error"]
    assert PAYLOAD not in said.getvalue()


def test_production_logs_json_and_development_lines_for_people(tmp_path: Path, world: World) -> None:
    """By profile, unless the setting says otherwise; a line for people begins as it always did."""
    output = tmp_path / "said"
    with worker(world.settings(), output):
        wait_until(lambda: "[worker.runs pid=" in output.read_text(), message="it runs")
    assert " INFO workers.process: worker " in output.read_text()
    assert Settings().log.format == "text"


# -- topics ----------------------------------------------------------------------------------------------------------


def test_topics_are_switched_on_and_off_while_a_worker_runs(world: World, tmp_path: Path) -> None:
    """SIGUSR1 switches all on, and once more back to what the settings say; work goes on."""
    output = tmp_path / "said"
    settings = structs.replace(world.settings(), log=LogSettings("json", "feed"))

    def told(word: str) -> int:
        return actions(output).count(word)

    with worker(settings, output) as child:
        world.wait_until_shared([child])
        world.log.append("s", did("start"))
        wait_until(lambda: told("feed.batch"), message="the topic of the settings is on")
        assert not told("lease.beat")

        child.send_signal(signal.SIGUSR1)
        wait_until(lambda: told("lease.beat"), message="all topics are on")

        child.send_signal(signal.SIGUSR1)
        wait_until(lambda: told("worker.topics") == 2, message="it says that they are off again")
        beats, batches = told("lease.beat"), told("feed.batch")
        world.log.append("s", did("modified"))
        wait_until(lambda: told("feed.batch") > batches, message="the topic of the settings is still on")
        world.wait_until_caught_up()
        assert told("lease.beat") - beats <= 1, "at most the one that was being told"
    switched = [line["topics"] for line in lines(output) if line["action"] == "worker.topics"]
    assert switched == [",".join(TOPICS), "feed"]


def test_who_keeps_workers_logs_as_they_do_and_passes_the_signal_on(world: World, tmp_path: Path) -> None:
    """`muster worker run`: every line of it and of its workers is an object; SIGUSR1 reaches them all."""
    output = tmp_path / "said"
    settings = structs.replace(world.settings(), log=LogSettings("json"))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
    environ |= {**settings.environ(), "PYTHONPATH": str(ROOT)}
    command = "import sys; from workers.cli import main; sys.exit(main(sys.argv[1:]))"
    with output.open("wb") as file:
        arguments = [sys.executable, "-c", command, "worker", "run", "--processes", "2"]
        keeper = start_child(arguments, env=environ, stdout=file, stderr=file)
    try:
        wait_until(lambda: actions(output).count("worker.runs") == 2, message="the workers run")
        keeper.send_signal(signal.SIGUSR1)
        wait_until(lambda: actions(output).count("worker.topics") == 2, message="both heard it")
        keeper.send_signal(signal.SIGTERM)
        assert keeper.wait(60) == 0
    finally:
        keeper.kill()
        keeper.wait()
    said = [line["message"] for line in lines(output) if line["action"] == "worker.supervision"]
    assert said[0].startswith("workers run: ")
    assert said[-1] == "draining"


def test_a_topic_that_is_none_is_refused() -> None:
    """With the nearest one."""
    assert parse_topics("lease, feed,") == ("lease", "feed")
    with pytest.raises(Misconfigured, match="'laese'; did you mean 'lease'"):
        parse_topics("laese")


def test_topics_are_quiet_unless_they_are_named() -> None:
    """Each on its own: what is under another is not told with it."""
    with captured(Settings(log=LogSettings(debug="log"))):
        set_debug_topics(["lease"])
        on = {topic: logging.getLogger(names[0]).isEnabledFor(logging.DEBUG) for topic, names in TOPICS.items()}
        assert [topic for topic, is_on in on.items() if is_on] == ["lease"]
        assert not logging.getLogger("domain.log.exchange").isEnabledFor(logging.DEBUG)
        assert switch_all() == tuple(TOPICS)
        assert logging.getLogger("workers.jobs").isEnabledFor(logging.DEBUG)
        assert switch_all() == ("lease",)
        assert not logging.getLogger("workers.jobs").isEnabledFor(logging.DEBUG)
        set_debug_topics(["log"])
        assert logging.getLogger("domain.log.exchange").isEnabledFor(logging.DEBUG)
        assert not logging.getLogger("domain.log.spooling.draining").isEnabledFor(logging.DEBUG)
