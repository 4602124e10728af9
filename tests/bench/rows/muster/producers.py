"""Single events by 1, 8, 64 and 512 producers at a time, threads and tasks, in all partitions."""

from tests.bench.limits import redis_benchmark
from tests.bench.producing import tasks, threads
from tests.bench.row import Ratio, Row, point

COUNTS = (1, 8, 64, 512)
TASKS = [tasks(point("tasks", count), count, 4_000 if count == 1 else 16_000) for count in COUNTS]
THREADS = [threads(point("threads", count), count, 4_000 if count == 1 else 8_000) for count in COUNTS]
LIMIT = redis_benchmark(pipeline=16, clients=1, count=50_000)

ROW = Row(
    "append, one event each, by so many producers at a time",
    "events/s",
    [*TASKS, *THREADS, LIMIT],
    [Ratio(contestant.name, LIMIT.name) for contestant in (*TASKS, *THREADS)],
    axis="producers",
    rounds=3,
    is_quick=False,
)
