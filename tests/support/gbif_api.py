"""The documented API of GBIF's occurrences, for the provider that docs/sources.md shows."""

from collections.abc import Sequence
from typing import Any

from tests.support.provider_apis import matching
from tests.support.provider_server import Asked, ProviderServer, Said


def occurrence(number: int, images: int = 1) -> dict[str, Any]:
    """A record with so many media."""
    media = {
        "type": "StillImage",
        "format": "image/jpeg",
        "references": f"https://www.inaturalist.org/photos/{number}",
        "creator": "Ada",
        "license": "http://creativecommons.org/licenses/by-nc/4.0/",
    }
    urls = [f"https://photos.example.org/{number}/{image}.jpg" for image in range(1, images + 1)]
    return {
        "key": number,
        "scientificName": "Felis catus",
        "media": [{**media, "identifier": url} for url in urls],
    }


class GbifApi(ProviderServer):
    """GET /v1/occurrence/search."""

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        super().__init__()
        self.records = records

    @property
    def url(self) -> str:
        """What PIXTRAWL_PROVIDER_GBIF_URL would be."""
        return f"{self.root}/v1"

    def answer(self, asked: Asked) -> Said:
        """One page."""
        offset, limit = int(asked.query["offset"]), int(asked.query["limit"])
        assert limit <= 300
        found = matching(self.records, asked.query["q"])
        said = {
            "offset": offset,
            "limit": limit,
            "endOfRecords": offset + limit >= len(found),
            "count": len(found),
        }
        return Said(said | {"results": found[offset : offset + limit]})
