"""Sources of candidates, one file for each kind: a cursor that yields candidates and its next place.

A source never writes a row: whoever advances it does, in one guarded step.
"""
