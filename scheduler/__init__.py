"""What runs next: the command line, and one leader that splits, dispatches, rescues and closes.

Imports worker and models; nothing imports it.
"""
