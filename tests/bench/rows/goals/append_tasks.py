"""64 producers of one asyncio client, one event an append: group commit in one partition, and in all 32."""

from tests.bench.limits import bare_groups, redis_benchmark, tasks_that_wait
from tests.bench.producing import tasks
from tests.bench.row import Ratio, Row

ONE = tasks("64 tasks, one partition", 64, 32_000, partition=3)
ALL = tasks("64 tasks, all partitions", 64, 32_000)
LIMIT = redis_benchmark(pipeline=16, clients=1, count=100_000)
BARE = bare_groups(64_000)
WAITING = tasks_that_wait(64, 100_000)
OUT_OF_REACH = "the same calls of 64 sent bare, by no client at all, stay far below it"
OUT_OF_REACH_ALL = "the same events sent bare, in calls to one partition, hardly reach it; to 32 they take 32 calls"

ROW = Row(
    "append, one event each, 64 producers of one asyncio client",
    "events/s",
    [ONE, ALL, LIMIT, BARE, WAITING],
    [
        Ratio(ONE.name, LIMIT.name, at_least=0.6, out_of_reach=OUT_OF_REACH),
        Ratio(ALL.name, LIMIT.name, at_least=0.35, out_of_reach=OUT_OF_REACH_ALL),
        Ratio(BARE.name, LIMIT.name),
        Ratio(WAITING.name, LIMIT.name),
    ],
)
