"""Every key Muster writes, in one table: pattern, type, class, lifetime. No other module builds a key.

One hash tag a partition, so that whatever changes together lies in one slot and changes in one atomic step.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from hashlib import sha1
from typing import Final, NamedTuple

from domain.errors import Misconfigured, Refused

DEFAULT_PARTITIONS: Final = 32
_PART: Final = re.compile(r"[A-Za-z0-9._@/+-]{1,64}\Z")


class KeyClass(Enum):
    """What may happen to a key."""

    TRUTH = "truth"  #: the log and what belongs to it; deleted by retention only
    CONTROL = "control"  #: backed up, not rebuilt
    DERIVED = "derived"  #: may be deleted at any time and comes back from the truth
    EPHEMERAL = "ephemeral"  #: may vanish at any time


class Key(NamedTuple):
    """One row of the table. `pattern` is what stands after the hash tag."""

    pattern: str
    type: str
    key_class: KeyClass
    lifetime: str


#: The table. `{p}` stands for `{environment:namespace:partition}`, `{store}` for `{environment:namespace:store}`.
KEYS: Final = (
    Key("{p}:log:<session>", "stream", KeyClass.TRUTH, "until archived by retention"),
    Key("{p}:sessions", "zset", KeyClass.TRUTH, "for ever; all scores 0, ordered by id"),
    Key(
        "{p}:damaged:<ms>:<session>",
        "stream",
        KeyClass.TRUTH,
        "for ever; a log as it was before it was repaired",
    ),
    Key("{p}:skips", "hash", KeyClass.TRUTH, "as long as the logs; what of a session an operator discarded"),
    Key("{p}:meta", "hash", KeyClass.CONTROL, "for ever; store, epoch, limits, running total of events"),
    Key("{p}:head:<session>", "string", KeyClass.CONTROL, "for ever; also of what is archived as a whole"),
    Key("{p}:hold:<session>", "hash", KeyClass.CONTROL, "as long as the head; quarantine, policy, lease, horizon"),
    Key("{p}:arriving:<session>", "stream", KeyClass.CONTROL, "until it is whole and becomes the log, or is dropped"),
    Key(
        "{p}:feed",
        "stream",
        KeyClass.CONTROL,
        "entries until they are applied and ten minutes old (`worker.feed_keep_s`)",
    ),
    Key("{p}:owner:<projection>", "hash", KeyClass.CONTROL, "for ever; deadline in server ms is a field"),
    Key("{p}:parked:<projection>", "hash", KeyClass.CONTROL, "until the session is projected again"),
    Key(
        "{p}:graft:<session>",
        "stream",
        KeyClass.EPHEMERAL,
        "until it takes a damaged log's place, or a day after its last step",
    ),
    Key("{p}:beats", "zset", KeyClass.EPHEMERAL, "entries until the agent leaves or is reported gone"),
    Key("{p}:place:<subscription>", "string", KeyClass.CONTROL, "until dropped; up to where it is acknowledged"),
    Key("{p}:acked:<subscription>", "hash", KeyClass.CONTROL, "as the place; its position in the feed"),
    Key(
        "{p}:reached:<subscription>",
        "hash",
        KeyClass.CONTROL,
        "as the place; up to where moved sessions were given",
    ),
    Key("{p}:subowner:<subscription>", "hash", KeyClass.CONTROL, "as the place; which member holds it"),
    Key("{p}:lost", "hash", KeyClass.CONTROL, "until the loss is accepted; what witnesses reported lost"),
    Key("{p}:audit", "stream", KeyClass.CONTROL, "for ever"),
    Key("{p}:cursor:<projection>@<version>", "hash", KeyClass.DERIVED, "as long as the projection version"),
    Key("{p}:view:session:<session>", "string", KeyClass.DERIVED, "as long as the session"),
    Key("{p}:view:agent:<agent>", "string", KeyClass.DERIVED, "as long as a session in the partition names the agent"),
    Key("{p}:view:statistics", "string", KeyClass.DERIVED, "for ever; sums over the sessions of the partition"),
    Key("{p}:index:agents", "zset", KeyClass.DERIVED, "for ever; all scores 0, ordered by id"),
    Key("{p}:index:sessions", "zset", KeyClass.DERIVED, "for ever; <field> NUL <value> NUL <session>, all scores 0"),
    Key("{p}:index:started", "zset", KeyClass.DERIVED, "for ever; sessions by their first commit's server ms"),
    Key("{p}:index:last", "zset", KeyClass.DERIVED, "for ever; sessions by their last commit's server ms"),
    Key("{p}:index:idle", "zset", KeyClass.DERIVED, "for ever; open sessions by when something came last, server ms"),
    Key("{p}:index:until", "zset", KeyClass.DERIVED, "for ever; open sessions by how long they may idle, server ms"),
    Key("{p}:index:expiring", "zset", KeyClass.DERIVED, "for ever; open sessions by when they expire, server ms"),
    Key("{p}:index:completed", "zset", KeyClass.DERIVED, "for ever; sessions by when they were completed, server ms"),
    Key(
        "{p}:index:perf",
        "zset",
        KeyClass.DERIVED,
        "for ever; sessions by their lowest perf_delta, in millionths + 1e12",
    ),
    Key("{p}:ckpt:<session>", "hash", KeyClass.DERIVED, "the last four a session"),
    Key("{p}:build:<projection>@<version>", "string", KeyClass.DERIVED, "as the cursor; how far history is brought in"),
    Key("{p}:fold:<projection>@<version>:<session>", "string", KeyClass.DERIVED, "as the cursor"),
    Key("{p}:merged:<projection>@<version>:<key>", "string", KeyClass.DERIVED, "as the cursor; merged over sessions"),
    Key("{p}:keys:<projection>@<version>", "zset", KeyClass.DERIVED, "as the cursor; keys of views, scores 0"),
    Key("{p}:from:<projection>@<version>:<key>", "zset", KeyClass.DERIVED, "as the cursor; who contributes, scores 0"),
    Key("{p}:proofs", "hash", KeyClass.DERIVED, "for ever; where each session was last found right"),
    Key("{p}:swept", "zset", KeyClass.DERIVED, "for ever; when each session was last read whole, in server ms"),
    Key("{p}:drifted", "hash", KeyClass.DERIVED, "entries until the session is found right again"),
    Key("{p}:scrub", "hash", KeyClass.DERIVED, "for ever; up to where scrubbing has verified the partition"),
    Key("{p}:replaced:<session>", "string", KeyClass.EPHEMERAL, "a week after recovery replaced the view"),
    Key("{store}:meta", "hash", KeyClass.CONTROL, "for ever; store, epoch, partitions, wire version"),
    Key("{store}:workers", "zset", KeyClass.EPHEMERAL, "entries until their heartbeat's deadline"),
    Key("{store}:worker:<worker>", "hash", KeyClass.EPHEMERAL, "seconds after the last heartbeat"),
    Key("{store}:works:<projection>@<version>", "zset", KeyClass.EPHEMERAL, "as `workers`: who works on it"),
    Key("{store}:halt", "hash", KeyClass.CONTROL, "until taken back; who stopped the fleet, why, when"),
    Key("{store}:halted", "hash", KeyClass.EPHEMERAL, "a day; how far with stopping each worker is"),
    Key("{store}:projections", "zset", KeyClass.CONTROL, "until dropped; the user's own, scores the published version"),
    Key("{store}:projection:<projection>", "hash", KeyClass.CONTROL, "until dropped; its versions, which are paused"),
    Key("{store}:subscriptions", "zset", KeyClass.CONTROL, "until dropped; names of durable subscriptions, scores 0"),
    Key("{store}:subscription:<subscription>", "hash", KeyClass.CONTROL, "until dropped; what it wants"),
    Key("{store}:members:<subscription>", "zset", KeyClass.EPHEMERAL, "entries until their heartbeat's deadline"),
    Key("{store}:tasks", "zset", KeyClass.CONTROL, "for ever; ids of jobs, scores when they were asked for"),
    Key("{store}:opentasks", "zset", KeyClass.CONTROL, "until the job has ended"),
    Key(
        "{store}:task:<task>",
        "hash",
        KeyClass.CONTROL,
        "while it is among the newest thousand",
    ),
    Key("{store}:taskowner:<task>", "hash", KeyClass.CONTROL, "as the task; its lease"),
    Key("{store}:taskcursor:<task>", "hash", KeyClass.CONTROL, "as the task; how many partitions are done"),
    Key("{store}:migrations", "zset", KeyClass.CONTROL, "for ever; ids of migrations to here, scores when they began"),
    Key("{store}:migration:<task>", "hash", KeyClass.CONTROL, "as `migrations`; what is moved, how far it is"),
    Key("{store}:moves:<task>", "hash", KeyClass.CONTROL, "as the migration; what became of each session"),
    Key("{store}:cursors:<task>", "hash", KeyClass.CONTROL, "as a standby's migration; the source's subscriptions"),
    Key("{store}:tick:<job>:<tick>", "string", KeyClass.EPHEMERAL, "two ticks; who was first in this one"),
    Key("{store}:ticked", "hash", KeyClass.EPHEMERAL, "for ever; when what recurs was last due and begun"),
    Key("{store}:audit", "stream", KeyClass.CONTROL, "for ever; what was done to projections"),
)


def partition_of(session: str, partitions: int) -> int:
    """The partition of a session: the first 32 bits of its id's SHA-1, modulo the count."""
    return int(sha1(session.encode()).hexdigest()[:8], 16) % partitions


