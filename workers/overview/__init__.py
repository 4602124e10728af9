"""What `muster top` shows: server, fleet, lag, hot sessions, memory by kind of key, slow commands.

No KEYS, SCAN or MONITOR: what is hot is read from the end of the feeds, and memory is estimated from sessions that are
drawn by chance from the registry.
"""
