"""The command line `muster`: data on stdout, progress and errors on stderr, an exit code that says what the caller
can do.

    0 ok · 1 a check found a problem · 2 usage · 3 configuration · 4 not found · 5 Redis unreachable or refused · 6
    conflict · 7 partial · 8 integrity · 9 refused · 10 deadline · 70 bug

Each group of commands is a module; only the one that is called is imported, so that a command starts quickly.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Final, NoReturn

#: Group → what it is for. The module of a group is `workers.cli.<group>`, with _ for -.
GROUPS: Final = {
    "init": "make a store on a server, or load the functions into it again",
    "dev": "run an embedded server and workers in the foreground",
    "demo": "run the main job once, end to end, and say what it proved",
    "event": "append, import, show and follow events",
    "session": "list, find and show sessions, now or then; compare and fork them",
    "replay": "play sessions once more, in their order, at a speed, with the state after each event",
    "agent": "list and show agents",
    "entity": "list and show what was worked on",
    "stats": "figures over all sessions, now and over time",
    "worker": "run worker processes, list those that live",
    "projection": "lag, verification and rebuild of what is built from the log",
    "recover": "plan and apply repairs of what verification found",
    "job": "ask for long work on all partitions, watch it, cancel it",
    "parked": "list, show and retry sessions whose log breaks a law, which wait at the last good commit",
    "spool": "what waits in an outage spool on this host: list, send, take out",
    "subscription": "list durable subscriptions, how far each is behind; forget one",
    "epoch": "what the store lost by the word of witnesses, and accepting it",
    "migrate": "move sessions to another server while they live: plan, copy, verify, cutover, rollback, sync, status",
    "failover": "have a standby take appends, and close the old side, now or when it is back",
    "backup": "the truth of a store in files: create, verify, restore",
    "archive": "what left the server's memory: archive now, verify what is kept",
    "doctor": "what is wrong, in one line; why, and the command that mends it",
    "diagnostics": "one archive for whoever helps: versions, settings, health, server, lag, findings; no secrets",
    "health": "how every part is, why, since when, and what to do",
    "read-only": "have the store take no appends, and take them again",
    "stop": "stop all workers of the store on every host, safely; take that back",
    "top": "server, fleet, lag, hot sessions, memory by kind of key, slow commands; live",
    "serve": "health and metrics over HTTP: /livez /readyz /health /metrics",
    "config": "show, check and describe the settings; whether the server is fit for them",
    "explain": "say what an error code, or an error's text, means and what to do",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    group = arguments[0] if arguments else ""
    if group not in GROUPS:
        return _overview(group)

    from redis import RedisError

    from domain.errors import MusterError
    from domain.log.connection import connection_error
    from workers.settings import Reading

    parser = _Parser(prog=f"muster {group}", description=GROUPS[group])
    import_module(f"workers.cli.{group.replace('-', '_')}").configure(parser)
    options = parser.parse_args(arguments[1:])
    try:
        flags = {name: getattr(options, option, None) for name, option in _FLAGS.items()}
        reading = Reading(os.environ, flags)
        code: int = options.run(options, reading if group in _READ_THEMSELVES else reading.loaded().valid())
        sys.stdout.flush()
        return code
    except MusterError as error:
        print(f"error: {error.code}: {error.cause}\nremedy: {error.remedy}", file=sys.stderr)
        return error.exit_code
    except RedisError as error:
        failed = connection_error(error)
        print(f"error: {failed.code}: {failed.cause}\nremedy: {failed.remedy}", file=sys.stderr)
        return failed.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever reads our output has read enough; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        traceback.print_exc()
        print("error: this is a bug in muster; the lines above say where", file=sys.stderr)
        return 70


#: Settings that are options of some commands, and where those leave them.
_FLAGS: Final = {
    "profile": "profile",
    "redis.url": "url",
    "environment": "environment",
    "namespace": "namespace",
    "partitions": "partitions",
    "migrate.from_url": "from_url",
    "migrate.to_url": "to_url",
    "serve.host": "serve_host",
    "serve.port": "serve_port",
}
#: Groups that work whatever is wrong with the settings, or read them again: they are given what to read them from.
_READ_THEMSELVES: Final = frozenset({"config", "dev", "diagnostics", "doctor", "explain", "serve", "worker"})


class _Parser(argparse.ArgumentParser):
    """A parser whose errors look like all others. Its subcommands are parsed by the same class."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"error: USAGE: {message}\nremedy: see `{self.prog} --help`\n")


def _overview(asked: str) -> int:
    is_help = asked in ("-h", "--help", "help")
    stream = sys.stdout if is_help else sys.stderr
    print("usage: muster COMMAND …\n", file=stream)
    for name, purpose in GROUPS.items():
        print(f"  {name:<14}{purpose}", file=stream)
    print("\n`muster COMMAND --help` says more.", file=stream)
    if asked and not is_help:
        print(f"error: USAGE: there is no command {asked!r}\nremedy: see `muster --help`", file=stream)
    return 0 if is_help else 2
