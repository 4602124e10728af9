"""Alerts: rules as text, fired once and resolved once, told to a real receiver over HTTP."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

import pytest
from msgspec import structs
from tenacity import wait_none

from domain import Misconfigured
from tests.conftest import Store
from tests.projections.world import World
from tests.waiting import wait_until
from workers.alerting.alerts import Alert, Alerts
from workers.alerting.rules import parsed
from workers.alerting.webhook import Webhook
from workers.child_process import start_child
from workers.health.component import NAMES, Component, Sample, Status
from workers.health.probes import PROBES
from workers.settings import ALERT_RULES, AlertsSettings, ServeSettings, Settings, load, shown

MUSTER: Final = [sys.executable, "-c", "import sys; from workers.cli import main; sys.exit(main(sys.argv[1:]))"]
TOKEN: Final = "a-token-of-the-test"


def component(name: str, status: Status, *samples: Sample) -> Component:
    return Component(name, status, "because", samples=samples)


# -- rules -----------------------------------------------------------------------------------------------------------


def test_components_are_named_once() -> None:
    """Rules know every component there is, and no other."""
    assert tuple(PROBES) == NAMES


def test_a_rule_says_of_a_look_whether_it_holds() -> None:
    """A component that is as bad or worse; a metric with any labels, the worst of them told; what is unseen is not
    judged.
    """
    (of_component,) = parsed("disk: disk is critical for 1.5s as info")
    assert (of_component.for_s, of_component.severity) == (1.5, "info")
    for status, holds in (
        *((Status.HEALTHY, False), (Status.WARNING, False)),
        *((Status.CRITICAL, True), (Status.DOWN, True)),
    ):
        assert of_component.judge([component("disk", status)]) == (holds, f"disk is {status.word}: because")
    assert of_component.judge([component("disk", Status.UNKNOWN)]) is None
    assert of_component.judge([component("spool", Status.DOWN)]) is None

    (high, low) = parsed("high: muster_projection_lag_seconds > 3; low: muster_projection_lag_seconds<=1")
    lag = [Sample("muster_projection_lag_seconds", value, (("projection", f"p@{value}"),)) for value in (1.0, 7.0, 2.0)]
    look = [component("projections", Status.HEALTHY, *lag)]
    assert high.judge(look) == (True, "muster_projection_lag_seconds (projection p@7.0) is 7")
    assert low.judge(look) == (True, "muster_projection_lag_seconds (projection p@1.0) is 1")
    assert high.judge([component("projections", Status.HEALTHY, *lag[::2])]) is not None
    assert high.judge([component("projections", Status.UNKNOWN)]) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("disk is critical", "is no rule"),
        ("a: disk is critical for 60", "is no rule"),
        ("A: disk is critical", "is no rule"),
        ("a: disk is full", "a component is warning, critical, down"),
        ("a: cellar is critical", "there are the components redis, memory"),
        ("a: muster_nothing > 1", "there is no metric 'muster_nothing'"),
        ("a: muster_losses > many", "'many' is no number"),
        ("a: muster_losses > nan", "'nan' is no number"),
        ("a: muster_losses > 1 as loud", "there are: info, warning, critical"),
        ("a: disk is down; a: spool is down", "two rules are named 'a'"),
    ],
)
def test_what_is_no_rule_is_refused_with_what_there_is(text: str, words: str) -> None:
    """When the settings are read, before anything runs."""
    with pytest.raises(Misconfigured, match=re.escape(words)) as raised:
        load({"MUSTER_ALERTS__RULES": text})
    assert raised.value.code == "SETTING_INVALID"


def test_rules_and_webhook_are_settings() -> None:
    """The default rules are rules; none is allowed; an address that is none is refused; nothing of it is shown."""
    assert len(parsed(ALERT_RULES)) == 7
    assert parsed(load({"MUSTER_ALERTS__RULES": ""}).alerts.rules) == []
    for bad in ("ftp://h/x", "alerts.example", "http://"):
        with pytest.raises(Misconfigured, match=r"alerts\.webhook is no URL"):
            load({"MUSTER_ALERTS__WEBHOOK": bad})
    settings = load({"MUSTER_ALERTS__WEBHOOK": "https://h/s3cr3t", "MUSTER_ALERTS__TOKEN": TOKEN})
    told = repr(settings) + str(shown(settings))
    assert "s3cr3t" not in told
    assert TOKEN not in told


# -- firing ----------------------------------------------------------------------------------------------------------


def test_an_alert_fires_once_and_is_resolved_once() -> None:
    """After it held for as long as it says; one that held for less never was; what cannot be seen changes nothing."""
    clock, told = [0.0], list[Alert]()
    alerts = Alerts(parsed("d: disk is warning for 10s as critical"), [told.append], lambda: clock[0])

    def look(status: Status, seconds: float) -> list[str]:
        before = len(told)
        clock[0] += seconds
        alerts.heed([component("disk", status)])
        return [one.status for one in told[before:]]

    assert look(Status.WARNING, 1) == []
    assert look(Status.HEALTHY, 9) == []
    assert look(Status.CRITICAL, 1) == []
    assert look(Status.WARNING, 9) == []
    assert look(Status.UNKNOWN, 1) == []
    assert look(Status.WARNING, 1) == ["firing"]
    (sample,) = alerts.samples()
    assert sample == Sample("muster_alert_active", True, (("alert", "d"), ("severity", "critical")))
    assert [look(status, 1) for status in (Status.WARNING, Status.UNKNOWN, Status.DOWN)] == [[], [], []]
    assert look(Status.HEALTHY, 1) == ["resolved"]
    assert look(Status.HEALTHY, 1) == []
    assert [one.value for one in alerts.samples()] == [False]
    assert told[0].since_ms == told[1].since_ms
    assert told[0].document()["reason"] == "disk is warning: because"


# -- the webhook -----------------------------------------------------------------------------------------------------


class Receiver(ThreadingHTTPServer):
    """A receiver of alerts on loopback, which answers as it is told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receives)
        self.got: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.answers: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class _Receives(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append((self.path, dict(self.headers), body))
        status = self.server.answers.pop(0) if self.server.answers else 204
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def news(name: str) -> Alert:
    return Alert(name, "critical", "firing", "because", 1_700_000_000_000, 1_700_000_001_000)


@pytest.fixture
def webhook(receiver: Receiver) -> Iterator[Webhook]:
    settings = AlertsSettings(webhook=receiver.url, token=TOKEN, retry_for_s=60)
    made = Webhook(lambda: settings, about={"namespace": "main"}, wait=wait_none())
    made.start()
    yield made
    made.stop()


def test_each_alert_is_one_post_of_json(receiver: Receiver, webhook: Webhook) -> None:
    """With the token as a header, and which store it is about; in the order they were told."""
    webhook.tell(news("a"))
    webhook.tell(news("b"))

    wait_until(lambda: len(receiver.got) == 2)

    path, headers, body = receiver.got[0]
    assert (path, headers["Authorization"], headers["Content-Type"]) == ("/hook", f"Bearer {TOKEN}", "application/json")
    assert body == {
        "schema": "muster.alert/1",
        "alert": "a",
        "severity": "critical",
        "status": "firing",
        "reason": "because",
        "since": "2023-11-14T22:13:20.000Z",
        "at": "2023-11-14T22:13:21.000Z",
        "namespace": "main",
    }
    assert receiver.got[1][2]["alert"] == "b"


def test_what_a_receiver_may_take_later_is_sent_again_and_nothing_else(receiver: Receiver, webhook: Webhook) -> None:
    """Until it takes it, before the next; a refusal and a redirect are final, and the token goes nowhere else."""
    receiver.answers = [500, 429, 503, 200, 400, 302, 200]
    for name in ("a", "b", "c", "d"):
        webhook.tell(news(name))

    wait_until(lambda: len(receiver.got) == 7)

    assert [body["alert"] for _, _, body in receiver.got] == ["a", "a", "a", "a", "b", "c", "d"]
    assert {path for path, _, _ in receiver.got} == {"/hook"}


def test_a_receiver_that_is_away_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    """It is given up after a while, which is said; the URL, which may be a secret, is not."""
    settings = AlertsSettings(webhook="http://127.0.0.1:1/s3cr3t", retry_for_s=0.01)
    webhook = Webhook(lambda: settings, about={}, wait=wait_none())
    webhook.start()
    webhook.tell(news("a"))
    webhook.stop()

    assert "alert a could not be told to the webhook" in caplog.text
    assert "s3cr3t" not in caplog.text


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url, partitions=2))


