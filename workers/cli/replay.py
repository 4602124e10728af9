"""`muster replay`: plays sessions once more, merged by server time, at a speed, with the state after each event."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final

from domain.errors import Damaged, NotFound, Refused
from domain.events import Event
from projections.playing import MAX, Played, Player
from projections.queries import Views, server_ms_of
from projections.replaying import Replay, Replayed, ReplayPosition, Selection
from projections.session_view import rfc3339
from workers.cli import arguments, printing
from workers.fleet import until_stopped
from workers.settings import Settings
from workers.stopping import Stop
from workers.timeline_text import printable

SCHEMA: Final = "muster.replayed/1"
FORMATS: Final = ("table", "json", "jsonl")
#: Of a file whose last line is looked for, so many bytes are read at a time.
BLOCK: Final = 65_536


def configure(parser: argparse.ArgumentParser) -> None:
    arguments.server(parser)
    add = parser.add_argument
    add("-o", dest="format", choices=FORMATS, default="table", help="how events are printed")
    add("--output", dest="file", metavar="FILE", help="write JSON lines here instead; with --after, add to them")
    add("sessions", nargs="*", metavar="SESSION", help="these sessions (default: all)")
    add("--session", action="append", default=[], help="as SESSION; may be repeated, as may the next three")
    add("--actor", action="append", help="events of this actor alone")
    add("--type", action="append", help="events of this type alone, or of tool.*")
    add("--tag", action="append", help="events with this tag alone")
    add("--since", metavar="TIME", help="events from this server time on")
    add("--until", metavar="TIME", help="events up to this server time")
    add("--from", dest="from_seq", type=int, default=1, metavar="SEQ", help="of each session from this seq on")
    add("--after", metavar="POSITION|last", help="go on after this event; last: after the last one in --output FILE")
    add(
        "--speed", default="max", metavar="N|max", help="1 as it was, 10 ten times as fast, max as fast as can be (max)"
    )
    add("--longest-pause", type=float, default=MAX, metavar="S", help="cut longer pauses to this")
    add("--state", action="store_true", help="with the state of the session after each event")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: Settings) -> int:
    if options.file in FORMATS:
        raise Refused("USAGE", f"--output names a file; the format is said by -o {options.file}")
    speed = speed_of(options.speed)
    selection = selected(options)
    with ExitStack() as resources:
        log, store = resources.enter_context(arguments.opened(settings))
        replay = Replay(log, selection, with_state=options.state, state_before=Views(store, log).state_before)
        player = Player(replay, speed, longest_pause_s=options.longest_pause)
        target: IO[str] = sys.stdout
        if options.file is not None:
            target = resources.enter_context(opened_for_lines(options.file, goes_on=selection.after is not None))
        resources.enter_context(until_stopped(_Stopping(player)))
        played = play(player, target, "jsonl" if options.file is not None else options.format, is_paced=speed < MAX)
    said = f"played {played.events} events" + ("" if played.is_whole else "; stopped")
    position = played.position or selection.after
    printing.say(said if position is None else f"{said}; go on with --after {position}")
    for damage in played.damages:
        printing.say(f"damage: {damage.code}: {damage.cause}")
    return 8 if played.damages else 0 if played.is_whole else 7


class _Stopping(Stop):
    """Stops a player at a signal."""

    def __init__(self, player: Player) -> None:
        super().__init__()
        self._player = player

    def set(self) -> None:
        super().set()
        self._player.stop()


def selected(options: argparse.Namespace) -> Selection:
    """What the options ask for. Raises Refused, NotFound (FILE_UNREADABLE)."""
    return Selection.of(
        [*options.sessions, *options.session] or None,
        types=options.type,
        actors=options.actor,
        tags=options.tag,
        since_ms=None if options.since is None else time_ms(options.since),
        until_ms=None if options.until is None else time_ms(options.until),
        from_seq=max(1, options.from_seq),
        after=None if options.after is None else position_of(options.after, options.file),
    )


def time_ms(text: str) -> int:
    """A time in ms. Raises Refused (TIME_INVALID)."""
    moment = arguments.moment(text)
    if not isinstance(moment, datetime):
        raise Refused("TIME_INVALID", f"{text} is no time")
    return server_ms_of(moment)


def speed_of(text: str) -> float:
    """A speed. Raises Refused (USAGE)."""
    try:
        speed = MAX if text == "max" else float(text)
    except ValueError:
        speed = 0.0
    if not speed > 0:
        raise Refused("USAGE", f"--speed is max or a number above 0, not {text}")
    return speed


def position_of(text: str, file: str | None) -> ReplayPosition | None:
    """The position to go on after; None before the first event."""
    if text != "last":
        return ReplayPosition.parse(text)
    if file is None:
        raise Refused("USAGE", "--after last needs the --output FILE whose last event it means")
    line = last_line(Path(file))
    try:
        return None if line is None else ReplayPosition.parse(json.loads(line)["position"])
    except (ValueError, KeyError, TypeError):
        raise Refused("POSITION_INVALID", f"the last line of {file} is no event of a replay") from None


def last_line(path: Path) -> bytes | None:
    """The last whole line of a file; None if there is none. Raises NotFound (FILE_UNREADABLE)."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            at, tail = file.tell(), b""
            while at and tail.rstrip(b"\n").count(b"\n") < 2:
                size = min(BLOCK, at)
                at -= size
                file.seek(at)
                tail = file.read(size) + tail
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NotFound("FILE_UNREADABLE", f"{path} cannot be read: {error.strerror}") from None
    whole = tail[: tail.rfind(b"\n") + 1].splitlines()
    return whole[-1] if whole else None