class PartitionKeys:
    """The keys of one partition."""

    def __init__(self, tag: str) -> None:
        self.meta = f"{tag}:meta"
        self.sessions = f"{tag}:sessions"
        self.skips = f"{tag}:skips"
        self.feed = f"{tag}:feed"
        self.agents = f"{tag}:index:agents"
        self.session_index = f"{tag}:index:sessions"
        self.started_index = f"{tag}:index:started"
        self.last_index = f"{tag}:index:last"
        self.completed_index = f"{tag}:index:completed"
        self.perf_index = f"{tag}:index:perf"
        self.idle_index = f"{tag}:index:idle"
        self.until_index = f"{tag}:index:until"
        self.expiring_index = f"{tag}:index:expiring"
        self.statistics = f"{tag}:view:statistics"
        self.audit = f"{tag}:audit"
        self.lost = f"{tag}:lost"
        self.beats = f"{tag}:beats"
        self.proofs = f"{tag}:proofs"
        self.swept = f"{tag}:swept"
        self.drifted = f"{tag}:drifted"
        self.scrub = f"{tag}:scrub"
        self._log = f"{tag}:log:"
        self._arriving = f"{tag}:arriving:"
        self._head = f"{tag}:head:"
        self._hold = f"{tag}:hold:"
        self._view = f"{tag}:view:"
        self._ckpt = f"{tag}:ckpt:"
        self._replaced = f"{tag}:replaced:"
        self._tag = tag

    def log(self, session: str) -> str:
        return self._log + session

    def arriving(self, session: str) -> str:
        return self._arriving + session

    def damaged(self, at_ms: int, session: str) -> str:
        return f"{self._tag}:damaged:{at_ms}:{session}"

    def graft(self, session: str) -> str:
        return f"{self._tag}:graft:{session}"

    def head(self, session: str) -> str:
        return self._head + session

    def hold(self, session: str) -> str:
        return self._hold + session

    def session_view(self, session: str) -> str:
        return f"{self._view}session:{session}"

    def agent_view(self, agent: str) -> str:
        return f"{self._view}agent:{agent}"

    def checkpoints(self, session: str) -> str:
        return self._ckpt + session

    def replaced(self, session: str) -> str:
        return self._replaced + session

    def cursor(self, projection: str, version: int) -> str:
        return f"{self._tag}:cursor:{projection}@{version}"

    def build(self, projection: str) -> str:
        return f"{self._tag}:build:{projection}"

    def fold(self, projection: str, session: str) -> str:
        return f"{self._tag}:fold:{projection}:{session}"

    def merged(self, projection: str, key: str) -> str:
        return f"{self._tag}:merged:{projection}:{key}"

    def view_keys(self, projection: str) -> str:
        return f"{self._tag}:keys:{projection}"

    def contributors(self, projection: str, key: str) -> str:
        return f"{self._tag}:from:{projection}:{key}"

    def owner(self, projection: str) -> str:
        return f"{self._tag}:owner:{projection}"

    def place(self, subscription: str) -> str:
        return f"{self._tag}:place:{subscription}"

    def acked(self, subscription: str) -> str:
        return f"{self._tag}:acked:{subscription}"

    def reached(self, subscription: str) -> str:
        return f"{self._tag}:reached:{subscription}"

    def subscription_owner(self, subscription: str) -> str:
        return f"{self._tag}:subowner:{subscription}"

    def parked(self, projection: str) -> str:
        return f"{self._tag}:parked:{projection}"


