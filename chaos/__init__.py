"""The fault harness, ``make chaos``: a whole system on loopback, what breaks it, and the check afterwards.

It is no part of the program and not in its wheel; whatever it starts, it ends.
"""
