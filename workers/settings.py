"""Settings: flag > environment (`MUSTER_…`, `__` nests, `_FILE` reads a file) > `muster.toml` > default.

The only module that reads the environment. An unknown name is an error that suggests the nearest known one, because
a setting that is silently ignored is found out at night.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from domain.errors import Misconfigured
from domain.log import Connecting
from domain.log.address import parse_address, without_password
from domain.log.durability import parse_durability
from domain.log.spooling.spool import DEFAULT_MAX_BYTES

PREFIX: Final = "MUSTER_"
#: Names under the prefix that are no settings: they belong to the scripts and to the tests.
NOT_SETTINGS: Final = frozenset(
    {"MUSTER_PYTHON", "MUSTER_VENV", "MUSTER_GATES", "MUSTER_CONFIG", "MUSTER_CHAOS", "MUSTER_CHAOS_SEED"}
)

#: Kinds of findings that may be repaired without being asked.
REPAIRABLE: Final = ("view", "checkpoint", "agent", "index", "head", "cursor", "registry")

Positive = Annotated[int, Meta(ge=1)]


class RedisSettings(Connecting, frozen=True, forbid_unknown_fields=True):
    """The server that holds the store: everything that `Connecting` has, under its names there."""


class WorkerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Worker processes."""

    #: Processes that `worker run` and `dev` keep alive.
    processes: Positive = 2
    #: Batches one process works on at a time.
    threads: Positive = 2
    #: How long a partition stays with a worker that gives no sign of life, in ms.
    lease_ttl_ms: Annotated[int, Meta(ge=500)] = 2000
    #: How often a worker gives a sign of life, renews its leases and shares partitions out, in ms.
    beat_ms: Annotated[int, Meta(ge=50)] = 400
    #: How long a stopping worker may finish what is in flight, in seconds.
    drain_s: Annotated[float, Meta(gt=0)] = 20.0
    #: How long a batch may go on without finishing a session before the process ends itself, in seconds.
    batch_deadline_s: Annotated[float, Meta(gt=0)] = 120.0
    #: How long an entry stays in the feed after it was written, at least, in seconds; applied entries only are trimmed.
    feed_keep_s: Annotated[float, Meta(ge=0)] = 600.0
    #: How long no agent is reported gone after this process lost sight of all: it began, the server was away, or its
    #: clock jumped; in seconds.
    absence_grace_s: Annotated[float, Meta(ge=0)] = 10.0
    #: How long an own projection that is behind keeps entries in the feed, in seconds; past it, it reads the log.
    feed_pin_s: Annotated[float, Meta(ge=0)] = 3600.0


class SessionSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How sessions end that nobody ends."""

    #: Whether workers have sessions expire that idle.
    expire: bool = True
    #: How long a session may idle that says nothing else (`extended`), in seconds.
    idle_s: Annotated[int, Meta(ge=60, le=604_800)] = 1800
    #: How long it is warned before it expires (`muster.expiring`), in seconds.
    grace_s: Annotated[int, Meta(ge=60, le=3600)] = 180


class JobSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Jobs on queues, run by the worker processes."""

    #: The database that holds the queues, never the store's own, with its own user and password; None: no jobs.
    #: TLS files and patience are those of `redis`.
    url: str | None = None
    #: Jobs one process works on at a time.
    threads: Positive = 1
    #: How often a round of scrubbing begins, in seconds; None: only when asked.
    verify_every_s: Annotated[float, Meta(ge=1)] | None = None
    #: How many events such a round reads, about.
    verify_events: Positive = 200_000
    #: Kinds of findings that a round repairs without being asked, separated by commas: view, checkpoint, agent, index,
    #: head, cursor, registry. None of the log.
    auto_repair: str = ""

    @property
    def repaired_kinds(self) -> list[str]:
        """The kinds that `auto_repair` names. Raises Misconfigured (SETTING_INVALID)."""
        kinds = [kind.strip() for kind in self.auto_repair.split(",") if kind.strip()]
        if unknown := [kind for kind in kinds if kind not in REPAIRABLE]:
            raise Misconfigured(
                "SETTING_INVALID", f"jobs.auto_repair names {unknown[0]!r}; there are: {', '.join(REPAIRABLE)}"
            )
        return kinds

    def __repr__(self) -> str:
        url = None if self.url is None else without_password(self.url)
        rest = f"verify_every_s={self.verify_every_s}, verify_events={self.verify_events}"
        return f"JobSettings({url!r}, threads={self.threads}, {rest}, auto_repair={self.auto_repair!r})"


class SpoolSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The outage spool of producers on this host: `muster event append`, `muster spool`."""

    #: The file, on a local disk; None: none.
    path: str | None = None
    #: How many bytes of commits it takes.
    max_bytes: Positive = DEFAULT_MAX_BYTES


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """All settings. `partitions` None means: as many as the store has (32 for a new one)."""

    environment: str = "dev"
    namespace: str = "main"
    partitions: Positive | None = None
    #: What a commit must have reached when its receipt is given: memory, local, replicated(1), …
    durability: str = "memory"
    #: Projections of the user's own, as package.module:Class, separated by commas; entry points are found without it.
    projections: str = ""
    redis: RedisSettings = RedisSettings()
    worker: WorkerSettings = WorkerSettings()
    sessions: SessionSettings = SessionSettings()
    jobs: JobSettings = JobSettings()
    spool: SpoolSettings = SpoolSettings()

    @property
    def connecting(self) -> Connecting:
        """How to reach the server."""
        return self.redis

    def environ(self) -> dict[str, str]:
        """These settings as environment variables, for a child process; secrets travel so and never in arguments."""
        return {
            PREFIX + "__".join(path).upper(): str(value)
            for path, value in _leaves(msgspec.to_builtins(self))
            if value is not None
        }


def load(environ: Mapping[str, str], *, flags: Mapping[str, Any] | None = None, toml: Path | None = None) -> Settings:
    """The settings in force. Raises Misconfigured (SETTING_UNKNOWN, SETTING_INVALID).

    `flags` are paths like `redis.url` with the values given on the command line; None values count as not given.
    """
    merged: dict[str, Any] = {}
    for path, value in [*_from_toml(environ, toml), *_from_environ(environ), *_from_flags(flags or {})]:
        _check_known(path)
        target = merged
        for part in path[:-1]:
            target = target.setdefault(part, {})
        target[path[-1]] = value
    try:
        settings = msgspec.convert(merged, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise Misconfigured("SETTING_INVALID", f"a setting is invalid: {error}") from None
    own = parse_address(settings.redis.url)
    if settings.jobs.url is not None:
        jobs = parse_address(settings.jobs.url)
        if (jobs.hosts, jobs.path, jobs.service, jobs.db) == (own.hosts, own.path, own.service, own.db):
            raise Misconfigured("SETTING_INVALID", "jobs.url names the store's own database: jobs need another one")
    parse_durability(settings.durability)
    settings.jobs.repaired_kinds  # noqa: B018 - raises for a kind there is not
    return settings


def _from_toml(environ: Mapping[str, str], toml: Path | None) -> Iterator[tuple[tuple[str, ...], Any]]:
    named = toml or (Path(environ["MUSTER_CONFIG"]) if "MUSTER_CONFIG" in environ else None)
    path = named or Path("muster.toml")
    if named is None and not path.exists():
        return
    try:
        yield from _leaves(tomllib.loads(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Misconfigured("SETTING_INVALID", f"{path} cannot be read: {error}") from None


def _from_environ(environ: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in sorted(environ.items()):
        if not name.startswith(PREFIX) or name in NOT_SETTINGS:
            continue
        path = tuple(name[len(PREFIX) :].lower().split("__"))
        if path[-1].endswith("_file") and ".".join(path) not in _known():  # redis.tls_ca_file is a file's name itself
            path = (*path[:-1], path[-1].removesuffix("_file"))
            try:
                value = Path(value).read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise Misconfigured("SETTING_INVALID", f"{name} names a file that cannot be read: {error}") from None
        yield path, value


def _from_flags(flags: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in flags.items():
        if value is not None:
            if name == "redis.url" and parse_address(value).password is not None:
                raise Misconfigured(
                    "SETTING_INVALID",
                    "--url holds a password, which everybody on this host can read: "
                    "give it by MUSTER_REDIS__PASSWORD_FILE, MUSTER_REDIS__PASSWORD or MUSTER_REDIS__URL",
                )
            yield tuple(name.split(".")), value


def _leaves(tree: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _known() -> set[str]:
    """The names of all settings, such as redis.url."""
    return {".".join(leaf) for leaf, _ in _leaves(msgspec.to_builtins(Settings()))}


def _check_known(path: tuple[str, ...]) -> None:
    known = _known()
    name = ".".join(path)
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; there are: {', '.join(sorted(known))}"
        raise Misconfigured("SETTING_UNKNOWN", f"there is no setting {name!r}{hint}")