class Keyspace:
    """The keys of one store: an environment and a namespace, hashed to a fixed number of partitions."""

    def __init__(self, environment: str, namespace: str, partitions: int) -> None:
        check_keyspace(environment, namespace)
        if partitions < 1:
            raise Misconfigured("SETTING_INVALID", f"{partitions} partitions are too few")
        self.environment = environment
        self.namespace = namespace
        self.count = partitions
        self.partitions = [PartitionKeys(f"{{{environment}:{namespace}:{index}}}") for index in range(partitions)]
        store = store_tag(environment, namespace)
        self.store_meta = f"{store}:meta"
        self.workers = f"{store}:workers"
        self.projections = f"{store}:projections"
        self.audit = f"{store}:audit"
        self.ticked = f"{store}:ticked"
        self.halt = f"{store}:halt"
        self.halted = f"{store}:halted"
        self._worker = f"{store}:worker:"
        self._works = f"{store}:works:"
        self._projection = f"{store}:projection:"
        self.subscriptions = f"{store}:subscriptions"
        self.tasks = f"{store}:tasks"
        self.open_tasks = f"{store}:opentasks"
        self.migrations = f"{store}:migrations"
        self._store = store

    def partition_of(self, session: str) -> int:
        return partition_of(session, self.count)

    def chosen(self, partitions: Sequence[int] | None) -> list[int]:
        """The partitions somebody names, all if he names none. Raises Refused (USAGE) for one that is not there."""
        asked = list(partitions or range(self.count))
        if unknown := [partition for partition in asked if not 0 <= partition < self.count]:
            raise Refused("USAGE", f"the store has the partitions 0 to {self.count - 1}, not {unknown[0]}")
        return asked

    def of(self, session: str) -> PartitionKeys:
        """The keys of the partition that holds the session."""
        return self.partitions[partition_of(session, self.count)]

    def worker(self, worker: str) -> str:
        return self._worker + worker

    def workers_of(self, owned: str) -> str:
        """Who works on a projection of the user's own."""
        return f"{self._works}{owned}"

    def subscription(self, name: str) -> str:
        return f"{self._store}:subscription:{name}"

    def members(self, name: str) -> str:
        return f"{self._store}:members:{name}"

    def task(self, task: str) -> str:
        return f"{self._store}:task:{task}"

    def task_owner(self, task: str) -> str:
        return f"{self._store}:taskowner:{task}"

    def task_cursor(self, task: str) -> str:
        return f"{self._store}:taskcursor:{task}"

    def migration(self, task: str) -> str:
        return f"{self._store}:migration:{task}"

    def moves(self, task: str) -> str:
        return f"{self._store}:moves:{task}"

    def cursors(self, task: str) -> str:
        return f"{self._store}:cursors:{task}"

    def tick(self, job: str, tick: int) -> str:
        return f"{self._store}:tick:{job}:{tick}"

    def projection(self, name: str) -> str:
        return self._projection + name


def check_keyspace(environment: str, namespace: str) -> None:
    """Refuses parts that would break the hash tag (SETTING_INVALID)."""
    for name, part in (("environment", environment), ("namespace", namespace)):
        if not _PART.match(part):
            raise Misconfigured("SETTING_INVALID", f"{name} {part!r} must be 1 to 64 of A-Z a-z 0-9 . _ @ / + -")


def store_tag(environment: str, namespace: str) -> str:
    """The hash tag of what belongs to the whole store."""
    return f"{{{environment}:{namespace}:store}}"
