"""The doctor: from the name of the host to the views, each step on what the one before found; one verdict, and what
mends it.

The way to the server is walked step by step (name, port, protocol, password, rights), because what fails first is the
trouble and all behind it are its consequences. Then everything that can be seen is looked at, and findings are ranked:
what keeps appends from being taken or loses them, what will, what could be better. Every step ends in time.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final

import redis
from msgspec import Struct

from domain.errors import REGISTRY, MusterError
from domain.log import SessionLog, connect
from domain.log.address import Address, parse_address
from domain.log.connection import connection_error, raised, send
from domain.log.subscribing.durable import DurableSubscriptions
from projections.census import Unlisted, census
from projections.drift import Validator
from projections.findings import KINDS, Finding
from projections.store import ProjectionStore
from workers.advice import LEVELS, Advice, Level, for_profile
from workers.health.component import Component, Status
from workers.health.looking import AWAY, Health
from workers.health.probes import PROBES, WITHOUT_REDIS
from workers.readiness import Seen, judged, quick, see
from workers.settings import Loaded, Settings
from workers.subscribed import behind, standing
from workers.validation import judge

#: For how long logs are read and compared with the views, in seconds, unless told otherwise.
READ_FOR_S: Final = 2.0
#: A server with so many keys at most is small enough to go through all of them.
SMALL: Final = 20_000
#: Components that the steps before have judged already.
_JUDGED_BEFORE: Final = frozenset({"redis", "memory"})
#: What mends a trouble at once, where a command does.
_COMMANDS: Final = {
    "STORE_MISSING": "muster init",
    "FUNCTIONS_MISSING": "muster init",
    "WORKERS_MISSING": "muster worker run",
    "FLEET_STOPPED": "muster stop --cancel",
    "READ_ONLY": "muster read-only off",
    "SESSION_PARKED": "muster parked retry --all",
    "DRIFT_FOUND": "muster recover apply",
    "LOSS_REPORTED": "muster epoch show",
    "SPOOL_WAITING": "muster spool drain",
    "SPOOL_HELD": "muster spool ls",
    "PROJECTION_BEHIND": "muster projection lag",
}


class Step(Struct, frozen=True):
    """One thing that was looked at, and what came of it."""

    name: str
    told: str


class Diagnosis(Struct, frozen=True):
    """What was looked at, and what was found, the worst first."""

    steps: list[Step]
    findings: list[Advice]

    @property
    def is_ill(self) -> bool:
        """Whether something does not work, or will not for long."""
        return any(one.level != "recommendation" for one in self.findings)

    @property
    def verdict(self) -> str:
        """All of it in one line, which names the symptom."""
        if not self.findings:
            return "no trouble found"
        first, others = self.findings[0], sum(one.level != "recommendation" for one in self.findings[1:])
        told = f"{first.code}: {first.why}"
        if not self.is_ill:
            return f"no trouble found; most worth mending: {told}"
        return told + (f" (and {others} more)" if others else "")


def diagnose(loaded: Loaded, *, read_for_s: float = READ_FOR_S) -> Diagnosis:
    """Looks at everything, as far as it can be seen. Raises nothing that is a finding."""
    if loaded.settings is None:
        invalid = [
            Advice("error", one.code, str(one.facts.get("key", "file")), one.cause, one.remedy, always=True)
            for one in loaded.problems
        ]
        return Diagnosis([Step("settings", "invalid")], invalid)
    return _Examination(loaded.settings, read_for_s).diagnosis()


class _Examination:
    def __init__(self, settings: Settings, read_for_s: float) -> None:
        self._settings = settings
        self._read_for_s = read_for_s
        self._timeout_s = settings.health.timeout_s
        self._steps: list[Step] = [Step("settings", f"valid, profile {settings.profile}")]
        self._findings: list[Advice] = []

    def diagnosis(self) -> Diagnosis:
        seen = self._reached()
        if seen is not None:
            self._findings += for_profile(judged(self._settings, seen), self._settings.profile)
            self._findings += judge(self._settings)
            self._note("server", f"{_version(seen)}, answers in {seen.latency_s * 1000:.1f} ms")
        self._look_at_components(is_open=seen is not None and seen.store_error is None)
        if seen is not None and seen.store_error is None:
            self._look_at_subscriptions()
            self._compare(is_small=_keys(seen) <= SMALL)
        # Within a level in the order of the steps: what comes first explains what comes later.
        ranked = sorted(self._findings, key=lambda one: LEVELS.index(one.level))
        first: dict[str, Advice] = {}
        for one in ranked:
            first.setdefault(f"{one.code} {one.key if one.code == 'SETTING_RISKY' else ''}", one)
        return Diagnosis(self._steps, list(first.values()))

    # -- the way there -----------------------------------------------------------------------------------------------

    def _reached(self) -> Seen | None:
        """What the server says of itself; None if it cannot be reached, which is a finding then."""
        address = parse_address(self._settings.redis.url)
        try:
            self._resolve(address)
            self._knock(address)
        except MusterError as error:
            self._found(error)
            return None
        try:
            self._greet()
            return see(self._settings)
        except (MusterError, redis.RedisError, OSError) as error:
            typed = error if isinstance(error, MusterError) else connection_error(error)
            self._found(self._after_knocking(typed, address))
            return None

    def _resolve(self, address: Address) -> None:
        """Raises Unavailable (NAME_UNRESOLVED) if no host has an address."""
        failures = []
        for host, port in address.hosts:
            answers: SimpleQueue[Any] = SimpleQueue()
            Thread(target=_look_up, args=(host, port, answers), daemon=True).start()
            try:
                answer = answers.get(timeout=self._timeout_s)
            except Empty:
                answer = TimeoutError(f"no answer within {self._timeout_s:g} s")
            if not isinstance(answer, Exception):
                self._note("dns", f"{host} is {answer}")
                return
            failures.append(f"{host}: {answer}")
        if failures:
            raise _typed("NAME_UNRESOLVED", f"no address for {'; '.join(failures)}")

    def _knock(self, address: Address) -> None:
        """Raises Unavailable (UNREACHABLE) if nobody listens."""
        failures = []
        for where in address.hosts or [address.path]:
            began = time.monotonic()
            try:
                with _opened(where, self._timeout_s):
                    self._note(
                        "tcp", f"{_shown(where)} takes connections, in {(time.monotonic() - began) * 1000:.1f} ms"
                    )
                    return
            except OSError as error:
                failures.append(f"{_shown(where)}: {error}")
        raise _typed("UNREACHABLE", f"nobody takes connections at {'; '.join(failures)}")

    def _greet(self) -> None:
        """TLS, password, and a first command."""
        connecting = quick(self._settings)
        client = connect(connecting)
        try:
            raised(send(client, [["PING"]], connecting, wrote=False, once=True)[0])
        finally:
            client.close()
        self._note("login", f"taken as {connecting.username or parse_address(connecting.url).username or 'default'}")

    def _after_knocking(self, error: MusterError, address: Address) -> MusterError:
        """What no answer means where somebody takes connections: he is silent, hangs up, or was not understood."""
        if error.code != "UNREACHABLE":
            return error
        # A server without TLS waits for the end of the line that it takes the first bytes of TLS for.
        if address.tls and any(_speaks_plainly(where, self._timeout_s) for where in address.hosts):
            return _typed("NO_SUCH_PROTOCOL", "the server has no TLS (redis://), and was asked with it (rediss://)")
        if "Timeout" in error.cause or "timed out" in error.cause:
            return _typed("SERVER_SILENT", "the server takes connections and answers nothing: it is frozen, or busy")
        why = f"the server takes connections and hangs up: it may want TLS (rediss://); {error.cause}"
        return _typed("NO_SUCH_PROTOCOL", why)

    # -- what is there -----------------------------------------------------------------------------------------------

    def _look_at_components(self, *, is_open: bool) -> None:
        """Where the store cannot be opened, only at what stands on this host."""
        visible = PROBES.keys() if is_open else WITHOUT_REDIS
        is_slow = any(one.code == "SERVER_SLOW" for one in self._findings)
        for one in Health(self._settings).look(visible - _JUDGED_BEFORE):
            self._note(one.name, f"{one.status.word}: {one.reason}")
            if is_slow and one.is_failure and one.code in AWAY:
                continue  # a slow server is what that comes of
            if one.status > Status.UNKNOWN or one.code is not None:
                self._findings.append(_advice_of(one))

    def _look_at_subscriptions(self) -> None:
        """Whether durable subscriptions are behind that have no member any more."""
        try:
            with self._opened_log() as log:
                made, totals = DurableSubscriptions(log.keyspace), standing(log)
                found = [log.drive(made.show(name)) for name in log.drive(made.names())]
        except (MusterError, redis.RedisError, OSError) as error:
            typed = error if isinstance(error, MusterError) else connection_error(error)
            self._note("subscriptions", f"could not be looked at: {typed}")
            return
        self._note("subscriptions", f"{len(found)} durable ones")
        for one in found:
            events = sum(behind(one, partition, totals) or 0 for partition in one.partitions)
            if events and not one.members and one.moved_to is None:
                why = f"subscription {one.name} is {events} events behind, and no member of it lives"
                self._findings.append(_advice("warning", "SUBSCRIPTION_FORSAKEN", "subscriptions", why))

    def _opened_log(self) -> SessionLog:
        settings = self._settings
        return SessionLog.open(
            quick(settings),
            environment=settings.environment,
            namespace=settings.namespace,
            archive=settings.archive.opened(),
        )

    def _compare(self, *, is_small: bool) -> None:
        """Reads logs for a while, and holds views, heads and totals against them."""
        try:
            with self._opened_log() as log:
                validator = _Hurried(ProjectionStore(log.client, log.keyspace), log, for_s=self._read_for_s)
                drifted = list(validator.findings(with_census=is_small))
        except (MusterError, redis.RedisError, OSError) as error:
            typed = error if isinstance(error, MusterError) else connection_error(error)
            self._note("drift", f"could not be looked for: {typed}")
            return
        self._note("drift", f"{validator.told}, {len(drifted)} findings")
        mendable = [one for one in drifted if not one.quarantined]
        if mendable:
            why = f"stored state is not what the log says: {_named(mendable)}"
            self._findings.append(_advice("error", "DRIFT_FOUND", "drift", why))
        if quarantined := [one for one in drifted if one.quarantined]:
            why = f"what precedes the damage is served, and appends are refused: {_named(quarantined)}"
            self._findings.append(_advice("error", "QUARANTINED", "drift", why))

    def _found(self, error: MusterError) -> None:
        self._findings.append(_advice("error", error.code, "redis.url", error.cause))
        self._note("redis", error.cause)

    def _note(self, name: str, told: str) -> None:
        self._steps.append(Step(name, told))


class _Hurried:
    """Verifies partition after partition until its time is over."""

    class _TimeIsOver(Exception):
        pass

    def __init__(self, store: ProjectionStore, log: SessionLog, *, for_s: float) -> None:
        self._store = store
        self._until = time.monotonic() + for_s
        self._validator = Validator(store, log, went_through=self._took)
        self._is_over = False

    def findings(self, *, with_census: bool) -> Iterator[Finding]:
        """The drift that is found meanwhile. Parked sessions are known already. What stands in no list is
        found by a census, which goes through all keys of the server.
        """
        unlisted = census(self._store) if with_census else {}
        try:
            for partition in range(self._store.keyspace.count):
                for one in self._validator.partition(partition, unlisted.get(partition, Unlisted(set(), set()))):
                    if one.severity != "info" and one.code != "SESSION_PARKED":
                        yield one
        except self._TimeIsOver:
            self._is_over = True

    @property
    def told(self) -> str:
        """How far it came."""
        read = self._validator.read
        more = "; all: muster projection verify --all" if self._is_over else ""
        return f"{read.sessions} sessions read, {read.events} events{more}"

    def _took(self, events: int) -> None:
        if time.monotonic() > self._until:
            raise self._TimeIsOver


def _named(found: list[Finding]) -> str:
    """Findings in short: the first by name."""
    first = found[0]
    whose = first.session or first.agent or f"partition {first.partition}"
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{first.code} of {whose}{more}"


def _look_up(host: str, port: int, answers: SimpleQueue[Any]) -> None:
    """Puts an address or an error; in a thread, since a resolver takes no timeout."""
    try:
        answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        answers.put(error)


def _opened(where: tuple[str, int] | str, timeout_s: float) -> socket.socket:
    if not isinstance(where, str):
        return socket.create_connection(where, timeout=timeout_s)
    opened = socket.socket(socket.AF_UNIX)
    opened.settimeout(timeout_s)
    try:
        opened.connect(where)
    except BaseException:
        opened.close()
        raise
    return opened


def _shown(where: tuple[str, int] | str) -> str:
    return where if isinstance(where, str) else f"{where[0]}:{where[1]}"


def _speaks_plainly(where: tuple[str, int] | str, timeout_s: float) -> bool:
    """Whether a server answers a command that comes without TLS: also one that it refuses."""
    try:
        with _opened(where, timeout_s) as opened:
            opened.sendall(b"PING\r\n")
            return opened.recv(1) in (b"+", b"-")
    except OSError:
        return False


def _typed(code: str, cause: str) -> MusterError:
    return REGISTRY[code].raised_as(code, cause)


def _advice_of(one: Component) -> Advice:
    """A component's trouble, as advice. One that this user may not see is a warning."""
    level: Level = "error" if one.status >= Status.CRITICAL else "warning"
    return _advice(level, one.code or "SERVER_ERROR", one.name, f"{one.name}: {one.reason}")


def _advice(level: Level, code: str, key: str, why: str) -> Advice:
    remedy = REGISTRY[code].remedy if code in REGISTRY else KINDS[code].remedy
    return Advice(level, code, key, why, remedy, command=_COMMANDS.get(code, ""), always=True)


def _keys(seen: Seen) -> int:
    """How many keys the server has in all databases, by INFO."""
    counts = re.findall(r"keys=(\d+)", " ".join(text for name, text in seen.info.items() if name.startswith("db")))
    return sum(map(int, counts))


def _version(seen: Seen) -> str:
    name = "valkey" if "valkey_version" in seen.info else "redis"
    return f"{name} {seen.info.get(f'{name}_version', '?')}"
