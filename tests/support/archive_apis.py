"""The documented APIs of Wikimedia Commons, the Met and the Internet Archive, which name works and their files."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.support.provider_apis import matching
from tests.support.provider_server import Asked, ProviderServer, Said


def commons_file(number: int, extra: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A page of namespace 6 with ``imageinfo``; ``changes`` are of that."""
    known = {
        "ObjectName": f"Cat {number}",
        "LicenseShortName": "CC BY-SA 4.0",
        "License": "cc-by-sa-4.0",
        "LicenseUrl": "https://creativecommons.org/licenses/by-sa/4.0",
        "Artist": '<a href="//commons.wikimedia.org/wiki/User:Alice" title="User:Alice">Alice &amp; Bob</a>',
    } | dict(extra or {})
    info = {
        "user": "Alice",
        "size": 300_000,
        "width": 1200,
        "height": 800,
        "url": f"https://upload.wikimedia.org/wikipedia/commons/a/a9/Cat_{number}.jpg",
        "descriptionurl": f"https://commons.wikimedia.org/wiki/File:Cat_{number}.jpg",
        "sha1": f"{number:040x}",
        "mime": "image/jpeg",
        "extmetadata": {
            name: {"value": value, "source": "commons-desc-page"} for name, value in known.items()
        },
    } | changes
    return {"pageid": 1000 - number, "ns": 6, "title": f"File:Cat {number}.jpg", "imageinfo": [info]}


class CommonsApi(ProviderServer):
    """GET /w/api.php with generator=search; ``part`` is how many files get their imageinfo in one answer."""

    def __init__(self, files: Sequence[dict[str, Any]] = (), part: int | None = None) -> None:
        super().__init__()
        self.files, self.part = files, part

    @property
    def url(self) -> str:
        """What PIXTRAWL_PROVIDER_COMMONS_URL would be."""
        return f"{self.root}/w/api.php"

    def answer(self, asked: Asked) -> Said:
        """One batch of the generator, or a part of its properties."""
        query = asked.query
        if "@" not in asked.headers["user-agent"]:
            return Said("<html>Please set a user-agent and respect our robot policy</html>", 403)
        assert query["maxlag"] == "5"
        assert query["gsrnamespace"] == "6"
        found = matching(self.files, query["gsrsearch"].removeprefix("filetype:bitmap "))
        start, size = int(query.get("gsroffset", 0)), int(query["gsrlimit"])
        ranked = [{**file, "index": rank} for rank, file in enumerate(found, 1)][start : start + size]
        if not ranked:
            return Said({"batchcomplete": True})
        begun = int(query.get("iicontinue", 0))
        end = begun + (self.part or size)
        pages = [
            file if begun <= place < end else {key: file[key] for key in file if key != "imageinfo"}
            for place, file in enumerate(ranked)
        ]
        # Pages come by id, not by rank.
        said: dict[str, Any] = {"query": {"pages": sorted(pages, key=lambda page: page["pageid"])}}
        if end < len(ranked):
            said["continue"] = {"iicontinue": str(end), "continue": "||"} | (
                {"gsroffset": start} if start else {}
            )
        elif start + size < len(found):
            said |= {
                "continue": {"gsroffset": start + size, "continue": "gsroffset||"},
                "batchcomplete": True,
            }
        return Said(said)


def met_object(number: int, more: int = 0, **changes: Any) -> dict[str, Any]:
    """A record of /objects/ID with so many additional images."""
    return {
        "objectID": number,
        "isHighlight": False,
        "isPublicDomain": True,
        "primaryImage": f"https://images.metmuseum.org/CRDImages/ad/original/{number}.jpg",
        "primaryImageSmall": f"https://images.metmuseum.org/CRDImages/ad/web-large/{number}.jpg",
        "additionalImages": [
            f"https://images.metmuseum.org/CRDImages/ad/original/{number}_{extra}.jpg"
            for extra in range(1, more + 1)
        ],
        "title": f"Cat {number}",
        "artistDisplayName": "Utagawa Hiroshige",
        "objectURL": f"https://www.metmuseum.org/art/collection/search/{number}",
        "creditLine": "Rogers Fund, 1936",
        **changes,
    }


class MetApi(ProviderServer):
    """GET /search and /objects/ID; after ``patience`` requests its firewall refuses."""

    def __init__(self, records: Mapping[int, Any] | None = None, patience: int = 1_000_000) -> None:
        super().__init__()
        self.records, self.patience = records or {}, patience

    @property
    def url(self) -> str:
        """What PIXTRAWL_PROVIDER_MET_URL would be."""
        return f"{self.root}/public/collection/v1"

    def answer(self, asked: Asked) -> Said:
        """By path."""
        self.patience -= 1
        if self.patience < 0:
            return Said("<html>Incapsula incident ID: 1</html>", 403)
        path = asked.path.removeprefix("/public/collection/v1")
        if path == "/search":
            assert list(asked.query) == ["hasImages", "q"]
            ids = list(self.records) if matching(list(self.records.values()), asked.query["q"]) else None
            return Said({"total": len(ids or ()), "objectIDs": ids})
        record = self.records.get(int(path.rpartition("/")[2]))
        return Said({"message": "ObjectID not found"}, 404) if record is None else Said(record)


def archive_file(name: str, **changes: Any) -> dict[str, Any]:
    """A file of an item."""
    known = {"name": name, "source": "original", "format": "JPEG", "size": "300000", "sha1": "ab" * 20}
    return {**known, "width": "1200", "height": "800", **changes}


class ArchiveApi(ProviderServer):
    """GET /services/search/v1/scrape and /metadata/ID. ``items`` are results with ``files`` beside their fields."""

    def __init__(self, items: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__()
        self.items = items

    @property
    def url(self) -> str:
        """What PIXTRAWL_PROVIDER_ARCHIVE_URL would be."""
        return self.root

    def answer(self, asked: Asked) -> Said:
        """By path."""
        if asked.path != "/services/search/v1/scrape":
            identifier = asked.path.removeprefix("/metadata/")
            files = next((item["files"] for item in self.items if item.get("identifier") == identifier), None)
            return Said({} if files is None else {"files": files, "metadata": {"identifier": identifier}})
        count = int(asked.query["count"])
        if count < 100:
            return Said({"error": "count must be at least 100", "errorType": "RangeException"}, 400)
        query = asked.query["q"].removesuffix(" AND licenseurl:*")
        found = matching(self.items, query.removeprefix("mediatype:image AND (").removesuffix(")"))
        if query != asked.query["q"]:
            found = [item for item in found if item.get("licenseurl")]
        start = int(asked.query.get("cursor", "W0").removeprefix("W"))
        fields = asked.query["fields"].split(",")
        shown = [{key: item[key] for key in fields if key in item} for item in found[start : start + count]]
        said = {"items": shown, "count": len(shown), "total": len(found)}
        return Said(said | ({"cursor": f"W{start + count}"} if start + count < len(found) else {}))
