"""Settings: flag > environment (`MUSTER_…`, `__` nests, `_FILE` reads a file) > `muster.toml` > profile > default.

The only module that reads the environment. What is wrong is refused with where it was given, the key, what is allowed
and the nearest name, because a setting that is silently ignored is found out at night. Nothing here shows a secret.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from domain.errors import Misconfigured
from domain.log import Connecting
from domain.log.address import parse_address, without_password
from domain.log.archive.place import Archive, Keys, open_archive
from domain.log.durability import parse_durability
from domain.log.keys import check_keyspace
from domain.log.spooling.spool import DEFAULT_MAX_BYTES
from workers.topics import parse_topics

PREFIX: Final = "MUSTER_"
#: Names under the prefix that are no settings: they belong to the scripts and to the tests.
NOT_SETTINGS: Final = frozenset(
    {"MUSTER_PYTHON", "MUSTER_VENV", "MUSTER_GATES", "MUSTER_CONFIG", "MUSTER_CHAOS", "MUSTER_CHAOS_SEED"}
)

#: Kinds of findings that may be repaired without being asked.
REPAIRABLE: Final = ("view", "checkpoint", "agent", "index", "head", "cursor", "registry")

#: Components that may close the store for appends. Not redis: while it is down nobody can be told.
CLOSING: Final = ("memory", "log", "feed", "projections", "verification", "workers", "jobs", "spool", "disk")

SettingPath: TypeAlias = tuple[str, ...]
Profile: TypeAlias = Literal["development", "staging", "production"]
Positive = Annotated[int, Meta(ge=1)]
#: A part of a whole.
Share = Annotated[float, Meta(gt=0, le=1)]
#: An upper bound tells milliseconds that were given for seconds.
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class RedisSettings(Connecting, frozen=True, forbid_unknown_fields=True):
    """The server that holds the store: everything that `Connecting` has, under its names there."""


class WorkerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Worker processes."""

    #: Processes that `worker run` and `dev` keep alive.
    processes: Annotated[int, Meta(ge=1, le=1024)] = 2
    #: Batches one process works on at a time.
    threads: Annotated[int, Meta(ge=1, le=1024)] = 2
    #: How long a partition stays with a worker that gives no sign of life, in ms; longer than a beat.
    lease_ttl_ms: Annotated[int, Meta(ge=500, le=3_600_000)] = 2000
    #: How often a worker gives a sign of life, renews its leases and shares partitions out, in ms.
    beat_ms: Annotated[int, Meta(ge=50, le=600_000)] = 400
    #: How long a stopping worker may finish what is in flight, in seconds.
    drain_s: Annotated[float, Meta(gt=0, le=3600)] = 20.0
    #: How long a batch may go on without finishing a session before the process ends itself, in seconds; no shorter
    #: than `redis.timeout_s`, for which a batch may have to wait.
    batch_deadline_s: Seconds = 120.0
    #: How long an entry stays in the feed after it was written, at least, in seconds; applied entries only are trimmed.
    feed_keep_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 600.0
    #: How long no agent is reported gone after this process lost sight of all: it began, the server was away, or its
    #: clock jumped; in seconds.
    absence_grace_s: Annotated[float, Meta(ge=0, le=86_400)] = 10.0
    #: From how long on a batch is logged, with its phases, in seconds.
    slow_batch_s: Seconds = 1.0
    #: How long an own projection that is behind keeps entries in the feed, in seconds; past it, it reads the log.
    feed_pin_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 3600.0


class SessionSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How sessions end that nobody ends."""

    #: Whether workers have sessions expire that idle.
    expire: bool = True
    #: How long a session may idle that says nothing else (`extended`), in seconds.
    idle_s: Annotated[int, Meta(ge=60, le=604_800)] = 1800
    #: How long it is warned before it expires (`muster.expiring`), in seconds.
    grace_s: Annotated[int, Meta(ge=60, le=3600)] = 180


class ArchiveSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Where old commits go, out of the server's memory, and when."""

    #: A folder that all hosts see, or s3://bucket/prefix?region=…&endpoint=…; None: everything stays on the server.
    url: str | None = None
    #: What opens a bucket; None: as other clients of S3 find it (AWS_ACCESS_KEY_ID, …).
    key_id: str | None = None
    secret: str | None = None
    #: Whether worker processes archive; without, the archive is read only.
    write: bool = True
    #: How often it is looked what may go, in seconds.
    every_s: Seconds = 30.0
    #: How many of its newest events an open session keeps on the server, at least.
    hot_events: Annotated[int, Meta(ge=1, le=1_000_000_000)] = 1000
    #: How long a session stays on the server after it ended, in seconds.
    after_end_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 3600.0

    def __repr__(self) -> str:
        rest = f"write={self.write}, every_s={self.every_s}, hot_events={self.hot_events}"
        return f"ArchiveSettings({self.url!r}, key_id=…, secret=…, {rest}, after_end_s={self.after_end_s})"

    def opened(self) -> Archive | None:
        """The archive, if there is one. Raises Misconfigured (SETTING_INVALID)."""
        return None if self.url is None else self.opened_at(self.url)

    def opened_at(self, url: str) -> Archive:
        """An archive somewhere else, with what opens this one. Raises Misconfigured (SETTING_INVALID)."""
        keys = None if self.key_id is None or self.secret is None else Keys(self.key_id, self.secret)
        return open_archive(url, keys)


class MemorySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What workers do as the server's memory fills, by the share of its `maxmemory` that is used."""

    #: From here on everything is archived that may be.
    early: Share = 0.7
    #: From here on appends to a partition wait for one another, longer and longer.
    slow: Share = 0.8
    #: From here on appends are refused.
    refuse: Share = 0.9


class JobSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Jobs on queues, run by the worker processes."""

    #: The database that holds the queues, never the store's own, with its own user and password; None: no jobs.
    #: TLS files and patience are those of `redis`.
    url: str | None = None
    #: Jobs one process works on at a time.
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    #: How often a round of scrubbing begins, in seconds; None: only when asked.
    verify_every_s: Annotated[float, Meta(ge=1, le=31_536_000)] | None = None
    #: How many events such a round reads, about.
    verify_events: Positive = 200_000
    #: Kinds of findings that a round repairs without being asked, separated by commas: view, checkpoint, agent, index,
    #: head, cursor, registry. None of the log.
    auto_repair: str = ""

    @property
    def repaired_kinds(self) -> list[str]:
        """The kinds that `auto_repair` names. Raises Misconfigured (SETTING_INVALID)."""
        return _repaired_kinds(self.auto_repair)

    def __repr__(self) -> str:
        url = None if self.url is None else without_password(self.url)
        rest = f"verify_every_s={self.verify_every_s}, verify_events={self.verify_events}"
        return f"JobSettings({url!r}, threads={self.threads}, {rest}, auto_repair={self.auto_repair!r})"


class MigrateSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The two servers of a migration, where `--from` and `--to` do not say; TLS files and patience are those of
    `redis`. Users and passwords are those of `redis` too, unless given here.
    """

    #: The server that sessions come from.
    from_url: str | None = None
    #: User and password there; None: those of `redis`.
    from_username: str | None = None
    from_password: str | None = None
    #: The server that sessions go to.
    to_url: str | None = None
    #: User and password there; None: those of `redis`.
    to_username: str | None = None
    to_password: str | None = None

    def __repr__(self) -> str:
        shown = [None if url is None else without_password(url) for url in (self.from_url, self.to_url)]
        return f"MigrateSettings(from_url={shown[0]!r}, to_url={shown[1]!r})"


class SpoolSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The outage spool of producers on this host: `muster event append`, `muster spool`."""

    #: The file, on a local disk; None: none.
    path: str | None = None
    #: How many bytes of commits it takes.
    max_bytes: Positive = DEFAULT_MAX_BYTES


class HealthSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """From where on a component counts as troubled, and how long it is waited for."""

    #: How long a probe may take, in seconds; what takes longer counts as silent.
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 2.0
    #: How long the oldest event that is not in the views has waited, in seconds.
    lag_warning_s: Seconds = 10.0
    lag_critical_s: Seconds = 60.0
    #: How much of the server's `maxmemory` is used.
    memory_warning: Share = 0.75
    memory_critical: Share = 0.9
    #: How full the disk of the spool is, or of the working directory.
    disk_warning: Share = 0.9
    disk_critical: Share = 0.97
    #: How full the spool is.
    spool_warning: Share = 0.5
    spool_critical: Share = 0.9
    #: How long the server takes to answer a PING, in seconds.
    latency_warning_s: Seconds = 0.1
    latency_critical_s: Seconds = 1.0
    #: How many entries the feeds hold.
    feed_warning: Positive = 1_000_000
    feed_critical: Positive = 10_000_000
    #: So many failures in a row have a component's probe wait, up to so long, in seconds, before it is asked again.
    breaker_failures: Positive = 3
    breaker_wait_s: Seconds = 10.0
    #: How far the clocks of server and client may be apart, in seconds.
    clock_skew_s: Seconds = 2.0


class ReadOnlySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """When `muster serve` has the store take no appends by itself."""

    #: Components that close it while they are critical or down, separated by commas: memory, log, disk, …; none: never.
    on_critical: str = ""
    #: How long it stays closed after the last look that found them so, in seconds; longer than `serve.look_every_s`.
    lapse_s: Annotated[float, Meta(ge=1, le=86_400)] = 60.0

    @property
    def components(self) -> list[str]:
        """The components that `on_critical` names. Raises Misconfigured (SETTING_INVALID)."""
        return _closing_components(self.on_critical)


#: What is alerted about where nobody says otherwise.
ALERT_RULES: Final = "; ".join(
    (
        "redis: redis is critical for 30s as critical",
        "appends: log is critical for 30s as critical",
        "memory: memory is critical for 60s as critical",
        "views: projections is critical for 60s as critical",
        "drift: verification is critical as critical",
        "workers: workers is down for 60s as critical",
        "disk: disk is critical for 60s as critical",
    )
)


class AlertsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What `muster serve` alerts about, and whom."""

    #: `NAME: COMPONENT is STATUS` or `NAME: METRIC > NUMBER`, then `for 60s`, `as warning`; separated by `;`.
    rules: str = ALERT_RULES
    #: A URL that is sent each alert as JSON by POST (http or https); None: only log and metrics tell.
    webhook: str | None = None
    #: What it is sent as `Authorization: Bearer …`.
    token: str | None = None
    #: How long an alert is tried again that it does not take, in seconds.
    retry_for_s: Seconds = 300.0

    def __repr__(self) -> str:
        hidden = {name: None if getattr(self, name) is None else "***" for name in ("webhook", "token")}
        return f"AlertsSettings({self.rules!r}, {hidden}, retry_for_s={self.retry_for_s})"


class ServeSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """`muster serve`: health and metrics over HTTP."""

    #: Where it listens; beyond loopback it needs a token.
    host: str = "127.0.0.1"
    #: On which port; 0: any that is free.
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8420
    #: What who asks must send as `Authorization: Bearer …`, for all but /livez and /readyz.
    token: Annotated[str, Meta(min_length=16)] | None = None
    #: How often it looks at all components by itself, for what follows from it (`read_only`), in seconds.
    look_every_s: Annotated[float, Meta(ge=0.1, le=3600)] = 5.0

    def __repr__(self) -> str:
        token = None if self.token is None else "***"
        return f"ServeSettings({self.host!r}, {self.port}, token={token}, look_every_s={self.look_every_s})"


class LogSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What worker processes say on stderr."""

    #: Lines for people, or an object a line for programs.
    format: Literal["text", "json"] = "text"
    #: Topics that are told in detail, separated by commas: docs/telemetry.md lists them.
    debug: str = ""


class TelemetrySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What worker processes count and trace, and who is told."""

    #: Where traces and metrics are sent by OTLP (http/protobuf), such as http://collector:4318; None: nowhere.
    otlp_endpoint: str | None = None
    #: How often metrics are sent there, in seconds.
    send_every_s: Annotated[float, Meta(ge=0.1, le=3600)] = 30.0
    #: How many of the batches are traced that no traced commit is part of: a part of a whole. Those that one is part of
    #: are traced always.
    sample: Annotated[float, Meta(ge=0, le=1)] = 0.01
    #: Where worker processes tell Prometheus what they counted: the first port from here on that is free on this host,
    #: among as many as there are processes; 0: nowhere.
    port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    #: The address it is told at; beyond loopback `serve.token` is needed.
    host: str = "127.0.0.1"


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """All settings."""

    #: Which defaults hold, and how strictly all is judged: development, staging, production.
    profile: Profile = "development"
    #: Which store on the server: the first part of the names of its keys, such as dev or prod.
    environment: str = "dev"
    #: Which store of an environment: the second part of the names of its keys.
    namespace: str = "main"
    #: How many partitions a new store gets, and what an existing one must have; None: 32, and as many as it has.
    partitions: Positive | None = None
    #: What a commit must have reached when its receipt is given: memory, local, replicated(1), …
    durability: str = "memory"
    #: Projections of the user's own, as package.module:Class, separated by commas; entry points are found without it.
    projections: str = ""
    redis: RedisSettings = RedisSettings()
    worker: WorkerSettings = WorkerSettings()
    sessions: SessionSettings = SessionSettings()
    archive: ArchiveSettings = ArchiveSettings()
    memory: MemorySettings = MemorySettings()
    jobs: JobSettings = JobSettings()
    migrate: MigrateSettings = MigrateSettings()
    spool: SpoolSettings = SpoolSettings()
    health: HealthSettings = HealthSettings()
    serve: ServeSettings = ServeSettings()
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    read_only: ReadOnlySettings = ReadOnlySettings()
    alerts: AlertsSettings = AlertsSettings()

    @property
    def connecting(self) -> Connecting:
        """How to reach the server."""
        return self.redis

    def environ(self) -> dict[str, str]:
        """These settings as environment variables, for a child process; secrets travel so and never in arguments."""
        given = {
            PREFIX + "__".join(path).upper(): "null" if value is None else str(value)
            for path, value in _leaves(msgspec.to_builtins(self))
            if value is not None or not _is_text(_fields()[path])
        }
        # It reads no file: that may say what these do not, or be in the middle of being written.
        return given | {"MUSTER_CONFIG": os.devnull}


#: What a profile sets where nobody else does.
PROFILES: Final[Mapping[str, Mapping[str, Any]]] = {
    "development": {},
    "staging": {"jobs.verify_every_s": 300.0},
    # Leases outlast the short pauses of a busy host; an outage of a failover is waited for.
    "production": {
        "log.format": "json",
        "jobs.verify_every_s": 60.0,
        "redis.retry_for_s": 30.0,
        "worker.lease_ttl_ms": 5000,
        "worker.beat_ms": 1000,
    },
}

#: Settings that a running `worker run`, `serve` or `dev` takes when they change (workers/reloading.py), as names and as
#: whole sections. All others are fixed at its start.
RELOADABLE_SECTIONS: Final = ("sessions", "health", "alerts", "read_only")
_RELOADABLE: Final = frozenset(
    {
        "worker.lease_ttl_ms",
        "worker.beat_ms",
        "worker.drain_s",
        "worker.batch_deadline_s",
        "worker.feed_keep_s",
        "worker.feed_pin_s",
        "worker.absence_grace_s",
        "jobs.verify_every_s",
        "jobs.verify_events",
        "jobs.auto_repair",
        "serve.token",
        "serve.look_every_s",
    }
)

#: Settings that are shown to nobody, and those that are addresses with a secret in them.
SECRETS: Final = frozenset(
    {
        *("redis.password", "redis.sentinel_password", "serve.token", "archive.secret"),
        *("alerts.webhook", "alerts.token", "migrate.from_password", "migrate.to_password"),
    }
)
ADDRESSES: Final = frozenset({"redis.url", "jobs.url", "migrate.from_url", "migrate.to_url"})
#: Flags that are called otherwise than the last word of their setting.
_FLAGS: Final[Mapping[str, str]] = {"migrate.from_url": "from", "migrate.to_url": "to"}
#: The one number that may be infinite, and the texts that may be empty.
_MAY_BE_INFINITE: Final = frozenset({"redis.retry_for_s"})
_MAY_BE_EMPTY: Final = frozenset(
    {"projections", "jobs.auto_repair", "log.debug", "read_only.on_critical", "alerts.rules"}
)


