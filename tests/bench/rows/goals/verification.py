"""Everything is verified (folded, read a second time, digests, compared with what is stored), against rebuilding it."""

from __future__ import annotations

from tests.bench.arena import Arena
from tests.bench.row import Contestant, Measure, Ratio, Row
from tests.bench.rows.goals.rebuild import history, rebuilding


def verifying(commit: int) -> Contestant:
    def prepare(arena: Arena) -> Measure:
        made = history(arena, commit)

        def measure() -> float:
            made.rebuild()  # not timed: what another contestant deleted is there again
            return made.verify()

        return measure

    return Contestant(f"verify, commits of {commit}", prepare)


OUT_OF_REACH = (
    "a log is read twice, the second time by code that shares nothing with the fold and takes as long; "
    "what builds reads it once"
)
ROW = Row(
    "verification",
    "events/s",
    [contestant for commit in (1, 10, 100) for contestant in (rebuilding(commit), verifying(commit))],
    [
        Ratio(f"verify, commits of {commit}", f"rebuild, commits of {commit}", at_least=0.7, out_of_reach=OUT_OF_REACH)
        for commit in (1, 10, 100)
    ],
)
