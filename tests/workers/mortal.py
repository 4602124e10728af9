"""A worker process that dies of certain commits, as one does that runs out of memory: at once, and without a word.

    python -m tests.workers.mortal SESSION SEQ HOW        HOW: exit, hang, or raise

It is a real worker in all else. It dies only while the environment's MORTAL_FILE exists: so a cause can go away. One
that hangs says so first: by a file beside it, `<MORTAL_FILE>.met`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from domain.codec import Commit
from domain.session import Session
from projections import session_view
from workers.process import main

#: By its own name: the module that folds has it, and does not offer it to others.
fold = getattr(session_view, "fold")  # noqa: B009


def deadly(session: Session, commit: Commit) -> None:
    name, seq, how = sys.argv[1:]
    is_it = (commit.session, commit.first_seq) == (name, int(seq)) and not commit.skipped
    if is_it and Path(os.environ["MORTAL_FILE"]).exists():
        if how == "exit":
            os._exit(137)
        if how == "raise":
            raise MemoryError("too much of it")
        Path(f"{os.environ['MORTAL_FILE']}.met").touch()
        time.sleep(600)
    fold(session, commit)


if __name__ == "__main__":
    setattr(session_view, "fold", deadly)  # noqa: B010
    sys.exit(main())
