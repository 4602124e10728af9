"""64 producer threads that share one blocking log, one event an append."""

from tests.bench.limits import redis_benchmark, threads_that_wait
from tests.bench.producing import threads
from tests.bench.row import Ratio, Row

ONE = threads("64 threads, one partition", 64, 16_000, partition=3)
ALL = threads("64 threads, all partitions", 64, 16_000)
LIMIT = redis_benchmark(pipeline=16, clients=1, count=100_000)
WAITING = threads_that_wait(64, 32_000)
OUT_OF_REACH = "64 threads that only wait for one another, and send nothing, hardly reach it"

ROW = Row(
    "append, one event each, 64 threads",
    "events/s",
    [ONE, ALL, LIMIT, WAITING],
    [
        Ratio(ONE.name, LIMIT.name, at_least=0.25, out_of_reach=OUT_OF_REACH),
        Ratio(ALL.name, LIMIT.name, at_least=0.25, out_of_reach=OUT_OF_REACH),
        Ratio(WAITING.name, LIMIT.name),
    ],
)