class Loaded(Struct, frozen=True):
    """What was read: the settings, unless something is wrong; where each value came from; and all that is wrong."""

    settings: Settings | None
    origins: dict[str, str]
    problems: list[Misconfigured]

    def valid(self) -> Settings:
        """The settings. Raises Misconfigured (SETTING_UNKNOWN, SETTING_INVALID)."""
        if self.settings is None:
            raise self.problems[0]
        return self.settings


class Reading(NamedTuple):
    """Where settings are to be read from."""

    environ: Mapping[str, str]
    flags: Mapping[str, Any] = {}
    toml: Path | None = None

    def loaded(self) -> Loaded:
        """Reads them. `flags` are paths like `redis.url` with the values given on the command line; None counts as not
        given.
        """
        return _Reader(self).read()

    def files(self) -> list[Path]:
        """The files that settings come from, whether they are there or not."""
        named = {
            name: text
            for name, text in self.environ.items()
            if name.startswith(PREFIX) and name not in NOT_SETTINGS and _names_a_file(name)
        }
        return [self.toml_path, *(Path(text) for _, text in sorted(named.items()))]

    @property
    def toml_path(self) -> Path:
        """Where `muster.toml` is looked for."""
        return self.toml or Path(self.environ.get("MUSTER_CONFIG", "muster.toml"))


def load(environ: Mapping[str, str], *, flags: Mapping[str, Any] | None = None, toml: Path | None = None) -> Settings:
    """The settings in force. Raises Misconfigured (SETTING_UNKNOWN, SETTING_INVALID)."""
    return Reading(environ, flags or {}, toml).loaded().valid()


def values(settings: Settings) -> dict[str, Any]:
    """Every setting by its name, secrets too."""
    return {".".join(path): value for path, value in _leaves(msgspec.to_builtins(settings))}


def shown(settings: Settings) -> dict[str, Any]:
    """Every setting by its name, as it may be shown."""
    return {name: masked(name, value) for name, value in values(settings).items()}


def masked(name: str, value: Any) -> Any:
    """A setting's value as it may be shown."""
    if value is None:
        return None
    if name in SECRETS:
        return "***"
    return without_password(value) if name in ADDRESSES else value


def allowed(name: str) -> str:
    """What the setting of this name may be, in words."""
    return _in_words(msgspec.json.schema(_fields()[tuple(name.split("."))]))


# -- reading ---------------------------------------------------------------------------------------------------------


class _Given(NamedTuple):
    """A value somebody gave. Text from outside TOML may stand for a number."""

    path: SettingPath
    value: Any
    origin: str
    is_text: bool = True


