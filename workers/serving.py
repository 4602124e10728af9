"""`muster serve`: health and metrics over HTTP, for probes, scrapers and people.

    /livez /readyz                                        whether to restart this process; whether appends are taken
    /health /health/components /health/detailed           in short, as a list, all in full
    /health/redis /health/sessions                        one of them; how many sessions there are, and how they are
    /metrics                                              for Prometheus

/livez asks nobody: a process that is restarted because Redis is down helps nobody. Without a token only loopback is
served, and only under its own names, so that no web page can have a browser ask.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import socket
import sys
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import BoundedSemaphore
from typing import Any, Final
from urllib.parse import urlsplit

from domain.errors import Misconfigured
from workers.health.component import Component, Sample, Status, overall, status_document
from workers.health.looking import Health
from workers.health.probes import READY
from workers.metrics import CONTENT_TYPE, exposition
from workers.settings import ServeSettings, Settings

#: How long one connection may take to say what it wants, in seconds.
PATIENCE_S: Final = 10.0
#: How many connections are served at a time; more are closed at once, so that nobody can use up our threads.
MOST_AT_A_TIME: Final = 64
#: What is told to everybody, as load balancers have no token.
_FOR_EVERYBODY: Final = frozenset({"/livez", "/readyz"})
_JSON: Final = "application/json"
#: What of the sessions is counted.
_OF_SESSIONS: Final = {
    "muster_sessions": "sessions",
    "muster_sessions_parked": "parked",
    "muster_sessions_drifted": "drifted",
    "muster_sessions_unread": "unread",
}


class GuardedServer(ThreadingHTTPServer):
    """Answers those who may ask. Listens from the moment it is made. Raises Misconfigured (SETTING_INVALID) for an
    address that cannot be had, or must not be without a token; `section` is that of the settings which name it.
    """

    daemon_threads = True
    #: A connection that finds the queue full is tried again by its kernel, seconds later.
    request_queue_size = 2 * MOST_AT_A_TIME

    def __init__(self, serve: ServeSettings, *, section: str = "serve") -> None:
        _check_token(serve, section)
        self.token = serve.token
        self._free = BoundedSemaphore(MOST_AT_A_TIME)
        self.names = frozenset({"localhost", "127.0.0.1", "::1", serve.host})
        if ":" in serve.host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((serve.host, serve.port), _Handler)
        except OSError as error:
            cause = f"{section}.host {serve.host}, {section}.port {serve.port} cannot be listened on: {error}"
            raise Misconfigured("SETTING_INVALID", cause, key=f"{section}.port") from None

    @property
    def url(self) -> str:
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{host}:{self.server_port}"

    def server_bind(self) -> None:
        """Binds without looking up our own name, as http.server does: a resolver that hangs would keep us from it."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing where somebody hung up on us; a bug is not kept quiet."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def answer(self, path: str) -> tuple[int, str, str]:
        """Status, content type and body."""
        raise NotImplementedError


class HealthServer(GuardedServer):
    """Tells health and metrics."""

    def __init__(
        self,
        settings: Settings,
        health: Health | None = None,
        *,
        more_samples: Callable[[], Iterable[Sample]] = lambda: (),
    ) -> None:
        super().__init__(settings.serve)
        self.health = health or Health(settings)
        self._more_samples = more_samples

    def check(self, settings: Settings) -> None:
        """Raises Misconfigured (SETTING_INVALID) where the token would be taken away that this address needs."""
        _check_token(settings.serve)

    def take(self, settings: Settings) -> None:
        """Asks for another token, and judges by other settings, from now on."""
        self.token = settings.serve.token
        self.health.take(settings)

    def answer(self, path: str) -> tuple[int, str, str]:
        if path == "/livez":
            return as_json(200, {"schema": "muster.live/1", "status": "alive"})
        components = self.health.look_shared()
        by_name = {one.name: one for one in components}
        code = 503 if overall(components) >= Status.CRITICAL else 200
        match path:
            case "/readyz":
                ready = [by_name[name] for name in READY if name in by_name]
                is_ready = overall(ready) < Status.CRITICAL and all(one.status is not Status.UNKNOWN for one in ready)
                word = "ready" if is_ready else "not ready"
                return as_json(200 if is_ready else 503, {"schema": "muster.ready/1", "status": word})
            case "/health":
                return as_json(code, status_document(components))
            case "/health/components":
                return as_json(code, [one.document() for one in components])
            case "/health/detailed":
                detailed = status_document(components) | {"components": [one.document() for one in components]}
                return as_json(code, detailed)
            case "/health/redis":
                one = by_name["redis"]
                return as_json(503 if one.status >= Status.CRITICAL else 200, one.document())
            case "/health/sessions":
                return as_json(200, _sessions(components))
            case "/metrics":
                return 200, CONTENT_TYPE, exposition(components, self._more_samples())
        return as_json(404, {"schema": "muster.error/1", "code": "USAGE", "cause": f"there is nothing at {path}"})


class _Handler(BaseHTTPRequestHandler):
    """One request; errors are answered, and nothing of a request is logged."""

    server: GuardedServer
    server_version = "muster"
    sys_version = ""
    timeout = PATIENCE_S

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.rstrip("/") or "/"
        status, kind, body = self._refusal(path) or self.server.answer(path)
        content = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _refusal(self, path: str) -> tuple[int, str, str] | None:
        token = self.server.token
        if token is None:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
            if host not in self.server.names:
                return as_json(421, _refused("this server is asked under another name than its own"))
            return None
        given = self.headers.get("Authorization", "").encode("latin-1")  # the bytes as they came
        if path in _FOR_EVERYBODY or hmac.compare_digest(given, f"Bearer {token}".encode()):
            return None
        return as_json(401, _refused("give the token: Authorization: Bearer …"))

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a probe a second would fill the log, and a request may hold what is nobody's business."""


def _check_token(serve: ServeSettings, section: str = "serve") -> None:
    if serve.token is None and not is_loopback(serve.host):
        raise Misconfigured(
            "SETTING_INVALID",
            f"{section}.host {serve.host} is reached from elsewhere: set serve.token (MUSTER_SERVE__TOKEN_FILE)",
            key="serve.token",
        )


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this host alone. A name other than localhost may mean anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _sessions(components: list[Component]) -> dict[str, Any]:
    """How many sessions there are and how they are; what cannot be seen is left out."""
    found: list[Sample] = [sample for one in components for sample in one.samples]
    counts = {_OF_SESSIONS[one.metric]: int(one.value) for one in found if one.metric in _OF_SESSIONS}
    return {"schema": "muster.sessions/1", **counts}


def _refused(cause: str) -> dict[str, Any]:
    return {"schema": "muster.error/1", "code": "ACCESS_DENIED", "cause": cause}


def as_json(status: int, document: Any) -> tuple[int, str, str]:
    """An answer: status, content type and body."""
    return status, _JSON, json.dumps(document, ensure_ascii=False) + "\n"
