"""What `muster projection` does with projections of the user's own."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from domain.errors import Misconfigured, Refused
from domain.log import SessionLog
from projections import session_view
from projections.lag import lag
from projections.own.drift import OwnRead, OwnValidator
from projections.own.publishing import Publications, Version
from projections.own.reading import OwnViews
from projections.own.store import DONE, OwnStore
from projections.projection import Definition, without_class
from projections.store import ProjectionStore
from workers.cli import arguments, printing
from workers.recovery import rebuild_own
from workers.registered import registered
from workers.settings import Settings

COLUMNS: Final = ("projection", "kind", "state", "published", "built", "events", "parked", "workers")
STATE_COLUMNS: Final = ("key", "state")
REHEARSAL_COLUMNS: Final = ("session", "key", "seq", "stored", "rehearsed")


def configure(group: Any) -> None:
    arguments.command(group, "ls", "list projections: how far each is, which version readers get", run_ls)

    show = arguments.command(group, "show", "show the states of an own projection", run_show)
    show.add_argument("name")
    show.add_argument("key", nargs="?", help="only this key, or session")
    show.add_argument("--version", type=int, metavar="V", help="of this version (default: the published one)")
    show.add_argument("--limit", type=int, default=100, metavar="N", help="at most so many (default 100)")
    show.add_argument("--after", metavar="KEY", help="go on after this key, or session")

    for name, purpose, run in (
        ("pause", "have all workers put an own projection down; the views stay as they are", run_pause),
        ("resume", "have workers take a paused projection up again, where they put it down", run_resume),
    ):
        command = arguments.command(group, name, purpose, run)
        command.add_argument("name")
        command.add_argument("--version", type=int, metavar="V", help="only this version (default: all)")
        command.add_argument("--dry-run", action="store_true", help="say what it would touch")

    publish = arguments.command(group, "publish", "give readers this version from now on", run_publish)
    drop = arguments.command(group, "drop", "delete all that a version derived", run_drop)
    for command in (publish, drop):
        command.add_argument("name")
        command.add_argument("--version", type=int, metavar="V", required=True)
        command.add_argument("--dry-run", action="store_true", help="say what it would touch")


def run_ls(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        publications = Publications(log.client, log.keyspace)
        rows = [_row(store, session_view.NAME, session_view.VERSION, "built in", "live", is_published=True)]
        rows += [_own_row(log, publications, version) for version in publications.versions()]
        printing.rows(rows, options.output, columns=COLUMNS)
    return 0


def run_show(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened_log(settings) as log:
        views = OwnViews(log, [definition.projection for definition in registered(settings)])
        if options.key is not None:
            pairs = [(options.key, views.get(options.name, options.key, version=options.version))]
        else:
            pairs = list(views.all(options.name, version=options.version, after=options.after, limit=options.limit))
        rows = (
            {"schema": "muster.projection-state/1", "projection": options.name, "key": key, "state": plain(state)}
            for key, state in pairs
        )
        printing.rows(rows, options.output, columns=STATE_COLUMNS)
    return 0


def run_pause(options: argparse.Namespace, settings: Settings) -> int:
    return _with_each(options, settings, "pause", Publications.pause)


def run_resume(options: argparse.Namespace, settings: Settings) -> int:
    return _with_each(options, settings, "resume", Publications.resume)


def run_publish(options: argparse.Namespace, settings: Settings) -> int:
    return _with_each(options, settings, "publish", Publications.publish)


def _with_each(
    options: argparse.Namespace, settings: Settings, word: str, act: Callable[[Publications, Version, str], None]
) -> int:
    with _chosen(options, settings) as (publications, versions):
        for version in versions:
            if not options.dry_run:
                act(publications, version, arguments.who())
            printing.say(f"{'dry run: would ' if options.dry_run else ''}{word} {version.label}")
    return 0


def run_drop(options: argparse.Namespace, settings: Settings) -> int:
    with _chosen(options, settings) as (publications, (version,)):
        if options.dry_run:
            printing.say(f"dry run: would drop {version.label}: what it derived of every session, and its cursors")
            return 0
        deleted, progress = 0, printing.Progress()
        for partition, count in enumerate(publications.drop(version, arguments.who())):
            deleted += count
            progress(f"partition {partition}: {deleted} keys deleted")
        printing.document(
            {"schema": "muster.projection-drop/1", "projection": version.label, "keys": deleted}, options.output
        )
    return 0


def run_rebuild_own(options: argparse.Namespace, settings: Settings) -> int:
    """`projection rebuild NAME`: folds everything again by the class that is here; or only says what would differ."""
    with arguments.opened_log(settings) as log:
        definition = named(settings, options.name, options.version)
        store = OwnStore(log.client, log.keyspace, definition)
        if options.rehearse:
            return _rehearse(options, log, store)
        partitions = log.keyspace.chosen(options.partition)
        if options.dry_run:
            sessions = sum(len(page) for partition in partitions for page in store.member_pages(partition))
            printing.say(f"dry run: would fold {sessions} sessions in {len(partitions)} partitions again")
            return 0
        Publications(log.client, log.keyspace).register(definition)
        began = time.monotonic()
        who = f"recovery:{arguments.who()}"
        done = rebuild_own(store, log, partitions, who=who, progress=printing.Progress())
        seconds = round(time.monotonic() - began, 3)
        printing.document(
            {"schema": "muster.rebuild/1", "projection": store.label, "partitions": done, "seconds": seconds},
            options.output,
        )
    return 0


def _rehearse(options: argparse.Namespace, log: SessionLog, store: OwnStore) -> int:
    """Prints what the class that is here gives otherwise than what is published; exit 1 if anything."""
    published = Publications(log.client, log.keyspace).version(store.name)
    is_same = published.version == store.version
    other = None if is_same else OwnStore(log.client, log.keyspace, without_class(published.name, published.version))
    validator = OwnValidator(store, log)
    rows = (msgspec.to_builtins(one, str_keys=True) for one in validator.rehearse(other))
    count = printing.rows(rows, options.output, columns=REHEARSAL_COLUMNS)
    read = validator.read
    printing.say(
        f"rehearsed {store.label} against {published.label}: {read.sessions} sessions, {read.events} events; "
        f"{count or 'no'} state{'' if count == 1 else 's'} in {read.differing} sessions differ; "
        f"{read.missing} sessions have no stored state to compare with; nothing was written"
    )
    return 1 if count else 0


def verify_own(settings: Settings, log: SessionLog, say: Any) -> Iterator[dict[str, Any]]:
    """The findings of all versions whose classes are here; says which others there are, and are not verified."""
    publications = Publications(log.client, log.keyspace)
    definitions = {definition.label: definition for definition in registered(settings)}
    for version in publications.versions():
        definition = definitions.get(version.label)
        if definition is None:
            say(f"{version.label} is not verified: its class is not known here (MUSTER_PROJECTIONS)")
        elif any(build != DONE for build in publications.builds(version)) and (
            not version.is_published or publications.workers(version)
        ):
            say(f"{version.label} is not verified: its history is not in yet")
        else:
            validator = OwnValidator(OwnStore(log.client, log.keyspace, definition), log)
            for finding in validator.everything():
                yield msgspec.to_builtins(finding, str_keys=True)
            read: OwnRead = validator.read
            unjudged = f"; views kept moving in partitions {read.unjudged}, not judged" if read.unjudged else ""
            say(f"{version.label}: read {read.sessions} sessions, {read.events} events{unjudged}")


def named(settings: Settings, name: str, version: int | None) -> Definition:
    """The class of a projection that this process knows, the newest unless a version is named."""
    known = [one for one in registered(settings) if one.name == name and version in (None, one.version)]
    if not known:
        what = name if version is None else f"{name}@{version}"
        raise Misconfigured("PROJECTION_ABSENT", f"the class of {what} is not known to this process")
    return max(known, key=lambda one: one.version)


def store_of(log: SessionLog, label: str) -> OwnStore:
    """An own projection's store for what needs no class, by `name` (the published version) or `name@version`."""
    name, _, version = label.partition("@")
    if version and not version.isdigit():
        raise Refused("USAGE", f"{label} is no NAME or NAME@VERSION")
    found = Publications(log.client, log.keyspace).version(name, int(version) if version else None)
    return OwnStore(log.client, log.keyspace, without_class(found.name, found.version))