class _Reader:
    """Reads settings once, and collects whatever is wrong instead of ending at the first."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._problems: list[Misconfigured] = []
        self._origins: dict[SettingPath, str] = {}

    def read(self) -> Loaded:
        given = [*self._from_toml(), *self._from_environ(), *self._from_flags()]
        values: dict[SettingPath, Any] = {}
        taken = [one for one in given if self._is_known(one)]
        for one in [*self._from_profile(taken), *taken]:
            try:
                values[one.path] = _converted(one)
                self._origins[one.path] = one.origin
            except Misconfigured as error:
                self._problems.append(error)
        settings = None
        if not self._problems:
            settings = msgspec.convert(_tree(values), Settings)
            self._problems += [self._across(name, why) for name, why in _contradictions(settings)]
        origins = {".".join(path): self._origins.get(path, "default") for path in _fields()}
        return Loaded(settings if not self._problems else None, origins, self._problems)

    def _from_toml(self) -> Iterator[_Given]:
        path = self._reading.toml_path
        is_named = self._reading.toml is not None or "MUSTER_CONFIG" in self._reading.environ
        try:
            if not is_named and not path.exists():
                return
            tree = tomllib.loads(path.read_text("utf-8"))
        # ValueError: no UTF-8, no TOML, or a path that can be none; RecursionError: brackets without end.
        except (OSError, ValueError, RecursionError) as error:
            self._problems.append(
                Misconfigured("SETTING_INVALID", f"file {path} cannot be read: {error}", origin=f"file {path}")
            )
            return
        for leaf, value in _leaves(tree):
            yield _Given(leaf, value, f"file {path}", is_text=False)

    def _from_environ(self) -> Iterator[_Given]:
        by_path: dict[SettingPath, str] = {}
        for name, text in sorted(self._reading.environ.items()):
            if not name.startswith(PREFIX) or name in NOT_SETTINGS:
                continue
            path, value, origin = tuple(name[len(PREFIX) :].lower().split("__")), text, f"environment {name}"
            if _names_a_file(name):
                path = (*path[:-1], path[-1].removesuffix("_file"))
                try:
                    value, origin = Path(text).read_text("utf-8").strip(), f"{origin} ({text})"
                except (OSError, ValueError) as error:
                    self._refuse(path, origin, f"{name} names a file that cannot be read: {error}")
                    continue
            if path in by_path:
                self._refuse(path, origin, f"{by_path[path]} and {name} both give {'.'.join(path)}: keep one")
            by_path[path] = name
            yield _Given(path, value, origin)

    def _from_flags(self) -> Iterator[_Given]:
        for name, value in self._reading.flags.items():
            if value is None:
                continue
            flag = _FLAGS.get(name, name.rpartition(".")[2])
            path, origin = tuple(name.split(".")), f"flag --{flag}"
            if name in ADDRESSES and _has_password(value):
                url = PREFIX + name.upper().replace(".", "__")
                password = url.removesuffix("URL") + "PASSWORD"
                self._refuse(
                    path,
                    origin,
                    f"--{flag} holds a password, which everybody on this host can read: "
                    f"give it by {password}_FILE, {password} or {url}",
                )
                continue
            yield _Given(path, value, origin)

    def _from_profile(self, given: list[_Given]) -> Iterator[_Given]:
        """What the profile sets that was given last; one that is none sets nothing, and is refused like any value."""
        named = [one.value for one in given if one.path == ("profile",)]
        preset = PROFILES.get(named[-1]) if named and isinstance(named[-1], str) else None
        for name, value in (preset or {}).items():
            yield _Given(tuple(name.split(".")), value, f"profile {named[-1]}", is_text=False)

    def _is_known(self, one: _Given) -> bool:
        if one.path in _fields():
            return True
        name, known = ".".join(one.path), [".".join(path) for path in _fields()]
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; there are: {', '.join(sorted(known))}"
        self._problems.append(
            Misconfigured(
                "SETTING_UNKNOWN",
                f"{one.origin}: there is no setting {_printable(name)!r}{hint}",
                key=name,
                origin=one.origin,
            )
        )
        return False

    def _refuse(self, path: SettingPath, origin: str, why: str) -> None:
        self._problems.append(Misconfigured("SETTING_INVALID", why, key=".".join(path), origin=origin))

    def _across(self, name: str, why: str) -> Misconfigured:
        origin = self._origins.get(tuple(name.split(".")), "default")
        return Misconfigured("SETTING_INVALID", f"{name} ({origin}): {why}", key=name, origin=origin)


def _converted(one: _Given) -> Any:
    """The value as its setting has it. Raises Misconfigured (SETTING_INVALID)."""
    name = ".".join(one.path)
    try:
        value = msgspec.convert(one.value, _fields()[one.path], strict=not one.is_text)
        _check_value(name, value)
        return value
    except Misconfigured as error:
        why = error.cause
    except (msgspec.ValidationError, ValueError, RecursionError):
        told = "this value" if name in SECRETS | ADDRESSES else _printable(repr(one.value))
        why = f"{name} cannot be {told}; allowed: {allowed(name)}{_unit_hint(name)}"
    raise Misconfigured("SETTING_INVALID", f"{one.origin}: {why}", key=name, origin=one.origin)


def _check_value(name: str, value: Any) -> None:
    """What a type cannot say. Raises ValueError, or Misconfigured where more is to be said."""
    if isinstance(value, float) and math.isinf(value) and name not in _MAY_BE_INFINITE:  # NaN is within no bounds
        raise ValueError(value)
    if isinstance(value, str):
        if not value.strip() and name not in _MAY_BE_EMPTY:
            raise Misconfigured("SETTING_INVALID", f"{name} is empty; leave it out where it is not needed")
        if not value.isprintable():
            raise Misconfigured("SETTING_INVALID", f"{name} holds characters that cannot be printed")
        if name in _RULES:
            _RULES[name](value)


def _check_address(text: str, name: str) -> None:
    try:
        parse_address(text)
    except Misconfigured as error:
        raise Misconfigured("SETTING_INVALID", error.cause.replace("redis.url", name, 1)) from None


def _check_projections(text: str) -> None:
    for spec in filter(None, (part.strip() for part in text.split(","))):
        module, colon, kind = spec.partition(":")
        if not (colon and kind.isidentifier() and all(part.isidentifier() for part in module.split("."))):
            raise Misconfigured("SETTING_INVALID", f"projections names {spec!r}, which is no package.module:Class")


def _repaired_kinds(text: str) -> list[str]:
    kinds = [kind.strip() for kind in text.split(",") if kind.strip()]
    if unknown := [kind for kind in kinds if kind not in REPAIRABLE]:
        raise Misconfigured(
            "SETTING_INVALID", f"jobs.auto_repair names {unknown[0]!r}; there are: {', '.join(REPAIRABLE)}"
        )
    return kinds


def _check_endpoint(text: str) -> None:
    wrong = Misconfigured("SETTING_INVALID", "telemetry.otlp_endpoint is no address such as http://collector:4318")
    try:
        parts = urlsplit(text)
        has_port = parts.port != 0
    except ValueError:
        raise wrong from None  # its text would show the address, which may hold a password
    if parts.scheme not in ("http", "https") or not (parts.hostname and has_port) or parts.query or parts.fragment:
        raise wrong
    if parts.username is not None or parts.password is not None:
        why = "telemetry.otlp_endpoint holds a password: give it by OTEL_EXPORTER_OTLP_HEADERS"
        raise Misconfigured("SETTING_INVALID", why)


def _closing_components(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in CLOSING]:
        raise Misconfigured(
            "SETTING_INVALID", f"read_only.on_critical names {unknown[0]!r}; there are: {', '.join(CLOSING)}"
        )
    return names


def _check_rules(text: str) -> None:
    from workers.alerting.rules import parsed  # only where somebody gives rules: it needs much else

    parsed(text)


def _check_webhook(text: str) -> None:
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise Misconfigured("SETTING_INVALID", "alerts.webhook is no URL that begins with http:// or https://")


#: What a text must be, beside not empty; each raises Misconfigured.
_RULES: Final[Mapping[str, Callable[[str], object]]] = {
    "redis.url": lambda text: _check_address(text, "redis.url"),
    "jobs.url": lambda text: _check_address(text, "jobs.url"),
    "migrate.from_url": lambda text: _check_address(text, "migrate.from_url"),
    "migrate.to_url": lambda text: _check_address(text, "migrate.to_url"),
    "environment": lambda text: check_keyspace(text, "main"),
    "namespace": lambda text: check_keyspace("dev", text),
    "durability": parse_durability,
    "jobs.auto_repair": _repaired_kinds,
    "read_only.on_critical": _closing_components,
    "alerts.rules": _check_rules,
    "alerts.webhook": _check_webhook,
    "projections": _check_projections,
    "log.debug": parse_topics,
    "telemetry.otlp_endpoint": _check_endpoint,
}


def _contradictions(settings: Settings) -> Iterator[tuple[str, str]]:
    """Settings that cannot hold together: the name of one, and why."""
    if settings.jobs.url is not None:
        own, jobs = parse_address(settings.redis.url), parse_address(settings.jobs.url)
        if (jobs.hosts, jobs.path, jobs.service, jobs.db) == (own.hosts, own.path, own.service, own.db):
            yield "jobs.url", "jobs.url names the store's own database: jobs need another one"
    worker, redis, health = settings.worker, settings.redis, settings.health
    if worker.beat_ms >= worker.lease_ttl_ms:
        why = f"{worker.beat_ms} ms, but leases last {worker.lease_ttl_ms} ms (worker.lease_ttl_ms): every one runs out"
        yield "worker.beat_ms", f"{why}; a third of it at most is safe"
    if redis.timeout_s > worker.batch_deadline_s:
        why = f"{redis.timeout_s:g} s, but a batch that waits for it may take {worker.batch_deadline_s:g} s"
        yield "redis.timeout_s", f"{why} (worker.batch_deadline_s): workers would end themselves"
    marks = settings.memory
    if not marks.early <= marks.slow <= marks.refuse:
        why = f"{marks.early:g}, {marks.slow:g} and {marks.refuse:g} (memory.early, .slow, .refuse) do not grow"
        yield "memory.slow", f"{why}: what comes first must not be above what comes later"
    if settings.archive.key_id is not None and settings.archive.secret is None:
        yield "archive.key_id", "archive.key_id names a key whose secret is missing (archive.secret)"
    if settings.read_only.lapse_s <= settings.serve.look_every_s:
        why = f"{settings.read_only.lapse_s:g} s, but it is looked every {settings.serve.look_every_s:g} s"
        yield "read_only.lapse_s", f"{why} (serve.look_every_s): the store would open between two looks"
    for name in ("lag_{}_s", "memory_{}", "disk_{}", "spool_{}", "latency_{}_s", "feed_{}"):
        low, high = (name.format(level) for level in ("warning", "critical"))
        if getattr(health, low) > getattr(health, high):
            yield f"health.{low}", f"{getattr(health, low):g} is above health.{high}, {getattr(health, high):g}"


# -- names and types -------------------------------------------------------------------------------------------------


@cache
def _fields() -> Mapping[SettingPath, Any]:
    """The type of every setting."""
    return dict(_typed_leaves(Settings))


def _typed_leaves(struct: type[Struct], prefix: SettingPath = ()) -> Iterator[tuple[SettingPath, Any]]:
    for field in msgspec.structs.fields(struct):
        path = (*prefix, field.name)
        if isinstance(field.type, type) and issubclass(field.type, Struct):
            yield from _typed_leaves(field.type, path)
        else:
            yield path, field.type


def _leaves(tree: Mapping[str, Any], prefix: SettingPath = ()) -> Iterator[tuple[SettingPath, Any]]:
    """Every value with its path. A section without values is one too, unless there is a section of that name."""
    for name, value in tree.items():
        path = (*prefix, name)
        is_section = any(known[: len(path)] == path and known != path for known in _fields())
        if isinstance(value, Mapping) and (value or is_section):
            yield from _leaves(value, path)
        else:
            yield path, value


def _tree(values: Mapping[SettingPath, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        target = tree
        for part in path[:-1]:
            target = target.setdefault(part, {})
        target[path[-1]] = value
    return tree


def _names_a_file(name: str) -> bool:
    """Whether a variable names a file with the value; redis.tls_ca_file is a file's name itself."""
    path = tuple(name[len(PREFIX) :].lower().split("__"))
    return path[-1].endswith("_file") and path not in _fields()


