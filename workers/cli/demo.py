"""`muster demo`: runs the main job once on an embedded server, and says what it proved."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from workers.cli import printing
from workers.cli.event import opened_file, read_lines
from workers.demo import WORKERS, Demo, Lines, Proof
from workers.embedded import EmbeddedServer
from workers.settings import Settings
from workers.stack import Stack

#: Signals that end the demo; all of them leave nothing behind.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", metavar="FILE", help="use this log (NDJSON, also .gz) instead of the seeded fleet")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: Settings) -> int:
    if options.input is not None:
        with opened_file(options.input):
            pass  # a file that is not there is an error now, not after a server was started
    with interruptible(), ExitStack() as resources:
        data_dir = resources.enter_context(tempfile.TemporaryDirectory(prefix="muster-demo-"))
        # What the demo shows must not depend on the settings of whoever runs it.
        stack = Stack(EmbeddedServer(Path(data_dir)), Settings(), log=printing.say, workers=WORKERS)
        resources.callback(uninterrupted, stack)
        printing.say(f"starting an embedded server and {WORKERS} worker processes in {data_dir}")
        stack.start()
        log = resources.enter_context(stack.open_log())
        demo = Demo(log, say=printing.say)
        held = demo.run(lines_of(options.input, log.limits.line_bytes) if options.input is not None else None)
    for line in table(demo.proofs):
        printing.say(line)
    failed = sum(not proof.held for proof in demo.proofs)
    print(f"demo: {len(demo.proofs) - failed} of {len(demo.proofs)} claims held")
    print("every law held" if held else "a law was broken: see the lines marked FAILED")
    return 0 if held else 1


def lines_of(name: str, longest: int) -> Lines:
    """The lines of a file, as often as they are asked for."""

    def lines() -> Iterator[tuple[int, bytes]]:
        with opened_file(name) as file:
            yield from read_lines(file, longest)

    return lines


def table(proofs: list[Proof]) -> list[str]:
    """The closing table, a line a proof."""
    width = max(len(proof.claim) for proof in proofs)
    rows = [f"  {'ok' if proof.held else 'FAILED':<7} {proof.claim:<{width}}  {proof.measured}" for proof in proofs]
    return ["", "what this run proved:", *rows, ""]


@contextmanager
def interruptible() -> Iterator[None]:
    """Every signal that ends the demo raises KeyboardInterrupt, so that what was started is stopped on the way out."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def uninterrupted(stack: Stack) -> None:
    """Stops the stack; a further Ctrl-C does not leave half of it behind."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    stack.stop()
    sys.stderr.flush()
