"""Commits of 100 events, four calls in flight, against a client in C that sends each event alone, in deep pipelines."""

from tests.bench.limits import bare_commits, redis_benchmark
from tests.bench.producing import tasks
from tests.bench.row import Ratio, Row

MUSTER = tasks("Muster, commits of 100, four in flight", 4, 200_000, commit=100)
LIMIT = redis_benchmark(pipeline=128, clients=50, count=200_000)
BARE = bare_commits(200_000)
OUT_OF_REACH = "the same calls sent bare, by no client at all, hardly reach it: hashing, log, feed, append-only file"

ROW = Row(
    "append, commits of 100, four calls in flight",
    "events/s",
    [MUSTER, LIMIT, BARE],
    [Ratio(MUSTER.name, LIMIT.name, at_least=2.0, out_of_reach=OUT_OF_REACH), Ratio(BARE.name, LIMIT.name)],
)