def _is_text(kind: Any) -> bool:
    told = msgspec.json.schema(kind)
    return any(one.get("type") == "string" or "enum" in one for one in told.get("anyOf", [told]))


def _in_words(told: Mapping[str, Any]) -> str:
    """A JSON Schema of one value, for people."""
    if "anyOf" in told:
        return " or ".join(_in_words(one) for one in told["anyOf"] if one.get("type") != "null")
    if "enum" in told:
        return f"one of {', '.join(map(str, told['enum']))}"
    nouns = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}
    bounds = {"exclusiveMinimum": "above", "minimum": "from", "maximum": "up to", "minLength": "with a length from"}
    limits = "".join(f" {word} {told[name]}" for name, word in bounds.items() if name in told)
    return f"{nouns[told['type']]}{limits}"


def _unit_hint(name: str) -> str:
    """The unit that a name states, since seconds and milliseconds are what is mixed up."""
    units = {"_ms": "milliseconds", "_s": "seconds"}
    return next((f", in {unit}" for suffix, unit in units.items() if name.endswith(suffix)), "")


def _has_password(url: Any) -> bool:
    try:
        return parse_address(url).password is not None
    except Misconfigured:
        return False  # refused for what it is, later


def _printable(text: str) -> str:
    """Foreign text as an error may repeat it: in one line, not for ever."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= 100 else f"{shown[:100]}…"


#: Every setting that a running process takes when it changes.
RELOADABLE: Final = _RELOADABLE | {".".join(path) for path in _fields() if path[0] in RELOADABLE_SECTIONS}
