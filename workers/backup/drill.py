"""A restore that touches nothing: into a server of its own, in a folder of its own, where it is folded and thrown
away."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from domain.errors import Damaged
from domain.log import Connecting, SessionLog, connect
from projections import session_view
from projections.session_view import Folding
from workers.backup.restoring import Restored, Restoring
from workers.embedded import EmbeddedServer
from workers.pacing import Pace


def drill(folder: Path, *, until_ms: int | None, pace: Pace, say: Callable[[str], None]) -> Restored:
    """Restores a backup and folds every session of it as workers would. Raises as `Restoring`, and Damaged for the
    first session that does not fold, unless the backup says so of it.
    """
    with tempfile.TemporaryDirectory(prefix="muster-drill-") as temporary, EmbeddedServer(Path(temporary)) as server:
        connecting = Connecting(server.url)
        with closing(connect(connecting)) as client:
            restoring = Restoring(
                client, folder, environment="drill", namespace="drill", partitions=None, until_ms=until_ms, pace=pace
            )
            restored = restoring.run()
        with SessionLog.open(connecting, environment="drill", namespace="drill") as log:
            say("restored; folding every session")
            _fold(log, restored)
    return restored


def _fold(log: SessionLog, restored: Restored) -> None:
    events = sessions = 0
    for session in log.sessions():
        folding = Folding(session_view.initial(session))
        folding.advance(log.read(session))
        sessions, events = sessions + 1, events + folding.view.seq
    if (sessions, events) != (restored.sessions, restored.events):
        raise Damaged("BACKUP_DAMAGED", f"{events} events in {sessions} sessions came back, not {restored.events}")