def test_serve_alerts_for_real(world: World, receiver: Receiver, tmp_path: Path) -> None:
    """A process looks, a worker is missing and then there: one POST when it fires, one when it is resolved."""
    rules = "nobody: workers is down as critical; never: disk is down"
    settings = structs.replace(
        world.settings(),
        alerts=AlertsSettings(rules, receiver.url, TOKEN),
        serve=ServeSettings(port=0, look_every_s=0.1),
    )
    said = tmp_path / "said"
    with said.open("wb") as stderr:
        child = start_child([*MUSTER, "serve"], env=world.environ() | settings.environ(), stderr=stderr)
    try:
        wait_until(lambda: receiver.got, timeout_s=60, message="it fires")
        with world.workers(1, lease_ttl_ms=60_000, beat_ms=1000):
            wait_until(lambda: len(receiver.got) == 2, timeout_s=60, message="it is resolved")
            child.send_signal(signal.SIGTERM)
            assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait()
    assert [(body["alert"], body["status"]) for _, _, body in receiver.got] == [
        ("nobody", "firing"),
        ("nobody", "resolved"),
    ]
    assert receiver.got[0][2]["namespace"] == world.store.namespace
    assert "alert nobody (critical) is firing: workers is down: no worker process lives" in said.read_text()
    assert receiver.url not in said.read_text()
    assert Settings().alerts.webhook is None
