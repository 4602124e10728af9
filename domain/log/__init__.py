"""The log: its contract, the log on Redis Streams, and the log in memory."""

from domain.log.connection import Connecting, ConnectionState, connect
from domain.log.contract import Append, AsyncEventLog, EventLog, Expected, Forked, Head, Receipt
from domain.log.memory import MemoryLog
from domain.log.redis_streams import AsyncSessionLog, SessionLog, create_store
from domain.log.spooling.spool import Spool
from domain.log.subscribing.delivery import Delivery, SubscriptionPosition
from domain.log.subscribing.subscription import AsyncSubscription, Subscription

__all__ = [
    "Append",
    "AsyncEventLog",
    "AsyncSessionLog",
    "AsyncSubscription",
    "Connecting",
    "ConnectionState",
    "Delivery",
    "EventLog",
    "Expected",
    "Forked",
    "Head",
    "MemoryLog",
    "Receipt",
    "SessionLog",
    "Spool",
    "Subscription",
    "SubscriptionPosition",
    "connect",
    "create_store",
]
