"""The providers that a process has open, each with its way to the web at its pace."""

import httpx
from redis.asyncio import Redis

from models.settings import Settings
from worker.pace import Pacer
from worker.sources.asking import Asking
from worker.sources.provider import Ask, Provider, open_provider


class Providers:
    """Opened once each: a provider may keep a token."""

    def __init__(self, settings: Settings, client: httpx.AsyncClient, redis: Redis) -> None:
        self._settings = settings
        self._client = client
        self._redis = redis
        self._opened: dict[str, tuple[Provider, Ask]] = {}

    def open(self, name: str) -> tuple[Provider, Ask]:
        """A provider and how it asks. Raises ProviderError."""
        if name not in self._opened:
            provider = open_provider(name, self._settings)
            given = self._settings.providers.get(name, {})
            identity = repr(sorted((field, word.get_secret_value()) for field, word in given.items()))
            pacer = Pacer(self._redis, name, provider.pace, identity)
            self._opened[name] = provider, Asking(self._client, pacer, name, self._settings)
        return self._opened[name]
