"""From a message to a settled chunk: fetch, inspect, store, write. Imports models, never scheduler."""
