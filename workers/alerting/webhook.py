"""Tells alerts to a URL: one POST of JSON each, in order, tried again for a while; what is given up is said.

A thread of its own sends, so that a receiver that is slow keeps nobody from looking. A redirect is not followed: the
token would go to whoever it names.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tenacity import (
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_random_exponential,
)
from tenacity.stop import stop_any
from tenacity.wait import wait_base

from workers.alerting.alerts import Alert
from workers.settings import AlertsSettings

logger = logging.getLogger(__name__)

#: How many alerts wait at most for a receiver that is away.
MOST: Final = 1_000
#: How long one attempt may take, in seconds.
TIMEOUT_S: Final = 5.0
#: What a receiver answers that may take it later.
_LATER: Final = frozenset({408, 425, 429})


class Webhook:
    """Sends alerts where the settings say when they are sent; `about` is added to each: which store it is about."""

    def __init__(
        self, settings: Callable[[], AlertsSettings], *, about: dict[str, Any], wait: wait_base | None = None
    ) -> None:
        self._settings = settings
        self._about = about
        self._wait = wait or wait_random_exponential(multiplier=0.5, max=30)
        self._waiting: Queue[Alert] = Queue(MOST)
        self._stop = Event()
        self._opener = build_opener(_NoRedirect)
        self._thread = Thread(target=self._run, name="webhook", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 2 * TIMEOUT_S) -> None:
        """Sends what waits, each once, and ends."""
        self._stop.set()
        self._thread.join(timeout_s)

    def tell(self, alert: Alert) -> None:
        """Takes an alert to be sent soon, if there is anybody to be told."""
        if self._settings().webhook is None:
            return
        try:
            self._waiting.put_nowait(alert)
        except Full:
            about = {"action": "worker.alert_untold", "alert": alert.name}
            logger.error("alert %s is not told to the webhook: %d wait already", alert.name, MOST, extra=about)

    def _run(self) -> None:
        while True:
            try:
                alert = self._waiting.get(timeout=0.2)
            except Empty:
                if self._stop.is_set():
                    return
                continue
            try:
                self._retrying()(self._send, alert)
            except Exception as error:
                # Of the URL only its errors are said: it may be a secret itself.
                about = {"action": "worker.alert_untold", "alert": alert.name}
                logger.error("alert %s could not be told to the webhook: %s", alert.name, _told(error), extra=about)

    def _retrying(self) -> Retrying:
        return Retrying(
            retry=retry_if_exception(_may_be_taken_later),
            stop=stop_any(stop_after_delay(self._settings().retry_for_s), stop_when_event_set(self._stop)),
            wait=self._wait,
            sleep=sleep_using_event(self._stop),
            reraise=True,
        )

    def _send(self, alert: Alert) -> None:
        settings = self._settings()
        if settings.webhook is None:
            return  # taken away since
        body = json.dumps(alert.document() | self._about, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "muster"}
        if settings.token is not None:
            headers["Authorization"] = f"Bearer {settings.token}"
        # The scheme is http or https: the settings refuse any other.
        try:
            with self._opener.open(Request(settings.webhook, body, headers), timeout=TIMEOUT_S) as response:
                response.read(1)
        except HTTPError as error:
            error.close()  # it is an answer too
            raise


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _may_be_taken_later(error: BaseException) -> bool:
    if isinstance(error, HTTPError):
        return error.code >= 500 or error.code in _LATER
    return isinstance(error, OSError)


def _told(error: Exception) -> str:
    return f"it answered {error.code}" if isinstance(error, HTTPError) else type(error).__name__