def plain(state: Any) -> Any:
    """A state as JSON has it."""
    return msgspec.to_builtins(state, order="deterministic", str_keys=True)


@contextmanager
def _chosen(options: argparse.Namespace, settings: Settings) -> Iterator[tuple[Publications, list[Version]]]:
    with arguments.opened_log(settings) as log:
        publications = Publications(log.client, log.keyspace)
        publications.version(options.name, options.version)  # there is one
        versions = [one for one in publications.versions(options.name) if options.version in (None, one.version)]
        yield publications, versions


def _own_row(log: SessionLog, publications: Publications, version: Version) -> dict[str, Any]:
    store = OwnStore(log.client, log.keyspace, without_class(version.name, version.version))
    builds = publications.builds(version)
    built = sum(build == DONE for build in builds)
    workers = publications.workers(version)
    state = (
        "paused" if version.is_paused else "no worker" if not workers else "building" if built < len(builds) else "live"
    )
    kind = "by key" if version.is_keyed else "per session"
    row = _row(store, version.name, version.version, kind, state, is_published=version.is_published)
    return {**row, "built": f"{built}/{len(builds)}", "workers": len(workers)}


def _row(
    store: ProjectionStore, name: str, version: int, kind: str, state: str, *, is_published: bool
) -> dict[str, Any]:
    found = lag(store)
    pipe = store.client.pipeline(transaction=False)
    for keys in store.keyspace.partitions:
        pipe.hlen(keys.parked(store.owned))
    return {
        "schema": "muster.projection/1",
        "projection": f"{name}@{version}",
        "kind": kind,
        "state": state,
        "published": is_published,
        "built": None,
        "events": found.events,
        "seconds": found.seconds,
        "parked": sum(pipe.execute()),
        "workers": len({part.owner for part in found.partitions if part.owner is not None}),
    }
