"""Openverse: openly licensed images of fifty collections.

https://api.openverse.org/v1/ has the parameters and fields. Limits are those of the API's own source, at
https://github.com/WordPress/openverse: ``api/constants/restricted_features.py`` has page sizes (20 anonymous, 50
authenticated, more for those who were granted it) and depth (240 results, unless granted),
``conf/settings/rest_framework.py`` and ``utils/throttle.py`` the rates and their headers. The terms
(https://docs.openverse.org/terms_of_service.html) forbid to use several machines to get round the limits: the pace
is the whole cluster's.
"""

import re
import time
from collections.abc import Mapping
from typing import Any

from worker.sources.fields import given, list_in, make_hit, text, variable, whole
from worker.sources.licences import WORDS, Licence
from worker.sources.provider import (
    Answer,
    Ask,
    Hit,
    Licences,
    Pace,
    Page,
    ProviderError,
    ProviderWait,
)

URL = "https://api.openverse.org/v1"
PAGES_MAX = 20
ANONYMOUS_SIZE = 20
SIZE = 48
"""Authenticated: not the 50 that are allowed, since five pages of 48 are just the 240 results that are."""
SIZE_MAX = 500
TOKEN_MARGIN_SECONDS = 60
WAIT_SECONDS_MAX = 3600
ANONYMOUS_PACE = Pace(20 / 60, per_day=200)
PACE = Pace(100 / 60, per_day=10_000)
UNWANTED = frozenset({"svg", "tif", "tiff", "pdf", "djvu"})
_RATE = re.compile(r"(\d+)/(s|m|h|d)[a-z]*")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _TokenExpiredError(ProviderError):
    """401 with a token: it may have expired early."""


class _TooDeepError(ProviderError):
    """No page is given out from here on."""


class Openverse:
    """Anonymous, or with the client id and secret of a registered application; keeps its token until it expires."""

    name = "openverse"

    def __init__(self, settings: Mapping[str, str]) -> None:
        """Take ``client_id`` and ``client_secret`` together, ``page_size`` if more was granted, ``url``."""
        fields = given(self.name, settings, "client_id", "client_secret", "page_size", "url")
        self.url = fields.get("url", URL).rstrip("/")
        self.client: dict[str, str] = {
            field: fields[field] for field in ("client_id", "client_secret") if field in fields
        }
        if len(self.client) == 1:
            names = " and ".join(variable(self.name, field) for field in ("client_id", "client_secret"))
            raise ProviderError(f"{names} go together, and only one of them is set")
        self.pace = PACE if self.client else ANONYMOUS_PACE
        size = whole(fields.get("page_size", SIZE if self.client else ANONYMOUS_SIZE))
        if size is None or size > (SIZE_MAX if self.client else ANONYMOUS_SIZE):
            raise ProviderError(
                f"{variable(self.name, 'page_size')} is from 1 to {ANONYMOUS_SIZE}, or {SIZE_MAX} with a client id"
            )
        self.size = size
        self._token, self._token_ends = "", 0.0

    def check(self, licences: Licences) -> None:
        """It filters by every word."""

    async def search(
        self, ask: Ask, keyword: str, licences: Licences, cursor: Mapping[str, Any], limit: int
    ) -> Page:
        """One page of GET /images/; a page that is not given out any more ends the results."""
        page = cursor.get("page", 1)
        params = {"q": keyword, "page": str(page), "page_size": str(self.size)}
        if licences:
            params["license"] = ",".join(sorted(licences.words))
        try:
            document = await self._ask(ask, params, page)
        except _TooDeepError:
            return Page([], None)
        results = list_in(document, "results", provider=self.name)
        pages = whole(document.get("page_count")) or PAGES_MAX
        goes_on = bool(results) and page < min(pages, PAGES_MAX)
        hits = [hit for result in results if (hit := _hit(result))]
        total = whole(document.get("result_count"))
        given_out = min(pages, PAGES_MAX) * self.size
        return Page(hits, {"page": page + 1} if goes_on else None, total and min(total, given_out))

    async def _ask(self, ask: Ask, params: Mapping[str, str], page: int) -> Any:
        """Ask with a token, and once more with a new one when the old one is refused."""
        url = f"{self.url}/images/"
        for _ in range(2 if self.client else 1):
            headers: dict[str, str] = {}
            if self.client:
                headers["Authorization"] = f"Bearer {await self._fresh_token(ask)}"
            try:
                return await ask(url, params, headers=headers, heed=lambda answer: self._heed(answer, page))
            except _TokenExpiredError as error:
                self._token_ends, refused = 0.0, error
        raise refused

    async def _fresh_token(self, ask: Ask) -> str:
        """OAuth2 client credentials: https://docs.openverse.org/api/reference/authentication_and_throttling.html."""
        if time.monotonic() >= self._token_ends:
            form = {"grant_type": "client_credentials", **self.client}
            said = await ask(f"{self.url}/auth_tokens/token/", form=form, heed=self._heed_token)
            token = said.get("access_token") if isinstance(said, dict) else None
            if not isinstance(token, str) or not token:
                raise ProviderError("openverse answered a request for a token without one")
            self._token = token
            self._token_ends = time.monotonic() + (whole(said.get("expires_in")) or 0) - TOKEN_MARGIN_SECONDS
        return self._token

    def _heed_token(self, answer: Answer) -> None:
        if answer.status in (400, 401, 403):
            names = " and ".join(variable(self.name, field) for field in self.client)
            raise ProviderError(f"openverse does not accept {names}: {_detail(answer)}")
        _heed_rate(answer)

    def _heed(self, answer: Answer, page: int) -> None:
        _heed_rate(answer)
        if answer.status == 401 and self.client:
            raise _TokenExpiredError(f"openverse refuses the token that it gave out: {_detail(answer)}")
        if answer.status in (400, 401, 403) and page > 1:
            raise _TooDeepError(_detail(answer))
        if answer.status in (400, 401, 403):
            raise ProviderError(f"openverse refuses the search: {_detail(answer)}")


