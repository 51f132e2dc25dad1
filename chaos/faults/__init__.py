"""The faults, by noun. Every module here is loaded; a function with chaos.registry's decorator is a fault."""
