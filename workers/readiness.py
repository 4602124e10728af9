"""Judges the live server by what it says of itself, and by what it lets somebody do who has no password.

Everything is asked once, within `health.timeout_s` a step, on connections of its own. What this user may not see is
said to be unseen, and never taken for right.
"""

from __future__ import annotations

import resource
import shlex
import time
from collections.abc import Iterator
from typing import Any, Final

import redis
from msgspec import Struct, structs

from domain.errors import REGISTRY, Misconfigured, MusterError
from domain.log import connect
from domain.log.address import parse_address
from domain.log.connection import Connecting, connection_error, raised, send
from domain.log.durability import parse_durability
from domain.log.keys import Keyspace
from domain.log.protocol import APPEND_FUNCTION, Command
from domain.log.read_only import Closed, parsed
from domain.log.store import check_version, library_source, open_commands, parse_info, parse_open
from workers.advice import Advice, Level, for_profile
from workers.settings import Settings
from workers.validation import is_on_this_host, judge

#: The library's name, in the first line of domain/log/functions.lua.
LIBRARY: Final = "muster_1"
#: How far clocks may be apart at most before times of events mean nothing, in seconds.
CLOCKS_APART_S: Final = 60.0
#: How many files a process of ours opens at most, about: its connections, and as many again.
FILES: Final = 1024
_CONFIG: Final = ("appendfsync", "min-replicas-to-write", "stream-node-max-bytes", "port", "maxmemory-policy")


class Seen(Struct, frozen=True):
    """What a server said. `config` and `library` are None where this user may not ask."""

    info: dict[str, str]
    config: dict[str, str] | None
    library: str | None
    #: The answer to a call of the functions without any keys, and to opening the store; None: as it should be.
    functions_error: MusterError | None
    store_error: MusterError | None
    #: How far the server's clock is ahead of ours, in seconds, and how long a PING took.
    ahead_s: float
    latency_s: float
    is_guarded: bool
    #: How the store is closed for appends, as far as this user sees.
    closed: Closed | None = None

    def number(self, name: str) -> int:
        """A number of INFO; 0 where the server does not say."""
        text = self.info.get(name, "0")
        return int(text) if text.lstrip("-").isdigit() else 0


def ready(settings: Settings) -> list[Advice]:
    """All advice on settings and server, the worst first. Raises the typed error of a server that does not answer."""
    live = for_profile(judged(settings, see(settings)), settings.profile)
    return sorted([*live, *judge(settings)], key=lambda one: ("error", "warning", "recommendation").index(one.level))


def refuse_unless_ready(settings: Settings) -> None:
    """In production nothing is started on a server that may lose events. Raises Misconfigured (NOT_READY)."""
    if settings.profile != "production":
        return
    errors = [one for one in ready(settings) if one.level == "error"]
    if errors:
        told = "; ".join(f"{one.key}: {one.why} ({one.code}: {one.remedy})" for one in errors)
        raise Misconfigured("NOT_READY", f"not fit for production: {told}")


def quick(settings: Settings) -> Connecting:
    """How to reach the server for somebody who rather knows that it is silent than waits."""
    timeout_s = min(settings.redis.timeout_s, settings.health.timeout_s)
    # A plain Connecting: what a subclass adds is not asked for.
    given = {name: getattr(settings.redis, name) for name in Connecting.__struct_fields__}
    return Connecting(**(given | {"timeout_s": timeout_s, "retry_for_s": 0.0}))


