"""Which version of an own projection readers get, which versions there are, and which are paused.

A version is built beside the one that is published, in keys of its own, while both follow the feed. It is published
when its whole history is in and it has caught up: once, by whoever sees it first, and never below a version that is
published already. An operator may publish any built version by hand, an older one too; that stays, since a version
offers itself only once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from msgspec import Struct

from domain.errors import NotFound, Refused
from domain.log.keys import Keyspace
from projections.own.store import DONE, OwnStore
from projections.projection import Definition
from projections.store import pages_of, parse_position

_VERSION: Final = "version:"
_OFFERED: Final = "offered:"
_PAUSED: Final = "paused:"
KEYED: Final = "keyed"
PER_SESSION: Final = "per session"


class Version(Struct, frozen=True):
    """One version of an own projection, as the store knows it, whether or not anybody here has its class."""

    name: str
    version: int
    is_keyed: bool
    is_published: bool
    is_paused: bool

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"


class Publications:
    """What a store knows of the projections of its users."""

    def __init__(self, client: Any, keyspace: Keyspace) -> None:
        self._client = client
        self._keyspace = keyspace

    def register(self, definition: Definition) -> None:
        """Makes a version known to the store; nothing happens if it is."""
        pipe = self._client.pipeline(transaction=True)
        pipe.zadd(self._keyspace.projections, {definition.name: 0}, nx=True)
        kind = KEYED if definition.is_keyed else PER_SESSION
        pipe.hset(self._keyspace.projection(definition.name), f"{_VERSION}{definition.version}", kind)
        pipe.execute()

    def versions(self, name: str | None = None) -> list[Version]:
        """All versions, or those of one projection, by name and version."""
        scores = self._client.zrange(self._keyspace.projections, 0, -1, withscores=True)
        names = sorted((found.decode(), int(score)) for found, score in scores if name in (None, found.decode()))
        pipe = self._client.pipeline(transaction=False)
        for found, _ in names:
            pipe.hgetall(self._keyspace.projection(found))
        versions = []
        for (found, published), fields in zip(names, pipe.execute() if names else [], strict=True):
            told = {field.decode(): value.decode() for field, value in fields.items()}
            for version in sorted(int(field.removeprefix(_VERSION)) for field in told if field.startswith(_VERSION)):
                is_keyed = told[f"{_VERSION}{version}"] == KEYED
                versions.append(Version(found, version, is_keyed, version == published, f"{_PAUSED}{version}" in told))
        return versions

    def version(self, name: str, version: int | None = None) -> Version:
        """A version of a projection; the published one unless another is named, else the newest.

        Raises NotFound (PROJECTION_UNKNOWN).
        """
        known = self.versions(name)
        asked = [found for found in known if version == found.version] if version is not None else known
        if not asked:
            what = name if version is None else f"{name}@{version}"
            raise NotFound("PROJECTION_UNKNOWN", f"no worker of this store ever knew a projection {what}")
        return next((found for found in asked if found.is_published), asked[-1])

    def is_paused(self, definition: Definition) -> bool:
        """Whether nobody should work on this version now."""
        field = f"{_PAUSED}{definition.version}"
        return bool(self._client.hexists(self._keyspace.projection(definition.name), field))

    def pause(self, version: Version, who: str) -> None:
        """Has all workers put a version down, until it is resumed. The published views stay as they are."""
        self._client.hset(self._keyspace.projection(version.name), f"{_PAUSED}{version.version}", who)
        self._audit(who, "projection paused", version)

    def resume(self, version: Version, who: str) -> None:
        """Has workers take a version up again, where they put it down."""
        self._client.hdel(self._keyspace.projection(version.name), f"{_PAUSED}{version.version}")
        self._audit(who, "projection resumed", version)

    def retry(self, version: Version, partitions: Iterable[int], who: str) -> None:
        """Has the workers try the parked sessions of partitions again: they go through all sessions once more."""
        for partition in partitions:
            self._client.delete(self._keyspace.partitions[partition].build(version.label))
        self._audit(who, "parked sessions tried again", version)

    def publish(self, version: Version, who: str) -> None:
        """Gives readers this version from now on. Raises Refused (PROJECTION_UNBUILT) if its history is not in."""
        missing = [partition for partition, build in enumerate(self.builds(version)) if build != DONE]
        if missing:
            cause = f"the history of {version.label} is missing in {len(missing)} partitions"
            raise Refused("PROJECTION_UNBUILT", cause, partitions=missing)
        pipe = self._client.pipeline(transaction=True)
        pipe.zadd(self._keyspace.projections, {version.name: version.version})
        pipe.hset(self._keyspace.projection(version.name), f"{_OFFERED}{version.version}", who)
        pipe.execute()
        self._audit(who, "projection published", version)

    def offer(self, store: OwnStore, who: str, totals: dict[int, int]) -> dict[int, int] | None:
        """Publishes a version that is built and has caught up, unless it was offered before or a newer one is out.

        To be called now and then with what the call before returned: a version has caught up when it has applied what
        was there the last time. Returns None once there is nothing more to do.
        """
        definition, name = store.definition, self._keyspace.projection(store.definition.name)
        if self._client.hexists(name, f"{_OFFERED}{definition.version}"):
            return None
        partitions = range(self._keyspace.count)
        if store.unbuilt(partitions):
            return {}
        standing = store.standing(partitions)
        if not all((standing[at][0] or 0) >= totals.get(at, 1 << 62) for at in partitions):
            return {at: total for at, (_, total) in standing.items()}
        pipe = self._client.pipeline(transaction=True)
        pipe.zadd(self._keyspace.projections, {definition.name: definition.version}, gt=True)
        pipe.hset(name, f"{_OFFERED}{definition.version}", who)
        raised, _ = pipe.execute()
        if raised:
            self._audit(who, "projection published", self.version(definition.name, definition.version))
        return None

    def drop(self, version: Version, who: str) -> Iterator[int]:
        """Deletes all that a version derived, partition by partition, then the version itself; yields keys deleted.

        Raises Refused (PROJECTION_IN_USE) if readers get it, or a worker that lives knows it.
        """
        if version.is_published:
            raise Refused("PROJECTION_IN_USE", f"{version.label} is the published version")
        if working := self.workers(version):
            raise Refused("PROJECTION_IN_USE", f"{version.label} is known to {', '.join(working)}")
        for keys in self._keyspace.partitions:
            label, deleted = version.label, 0
            for session_page in pages_of(self._client, keys.sessions):
                deleted += self._client.delete(*(keys.fold(label, session) for session in session_page))
            for key_page in pages_of(self._client, keys.view_keys(label)):
                views = [keys.merged(label, key) for key in key_page]
                deleted += self._client.delete(*views, *(keys.contributors(label, key) for key in key_page))
            cursor = keys.cursor(version.name, version.version)
            own = (keys.view_keys(label), keys.build(label), keys.parked(label), keys.owner(label), cursor)
            deleted += self._client.delete(*own)
            yield deleted
        fields = [f"{kind}{version.version}" for kind in (_VERSION, _OFFERED, _PAUSED)]
        self._client.hdel(self._keyspace.projection(version.name), *fields)
        if not self.versions(version.name):
            self._client.zrem(self._keyspace.projections, version.name)
            self._client.delete(self._keyspace.projection(version.name))
        self._audit(who, "projection dropped", version)

    def builds(self, version: Version) -> list[str]:
        """What `build` says in every partition."""
        pipe = self._client.pipeline(transaction=False)
        for keys in self._keyspace.partitions:
            pipe.get(keys.build(version.label))
        return [(reply or b"").decode("utf-8", "replace") for reply in pipe.execute()]

    def workers(self, version: Version) -> list[str]:
        """The living workers that know a version."""
        seconds, micros = self._client.time()
        now = seconds * 1000 + micros // 1000
        return [
            name.decode()
            for name in self._client.zrangebyscore(self._keyspace.workers_of(version.label), f"({now}", "+inf")
        ]

    def _audit(self, who: str, what: str, version: Version) -> None:
        fields = {"who": who, "what": what, "projection": version.label}
        self._client.xadd(self._keyspace.audit, fields)


def positions(client: Any, keyspace: Keyspace, versions: list[Version]) -> dict[int, list[int]]:
    """Where the cursors of these versions stand, by partition; those that have one."""
    pipe = client.pipeline(transaction=False)
    for keys in keyspace.partitions:
        for version in versions:
            pipe.hget(keys.cursor(version.name, version.version), "position")
    replies = iter(pipe.execute(raise_on_error=False) if versions else [])
    found: dict[int, list[int]] = {}
    for partition in range(keyspace.count):
        known = [parse_position(next(replies)) for _ in versions]
        found[partition] = [position for position in known if position is not None]
    return found