def opened_for_lines(name: str, *, goes_on: bool) -> IO[str]:
    """A file to write lines to; if it goes on, after its last whole line. Raises NotFound (FILE_UNREADABLE)."""
    try:
        if not goes_on or not Path(name).exists():
            return open(name, "w", encoding="utf-8")
        with open(name, "r+b") as file:
            content_end = file.seek(0, 2)
            while content_end:
                size = min(BLOCK, content_end)
                file.seek(content_end - size)
                found = file.read(size).rfind(b"\n")
                if found >= 0:
                    content_end += found + 1 - size
                    break
                content_end -= size
            file.truncate(content_end)
        return open(name, "a", encoding="utf-8")
    except OSError as error:
        raise NotFound("FILE_UNREADABLE", f"{name} cannot be written: {error.strerror}") from None


def play(player: Player, target: IO[str], format: str, *, is_paced: bool) -> Played:
    """Plays to a file or stdout; what was played is written out when this returns."""
    listed: list[dict[str, Any]] = []

    def show(replayed: Replayed) -> None:
        if format == "json":
            listed.append(row(replayed))
            return
        line = text(replayed) if format == "table" else json.dumps(row(replayed), ensure_ascii=False, separators=_TIGHT)
        print(line, file=target, flush=is_paced)

    played = player.play(show)
    if format == "json":
        print(json.dumps(listed, ensure_ascii=False), file=target)
    target.flush()
    return played


_TIGHT: Final = (",", ":")


def row(replayed: Replayed) -> dict[str, Any]:
    """An event as it is printed: as `muster event show` does, with its position in the replay, and the state."""
    event = replayed.event
    told = {
        "schema": SCHEMA,
        "position": str(replayed.position),
        "session": replayed.session,
        "seq": replayed.seq,
        "type": None if event is None else event.type,
        "actor": None if event is None else event.actor,
        "id": None if event is None else event.id,
        "time": None if event is None else event.time,
        "at": rfc3339(replayed.at_ms),
        "data": None if event is None else payload_of(event),
        "digest": replayed.digest,
        "traceparent": replayed.traceparent,
        "skipped": replayed.is_skipped,
    }
    return told if replayed.state is None else {**told, "state": replayed.state}


def payload_of(event: Event) -> dict[str, Any] | None:
    """The data of an event; None for free data of a foreign producer that nobody can read, and nobody has to."""
    try:
        return event.payload()
    except Damaged:
        return None


def text(replayed: Replayed) -> str:
    """An event in a line."""
    event, state = replayed.event, replayed.state
    what = "unreadable" if event is None else f"{event.type:<16} {event.actor:<16}"
    where = f"{rfc3339(replayed.at_ms)}  {replayed.session} {replayed.seq:>6}"
    return printable(f"{where}  {what}" + ("" if state is None else f" {state['state']}")).rstrip()