def see(settings: Settings) -> Seen:
    """Asks the server. Raises the typed error if it does not answer or turns this user away."""
    connecting = quick(settings)
    client = connect(connecting)
    try:
        _ask(client, [["PING"]], connecting)  # connects
        began = time.monotonic()
        (pong,) = _ask(client, [["PING"]], connecting)
        latency_s = time.monotonic() - began
        raised(pong)
        asked_at = time.time()
        replies = _ask(
            client,
            [
                ["INFO"],
                ["CONFIG", "GET", *_CONFIG],
                ["FUNCTION", "LIST", "LIBRARYNAME", LIBRARY, "WITHCODE"],
                ["FCALL", APPEND_FUNCTION, 0],
                ["TIME"],
                # All partitions are closed together, and the first is there in every store.
                ["HGET", Keyspace(settings.environment, settings.namespace, 1).partitions[0].meta, "read_only"],
                *open_commands(settings.environment, settings.namespace),
            ],
            connecting,
        )
        info, config, listed, called, clock, closed, *opened = replies
        seconds, micros = raised(clock)
        return Seen(
            info=parse_info(raised(info)),
            config=None if isinstance(config, Exception) else _texts(config),
            library=None if isinstance(listed, Exception) else _code(listed),
            functions_error=_unless_loaded(called),
            store_error=_unless_opened(opened, settings),
            ahead_s=int(seconds) + int(micros) / 1e6 - asked_at,
            latency_s=latency_s,
            is_guarded=_is_guarded(connecting),
            closed=None if isinstance(closed, Exception) else parsed(closed, int(seconds) * 1000 + int(micros) // 1000),
        )
    finally:
        client.close()


def judged(settings: Settings, seen: Seen) -> Iterator[Advice]:
    """All that is to be said of a server in production."""
    yield from _what_keeps_it_from_working(seen)
    yield from _persistence(settings, seen)
    yield from _memory(settings, seen)
    yield from _replicas(settings, seen)
    yield from _access(settings, seen)
    yield from _clocks_and_files(settings, seen)
    if seen.config is None:
        yield _advice("warning", "SERVER_UNSEEN", "server:config", "this user may not read the server's configuration")


def _what_keeps_it_from_working(seen: Seen) -> Iterator[Advice]:
    try:
        check_version(dict(seen.info))
    except Misconfigured as old:
        yield _advice("error", old.code, "server:version", old.cause, always=True)
    if seen.info.get("role") == "slave":
        yield _advice("error", "SERVER_READ_ONLY", "server:role", "this server is a replica", always=True)
    if seen.functions_error is not None:
        error = seen.functions_error
        command = "muster init" if error.code == "FUNCTIONS_MISSING" else ""
        yield _advice("error", error.code, "server:functions", error.cause, command=command, always=True)
    elif seen.library is not None and seen.library.strip() != library_source().strip():
        why = "the server's functions are not those of this release"
        yield _advice("warning", "FUNCTIONS_OLD", "server:functions", why, command="muster init")
    if seen.store_error is not None:
        # A function that is missing as well is loaded by the same command.
        error = seen.store_error
        command = "muster init" if error.code == "STORE_MISSING" else ""
        yield _advice("error", error.code, "namespace", error.cause, command=command, always=True)
    elif seen.closed is not None:
        # No error: workers may start, and have what was appended before to work on.
        why = f"the store takes no appends, by {seen.closed.who}: {seen.closed.why}"
        yield _advice("warning", "READ_ONLY", "store", why, command="muster read-only off", always=True)


def _persistence(settings: Settings, seen: Seen) -> Iterator[Advice]:
    if seen.info.get("aof_enabled") == "0":
        why = "appendonly is off: a restart brings back what the last snapshot held, or nothing"
        yield _advice(
            "error", "SERVER_FORGETS", "server:appendonly", why, command=server_command(settings, "appendonly yes")
        )
    elif seen.config is not None:
        fsync = seen.config.get("appendfsync", "")
        if fsync == "no" or (settings.durability == "local" and fsync != "always"):
            wanted = "always" if settings.durability == "local" else "everysec"
            yield _advice(
                "error",
                "SERVER_SYNCS_LATE",
                "server:appendfsync",
                f"it is {fsync}: what was appended waits in memory, whatever durability {settings.durability} asks",
                command=server_command(settings, f"appendfsync {wanted}"),
            )
    for name, what in (("aof_last_write_status", "write to"), ("aof_last_bgrewrite_status", "rewrite of")):
        if seen.info.get(name, "ok") != "ok":
            why = f"the last {what} the append-only file failed; the server's log says why"
            yield _advice("error", "SERVER_CANNOT_PERSIST", "server:appendonly", why, always=True)
    if seen.info.get("rdb_last_bgsave_status", "ok") != "ok":
        why = "the last snapshot failed; the server's log says why"
        yield _advice("error", "SERVER_CANNOT_PERSIST", "server:save", why, always=True)


def _memory(settings: Settings, seen: Seen) -> Iterator[Advice]:
    policy, limit = seen.info.get("maxmemory_policy", "noeviction"), seen.number("maxmemory")
    if policy != "noeviction":
        why = f"maxmemory-policy is {policy}: when memory is full the server deletes events instead of refusing them"
        command = server_command(settings, "maxmemory-policy noeviction")
        yield _advice("error", "SERVER_EVICTS", "server:maxmemory-policy", why, command=command, always=limit > 0)
    if not limit:
        why = "there is no maxmemory: when the host's memory is full the kernel kills the server"
        yield _advice("warning", "SERVER_UNBOUNDED", "server:maxmemory", why)
    else:
        used = seen.number("used_memory") / limit
        why = f"{used:.0%} of maxmemory is used"
        raised = server_command(settings, f"maxmemory {2 * max(limit, seen.number('used_memory'))}")
        if used >= 1:
            why += ": appends are refused"
            yield _advice("error", "SERVER_OUT_OF_MEMORY", "server:maxmemory", why, command=raised, always=True)
        elif used >= settings.health.memory_critical:
            yield _advice("error", "SERVER_NEARLY_FULL", "server:maxmemory", why, command=raised, always=True)
        elif used >= settings.health.memory_warning:
            yield _advice("warning", "SERVER_NEARLY_FULL", "server:maxmemory", why, command=raised)
    if seen.config is not None and int(seen.config.get("stream-node-max-bytes", "1024")) not in range(1, 1025):
        why = f"stream-node-max-bytes is {seen.config['stream-node-max-bytes']}: each short session takes as much"
        command = server_command(settings, "stream-node-max-bytes 1024")
        yield _advice("recommendation", "SERVER_WASTES", "server:stream-node-max-bytes", why, command=command)


def _replicas(settings: Settings, seen: Seen) -> Iterator[Advice]:
    connected, wanted = seen.number("connected_slaves"), parse_durability(settings.durability).replicas
    if connected < wanted:
        why = f"durability {settings.durability} waits for {wanted} replicas, {connected} are connected"
        yield _advice("error", "SERVER_LACKS_REPLICAS", "durability", why)
    elif not connected:
        why = "no replica is connected: the server's disk is the only copy"
        yield _advice("warning", "SERVER_UNREPLICATED", "server:replicas", why)
    elif seen.config is not None and seen.config.get("min-replicas-to-write", "0") == "0":
        why = "min-replicas-to-write is 0: a primary that is cut off goes on taking what a failover then drops"
        command = server_command(settings, "min-replicas-to-write 1")
        yield _advice("warning", "SERVER_UNREPLICATED", "server:min-replicas-to-write", why, command=command)


def _access(settings: Settings, seen: Seen) -> Iterator[Advice]:
    address = parse_address(settings.redis.url)
    if not seen.is_guarded:
        why = "it answers somebody without a password"
        yield _advice("warning" if is_on_this_host(address) else "error", "SERVER_UNGUARDED", "server:users", why)
    if address.tls and seen.config is not None and seen.config.get("port", "0") != "0":
        why = f"it also listens without TLS, on port {seen.config['port']}"
        yield _advice("warning", "SETTING_RISKY", "server:port", why)


def _clocks_and_files(settings: Settings, seen: Seen) -> Iterator[Advice]:
    if abs(seen.ahead_s) > settings.health.clock_skew_s + seen.latency_s:
        why = f"the server's clock is {abs(seen.ahead_s):.1f} s {'ahead of' if seen.ahead_s > 0 else 'behind'} ours"
        level: Level = "error" if abs(seen.ahead_s) > CLOCKS_APART_S else "warning"
        yield _advice(level, "CLOCKS_DIFFER", "server:clock", why)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(FILES, 2 * settings.redis.max_connections)
    if soft != resource.RLIM_INFINITY and soft < needed:
        why = f"this process may open {soft} files, and should {needed}"
        yield _advice("warning", "FILES_TOO_FEW", "process:files", why)
    clients, most = seen.number("connected_clients"), seen.number("maxclients")
    if most and clients > 0.8 * most:
        yield _advice("warning", "SERVER_FULL", "server:maxclients", f"{clients} of {most} clients are connected")
    if seen.latency_s > settings.health.latency_warning_s:
        why = f"a PING took {seen.latency_s:.3f} s"
        # Whoever works with it waits as long, in any profile.
        slow: Level = "error" if seen.latency_s >= settings.health.latency_critical_s else "warning"
        yield _advice(slow, "SERVER_SLOW", "server:latency", why, always=True)


def _advice(level: Level, code: str, key: str, why: str, *, command: str = "", always: bool = False) -> Advice:
    return Advice(level, code, key, why, REGISTRY[code].remedy, command=command, always=always)


def server_command(settings: Settings, change: str) -> str:
    """What sets something on the server at once; nothing where nobody knows which server it is by now. Its file must be
    changed too: the remedy says so. No secret is in it: who needs a password is asked for it.
    """
    address = parse_address(settings.redis.url)
    if address.service:
        return ""
    if address.path:
        where = f"-s {shlex.quote(address.path)}"
    else:
        scheme, _, rest = settings.redis.url.partition("://")
        where = "-u " + shlex.quote(f"{scheme}://{rest.rpartition('@')[2]}")
    if address.tls and settings.redis.tls_ca_file:
        where += f" --cacert {shlex.quote(settings.redis.tls_ca_file)}"
    if user := settings.redis.username or address.username:
        where += f" --user {shlex.quote(user)}"
    if settings.redis.password or address.password:
        where += " --askpass"
    return f"redis-cli {where} CONFIG SET {change}"


# -- asking ----------------------------------------------------------------------------------------------------------


def _ask(client: redis.Redis, commands: list[Command], connecting: Connecting) -> list[Any]:
    return send(client, commands, connecting, wrote=False, once=True)


def _texts(flat: list[bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _code(listed: list[list[Any]]) -> str:
    """The source of the one library that FUNCTION LIST names; nothing if there is none."""
    for library in listed:
        fields = dict(zip(library[::2], library[1::2], strict=True))
        return bytes(fields[b"library_code"]).decode()
    return ""


def _unless_loaded(reply: Any) -> MusterError | None:
    """What a call without keys came to, unless it is the function's own word that keys are missing."""
    error = connection_error(reply) if isinstance(reply, Exception) else None
    return error if error is not None and error.code in ("FUNCTIONS_MISSING", "ACCESS_DENIED") else None


def _unless_opened(replies: list[Any], settings: Settings) -> MusterError | None:
    try:
        parse_open([raised(reply) for reply in replies], settings.environment, settings.namespace, settings.partitions)
    except MusterError as error:
        return None if error.code == "SERVER_TOO_OLD" else error  # which is said anyway
    return None


def _is_guarded(connecting: Connecting) -> bool:
    """Whether somebody without a name is turned away: asked, not read."""
    scheme, _, rest = connecting.url.partition("://")
    stranger = structs.replace(connecting, url=f"{scheme}://{rest.rpartition('@')[2]}", username=None, password=None)
    client = connect(stranger)
    try:
        (reply,) = _ask(client, [["PING"]], stranger)
    except MusterError:
        return True
    finally:
        client.close()
    return isinstance(reply, Exception)