def _heed_rate(answer: Answer) -> None:
    """A refusal without Retry-After waits for the period of the limit that is used up.

    X-RateLimit-Limit-SCOPE is ``20/min``, X-RateLimit-Available-SCOPE how many are left.
    """
    if answer.status != 429 or "retry-after" in answer.headers:
        return
    limits = {
        name.removeprefix("x-ratelimit-limit-"): rate
        for name, rate in answer.headers.items()
        if name.startswith("x-ratelimit-limit-")
    }
    used_up = [
        rate for scope, rate in limits.items() if answer.headers.get(f"x-ratelimit-available-{scope}") == "0"
    ]
    periods = [_SECONDS[found[2]] for rate in used_up if (found := _RATE.fullmatch(rate.strip()))]
    if periods:
        raise ProviderWait(min(*periods, WAIT_SECONDS_MAX), f"openverse allows {' and '.join(used_up)}")


def _hit(result: Any) -> Hit | None:
    if not isinstance(result, dict) or str(result.get("filetype")).lower() in UNWANTED:
        return None
    word = str(result.get("license")).lower()
    licence = Licence(
        word if word in WORDS else None, text(result.get("license_version")), text(result.get("license_url"))
    )
    return make_hit(
        url=result.get("url"),
        provider_id=result.get("id"),
        source_page=result.get("foreign_landing_url"),
        licence=licence,
        creator=result.get("creator"),
        attribution=result.get("attribution"),
        title=result.get("title"),
        width=result.get("width"),
        height=result.get("height"),
    )


def _detail(answer: Answer) -> str:
    """What the API says: ``detail``, or OAuth2's ``error_description`` or ``error``; lists and fields among it."""
    said = answer.document if isinstance(answer.document, dict) else {}
    words = (text(said.get(key)) for key in ("detail", "error_description", "error"))
    return next((word for word in words if word), f"status {answer.status}")
