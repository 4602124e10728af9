"""Health: every part of a store and its host judged for itself, within a time, and by nobody's own word.

A part that does not answer is *down*; one that cannot be seen because Redis is down is *unknown*, and looks no worse
for it. A look ends after `health.timeout_s`, whatever hangs: each probe has a thread and connections of its own.
"""
