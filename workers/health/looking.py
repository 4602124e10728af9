"""Looks at all components at once, and answers within `health.timeout_s` whatever hangs.

Each probe has a thread, which is left behind when its time is over; a component whose last probe still hangs is not
probed again, so that no more threads wait than there are components. One whose probe keeps failing is asked now and
then only (breaker.py).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Final

import redis
from msgspec import structs

from domain.errors import MusterError
from domain.log.connection import connection_error
from workers.health.breaker import Breaker
from workers.health.component import Component, Sample, Status, failed
from workers.health.probes import PROBES, WITHOUT_REDIS, Probe
from workers.settings import Settings

#: The codes of what is away.
AWAY: Final = ("SERVER_SILENT", "UNREACHABLE")
#: For how long a look is good enough for the next who asks, in seconds.
FRESH_S: Final = 1.0


class Health:
    """Looks at components, and remembers since when each is as it is. Safe to share between threads."""

    def __init__(self, settings: Settings, probes: Mapping[str, Probe] = PROBES) -> None:
        self._settings = settings
        self._probes = probes
        self._hanging: dict[str, Thread] = {}
        #: What each probe said last, whether anybody still waited for it or not.
        self._answered: dict[str, Component] = {}
        self._breakers = _breakers(settings, probes)
        self._since: dict[str, tuple[Status, int]] = {}
        self._lock = Lock()
        self._fresh: tuple[float, list[Component]] | None = None

    def look(self, only: Collection[str] | None = None) -> list[Component]:
        """How the components are now, in the order of the probes."""
        names = [name for name in self._probes if only is None or name in only]
        was_away = "redis" in self._breakers and self._breakers["redis"].has_failed
        found = self._answers([name for name in names if not self._is_held(name)])
        self._note(found)
        held = {name: self._breakers[name].held() for name in names if name not in found}
        if was_away and "redis" in found and not found["redis"].is_failure:
            held = self._asked_again(held)
        found = self._judged({name: (held | found)[name] for name in names})
        return [self._since_when(found[name]) for name in names]

    def take(self, settings: Settings) -> None:
        """Judges by other settings from the next look on."""
        self._settings, self._breakers, self._fresh = settings, _breakers(settings, self._probes), None

    def look_shared(self) -> list[Component]:
        """As `look`, at most once in a while, however many ask."""
        with self._lock:
            if self._fresh is None or time.monotonic() - self._fresh[0] > FRESH_S:
                components = self.look()
                self._fresh = time.monotonic(), components
            return self._fresh[1]

    def _is_held(self, name: str) -> bool:
        """Whether a probe is not to be repeated now. One that hung, and then did its work all the same, may be."""
        last = self._answered.pop(name, None)
        came_back = last is not None and not last.is_failure
        return self._breakers[name].is_open and not came_back

    def _note(self, found: Mapping[str, Component]) -> None:
        """Tells the breakers how the probes went."""
        for name, one in found.items():
            if one.is_failure:
                self._breakers[name].failed(one)
            else:
                self._breakers[name].answered()

    def _asked_again(self, held: dict[str, Component]) -> dict[str, Component]:
        """Asks those at once that are held for no reason but redis, which answers again."""
        over = [name for name, one in held.items() if name not in WITHOUT_REDIS and one.code in AWAY]
        found = self._answers(over)
        self._note(found)
        return held | found

    def _answers(self, names: Collection[str]) -> dict[str, Component]:
        """What the probes said in time; a component that is missing said nothing."""
        answers: SimpleQueue[tuple[str, Component]] = SimpleQueue()
        began = time.monotonic()
        deadline = began + self._settings.health.timeout_s
        waited_for = set()
        for name in names:
            before = self._hanging.get(name)
            if before is not None and before.is_alive():
                continue
            self._hanging[name] = Thread(target=self._probe, args=(name, answers), name=f"probe-{name}", daemon=True)
            self._hanging[name].start()
            waited_for.add(name)
        found: dict[str, Component] = {}
        while waited_for - found.keys() and (left := deadline - time.monotonic()) > 0:
            try:
                name, component = answers.get(timeout=left)
            except Empty:
                break
            found[name] = structs.replace(component, took_s=time.monotonic() - began)
        return found | {name: self._silent(name, time.monotonic() - began) for name in names if name not in found}

    def _probe(self, name: str, answers: SimpleQueue[tuple[str, Component]]) -> None:
        try:
            component = self._probes[name](self._settings)
        except MusterError as error:
            component = failed(name, error)
        except (redis.RedisError, OSError) as error:
            component = failed(name, connection_error(error))
        except Exception as error:  # a bug in a probe says nothing about what it looks at
            why = f"the probe itself failed: {type(error).__name__}: {error}"
            component = Component(name, Status.UNKNOWN, why, is_failure=True)
        self._answered[name] = component
        answers.put((name, component))

    def _silent(self, name: str, took_s: float) -> Component:
        reason = f"no answer within {self._settings.health.timeout_s:g} s"
        return Component(name, Status.DOWN, reason, "SERVER_SILENT", took_s=took_s, is_failure=True)

    def _judged(self, found: dict[str, Component]) -> dict[str, Component]:
        """What is down for no reason of its own is unknown: a part that only cannot be seen looks no worse for it."""
        server = found.get("redis")
        if server is not None and server.status is Status.DOWN:
            found["redis"] = structs.replace(server, samples=(Sample("muster_redis_up", 0),))
        judged = {}
        for name, one in found.items():
            judged[name] = one
            if name in WITHOUT_REDIS or one.status is not Status.DOWN or server is None:
                continue
            if hider := self._hider(one, found):
                why = f"it cannot be seen while {hider} is down"
                judged[name] = Component(name, Status.UNKNOWN, why, took_s=one.took_s, is_asked=one.is_asked)
            elif one.code == "ACCESS_DENIED":
                judged[name] = structs.replace(one, status=Status.UNKNOWN, reason="this user may not see it")
        return judged

    @staticmethod
    def _hider(one: Component, found: Mapping[str, Component]) -> str | None:
        """The part that is down for the same reason and comes before this one: the server, or the store on it."""
        server, log = found["redis"], found.get("log")
        if server.status is Status.DOWN and one.code in (server.code, *AWAY):
            return "redis"
        # Without a store there is nothing of it to be seen.
        if log is not None and log.is_failure and one.is_failure and one.code == log.code != "ACCESS_DENIED":
            return "log" if one is not log else None
        return None

    def _since_when(self, one: Component) -> Component:
        """With the time since when it is so, unless the probe knows better. The first look cannot know; whoever looks
        again knows that it is so at least since then.
        """
        before = self._since.get(one.name)
        if before is not None and before[0] is one.status:
            return structs.replace(one, since_ms=one.since_ms or before[1])
        now_ms = int(time.time() * 1000)
        self._since[one.name] = one.status, now_ms
        return one if before is None else structs.replace(one, since_ms=one.since_ms or now_ms)


def _breakers(settings: Settings, probes: Iterable[str]) -> dict[str, Breaker]:
    health = settings.health
    return {name: Breaker(failures=health.breaker_failures, longest_wait_s=health.breaker_wait_s) for name in probes}
