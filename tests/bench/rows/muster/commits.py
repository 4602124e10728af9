"""Commits of 10, 100 and 1,000 events, one call after another and four in flight."""

from tests.bench.limits import redis_benchmark
from tests.bench.producing import tasks
from tests.bench.row import Ratio, Row

SIZES = (10, 100, 1000)
ALONE = [tasks(f"commits of {size}", 1, 20_000 * size // 10, commit=size) for size in (10, 100)]
ALONE.append(tasks("commits of 1000", 1, 200_000, commit=1000))
FLIGHT = [
    tasks(f"commits of {size}, four in flight", 4, 60_000 if size == 10 else 200_000, commit=size) for size in SIZES
]
LIMIT = redis_benchmark(pipeline=128, clients=50, count=100_000)

ROW = Row(
    "append by the size of a commit",
    "events/s",
    [*ALONE, *FLIGHT, LIMIT],
    [Ratio(contestant.name, LIMIT.name) for contestant in (*ALONE, *FLIGHT)],
    rounds=3,
    is_quick=False,
)
