"""One archive of everything that somebody needs who was not there: collected within a time, bounded, without secrets.

Each part is collected for itself, so that one that fails or hangs keeps no other from being there; the manifest says of
each what became of it. No event's data, no view and no argument of a command is in any part.
"""
