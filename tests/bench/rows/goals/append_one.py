"""One producer that appends one event and waits for the receipt, over and over.

Events are made beforehand on both sides; what is timed is checking, encoding, the call, and reading the receipt.
"""

from tests.bench.limits import bare_call, redis_py_xadd
from tests.bench.producing import one_producer
from tests.bench.row import Ratio, Row

COUNT = 8_000
MUSTER = one_producer("Muster", COUNT, lambda log, session, event: log.append(session, event))
LIMIT = redis_py_xadd(COUNT)
BARE = bare_call(COUNT)
OUT_OF_REACH = (
    "the same call sent bare, by no client at all, hardly reaches it: the function checks, "
    "and writes log, head, feed and total, where XADD writes once"
)

ROW = Row(
    "append, one event a call, one connection",
    "events/s",
    [MUSTER, LIMIT, BARE],
    [
        Ratio(MUSTER.name, LIMIT.name, at_least=0.8, out_of_reach=OUT_OF_REACH),
        Ratio(BARE.name, LIMIT.name),
        Ratio(MUSTER.name, BARE.name),
    ],
)
