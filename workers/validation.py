"""Judges settings that are valid, by profile. Asks nobody: what only the server knows is in workers/readiness.py."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from domain.log.address import Address, parse_address
from workers.advice import Advice, Level, for_profile
from workers.settings import Settings

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def is_on_this_host(address: Address) -> bool:
    """Whether nothing leaves this host. A Sentinel on it may lead to a server on another one."""
    return bool(address.path) or (not address.service and all(host in LOOPBACK for host, _ in address.hosts))


def judge(settings: Settings) -> list[Advice]:
    """What could be better in these settings, the worst first."""
    return for_profile(_judged(settings), settings.profile)


def _judged(settings: Settings) -> Iterator[Advice]:
    """All that is to be said in production."""
    yield from _about_the_address(settings)
    yield from _about_workers(settings)
    if settings.durability == "memory":
        yield _risky(
            "recommendation",
            "durability",
            "a receipt is given before the commit is on a disk or on a replica: a failover may lose it",
            "set durability to local (with appendfsync always) or replicated(1)",
        )
    if settings.jobs.url is None:
        yield _risky(
            "recommendation",
            "jobs.url",
            "there are no jobs, so nothing is verified unless somebody asks",
            "name a Redis database of its own in MUSTER_JOBS__URL",
        )
    elif settings.jobs.verify_every_s is None:
        yield _risky(
            "warning", "jobs.verify_every_s", "no rounds of scrubbing begin: drift is found by chance", "set it to 60"
        )
    if settings.serve.host not in LOOPBACK and settings.serve.token is None:
        yield Advice(
            "error",
            "SETTING_INVALID",
            "serve.token",
            f"`muster serve` would listen on {settings.serve.host} and tell everybody who asks",
            "set MUSTER_SERVE__TOKEN_FILE, or listen on 127.0.0.1",
            always=True,
        )


def _about_the_address(settings: Settings) -> Iterator[Advice]:
    for name, url in (("redis.url", settings.redis.url), ("jobs.url", settings.jobs.url)):
        if url is None:
            continue
        address = parse_address(url)
        if not address.tls and not is_on_this_host(address):
            yield _risky(
                "warning",
                name,
                "passwords and events travel in the clear between hosts",
                f"use rediss:// in {name} and redis.tls_ca_file, unless the network encrypts by itself",
            )
    if parse_address(settings.redis.url).tls and not settings.redis.tls_check_hostname:
        yield _risky(
            "warning",
            "redis.tls_check_hostname",
            "any host with a certificate of the same authority may pass for the server",
            "give the server a certificate for its name, and leave the check on",
        )


def _about_workers(settings: Settings) -> Iterator[Advice]:
    worker, redis = settings.worker, settings.redis
    if worker.beat_ms * 3 > worker.lease_ttl_ms:
        yield _risky(
            "warning",
            "worker.beat_ms",
            f"one beat that is late ({worker.beat_ms} ms) loses leases that last {worker.lease_ttl_ms} ms",
            f"set worker.beat_ms to {max(50, worker.lease_ttl_ms // 4)}",
        )
    if worker.drain_s < redis.timeout_s:
        yield _risky(
            "warning",
            "worker.drain_s",
            f"a worker that stops is killed after {worker.drain_s:g} s, before a command it waits for "
            f"({redis.timeout_s:g} s) is over",
            "set worker.drain_s above redis.timeout_s",
        )
    if worker.batch_deadline_s <= redis.retry_for_s and not math.isinf(redis.retry_for_s):
        yield _risky(
            "warning",
            "redis.retry_for_s",
            f"a request is tried for {redis.retry_for_s:g} s, longer than a batch may take "
            f"({worker.batch_deadline_s:g} s)",
            "set redis.retry_for_s below worker.batch_deadline_s",
        )


def _risky(level: Level, key: str, why: str, remedy: str) -> Advice:
    return Advice(level, "SETTING_RISKY", key, why, remedy)
