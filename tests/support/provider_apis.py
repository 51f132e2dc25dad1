"""The documented APIs of Openverse, Europeana and Flickr, whose searches name images page by page."""

import math
import secrets
from collections.abc import Sequence
from typing import Any

from tests.support.provider_server import Asked, ProviderServer, Said

CC = "https://creativecommons.org"


def matching(entries: Sequence[dict[str, Any]], keyword: str) -> list[dict[str, Any]]:
    """The entries in which a word stands anywhere."""
    return [entry for entry in entries if keyword.lower() in str(entry).lower()]


def openverse_image(number: int, **changes: Any) -> dict[str, Any]:
    """A result as in ``api/examples/image_responses.py`` of Openverse."""
    return {
        "id": f"4bc43a04-ef46-4544-a0c1-{number:012d}",
        "title": f"Cat {number}",
        "indexed_on": "2022-08-27T17:39:48Z",
        "foreign_landing_url": f"https://www.flickr.com/photos/sean/{number}",
        "url": f"https://live.staticflickr.com/4065/{number}.jpg",
        "creator": "Sean MacEntee",
        "creator_url": "https://www.flickr.com/photos/18090920@N07",
        "license": "by",
        "license_version": "2.0",
        "license_url": f"{CC}/licenses/by/2.0/",
        "provider": "flickr",
        "source": "flickr",
        "category": None,
        "filesize": None,
        "filetype": "jpg",
        "tags": [{"accuracy": None, "name": "cat", "unstable__provider": "flickr"}],
        "attribution": f'"Cat {number}" by Sean MacEntee is licensed under CC BY 2.0.',
        "fields_matched": [],
        "mature": False,
        "height": 768,
        "width": 1024,
        "thumbnail": f"https://api.openverse.org/v1/images/{number}/thumb/",
        **changes,
    }


class OpenverseApi(ProviderServer):
    """GET /v1/images/ and POST /v1/auth_tokens/token/, with the limits of anonymous and registered applications."""

    LICENCES = frozenset({"by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd", "cc0", "pdm", "sampling+"})

    def __init__(
        self, images: Sequence[dict[str, Any]] = (), client: tuple[str, str] | None = None, depth: int = 240
    ) -> None:
        super().__init__()
        self.images, self.client, self.depth = images, client, depth
        self.tokens: set[str] = set()
        self.expires_in: Any = 36000
        self.page_count: Any = None

    @property
    def url(self) -> str:
        """What PIXTRAWL_PROVIDER_OPENVERSE_URL would be."""
        return f"{self.root}/v1"

    def answer(self, asked: Asked) -> Said:
        """By path."""
        return self._token(asked) if asked.path == "/v1/auth_tokens/token/" else self._images(asked)

    def _token(self, asked: Asked) -> Said:
        given = (asked.form.get("client_id"), asked.form.get("client_secret"))
        if asked.form.get("grant_type") != "client_credentials":
            return Said({"error": "unsupported_grant_type"}, 400)
        if given != self.client:
            return Said({"error": "invalid_client"}, 401)
        self.tokens.add(token := secrets.token_hex(8))
        return Said(
            {
                "access_token": token,
                "scope": "read write",
                "expires_in": self.expires_in,
                "token_type": "Bearer",
            }
        )

    def _images(self, asked: Asked) -> Said:
        authorization = asked.headers.get("authorization")
        if authorization and authorization.removeprefix("Bearer ") not in self.tokens:
            return Said({"detail": "Authentication credentials were not provided."}, 401)
        size, page = int(asked.query.get("page_size", 20)), int(asked.query.get("page", 1))
        if size > (50 if authorization else 20):
            return Said({"detail": "Ensure this value is less than or equal to 20."}, 401)
        if page > 20 or page * size > self.depth:
            return Said(
                {"detail": "Ensure this value is less than or equal to 240."}, 400 if authorization else 401
            )
        wanted = asked.query["license"].split(",") if "license" in asked.query else None
        if unknown := [word for word in wanted or () if word not in self.LICENCES]:
            return Said({"error": "InputError", "detail": f"License '{unknown[0]}' does not exist."}, 400)
        found = matching(self.images, asked.query["q"])
        found = [image for image in found if wanted is None or image["license"] in wanted]
        pages = min(20, math.ceil(min(len(found), self.depth) / size))
        return Said(
            {
                "result_count": len(found),
                "page_count": pages if self.page_count is None else self.page_count,
                "page_size": size,
                "page": page,
                "results": found[(page - 1) * size : page * size],
            }
        )


def europeana_item(number: int, **changes: Any) -> dict[str, Any]:
    """An item of profile ``rich``."""
    return {
        "id": f"/9200365/item_{number}",
        "type": "IMAGE",
        "title": [f"Cat {number}", f"Kat {number}"],
        "dcCreator": ["Henriëtte Ronner-Knip"],
        "dataProvider": ["Rijksmuseum"],
        "provider": ["Rijksmuseum"],
        "rights": ["http://creativecommons.org/publicdomain/mark/1.0/"],
        "edmIsShownBy": [f"http://lh3.example.org/{number}=s0.jpg"],
        "edmIsShownAt": [f"https://www.rijksmuseum.nl/{number}"],
        "guid": f"https://www.europeana.eu/item/9200365/item_{number}?utm_source=api&utm_medium=api&utm_campaign=s3cret",
        "score": 1.5,
        **changes,
    }


class EuropeanaApi(ProviderServer):
    """GET /record/v2/search.json, with key, cursor and reusability."""

    OPEN = ("publicdomain", "/by/", "/by-sa/")
    RESTRICTED = ("/by-nc", "/by-nd")

    def __init__(self, items: Sequence[dict[str, Any]] = (), key: str = "s3cret") -> None:
        super().__init__()
        self.items, self.key = items, key

    @property
    def url(self) -> str:
        """What PIXTRAWL_PROVIDER_EUROPEANA_URL would be."""
        return f"{self.root}/record/v2/search.json"

    def answer(self, asked: Asked) -> Said:
        """One page."""
        query = asked.query
        if query.get("wskey") != self.key:
            said = {
                "apikey": query.get("wskey"),
                "success": False,
                "error": f"Invalid API key: {query.get('wskey')}",
            }
            return Said(said, 401)
        if int(query["rows"]) > 100 or not query["query"].strip():
            return Said({"apikey": self.key, "success": False, "error": "Invalid query parameter."}, 400)
        assert query["qf"] == "TYPE:IMAGE"
        assert query["media"] == "true"
        found = matching(self.items, query["query"])
        if reusability := query.get("reusability"):
            signs = {"open": self.OPEN, "restricted": self.RESTRICTED}[reusability]
            found = [item for item in found if any(sign in str(item.get("rights")) for sign in signs)]
        start = 0 if query["cursor"] == "*" else int(query["cursor"].removeprefix("mark+"))
        end = start + int(query["rows"])
        said = {"apikey": self.key, "success": True, "itemsCount": end - start, "totalResults": len(found)}
        if end < len(found):
            said["nextCursor"] = f"mark+{end}"
        return Said(said | {"items": found[start:end]})


def flickr_photo(number: int, **changes: Any) -> dict[str, Any]:
    """A photo with the extras license, owner_name, url_o and url_l."""
    return {
        "id": str(number),
        "owner": "148578535@N03",
        "secret": "dcc9f61d9f",
        "server": "3855",
        "farm": 4,
        "title": f"Cat {number}",
        "ispublic": 1,
        "isfriend": 0,
        "isfamily": 0,
        "license": "4",
        "ownername": "A. Photographer",
        "url_o": f"https://live.staticflickr.com/3855/{number}_o.jpg",
        "height_o": 3000,
        "width_o": "4000",
        "url_l": f"https://live.staticflickr.com/3855/{number}_l.jpg",
        "height_l": 768,
        "width_l": 1024,
        **changes,
    }


class FlickrApi(ProviderServer):
    """GET /services/rest/ with flickr.photos.search and flickr.photos.licenses.getInfo; errors have status 200."""

    LICENCES = (
        (0, "All Rights Reserved", "https://www.flickrhelp.com/hc/en-us/articles/10710266545556"),
        (1, "CC BY-NC-SA 2.0", f"{CC}/licenses/by-nc-sa/2.0/"),
        (2, "CC BY-NC 2.0", f"{CC}/licenses/by-nc/2.0/"),
        (3, "CC BY-NC-ND 2.0", f"{CC}/licenses/by-nc-nd/2.0/"),
        (4, "CC BY 2.0", f"{CC}/licenses/by/2.0/"),
        (5, "CC BY-SA 2.0", f"{CC}/licenses/by-sa/2.0/"),
        (6, "CC BY-ND 2.0", f"{CC}/licenses/by-nd/2.0/"),
        (7, "No known copyright restrictions", "https://www.flickr.com/commons/usage/"),
        (8, "United States Government Work", "http://www.usa.gov/copyright.shtml"),
        (9, "Public Domain Dedication (CC0)", f"{CC}/publicdomain/zero/1.0/"),
        (10, "Public Domain Mark", f"{CC}/publicdomain/mark/1.0/"),
        (11, "CC BY 4.0", f"{CC}/licenses/by/4.0/"),
    )

    def __init__(self, photos: Sequence[dict[str, Any]] = (), key: str = "s3cret") -> None:
        super().__init__()
        self.photos, self.key = photos, key

    @property
    def url(self) -> str:
        """What PIXTRAWL_PROVIDER_FLICKR_URL would be."""
        return f"{self.root}/services/rest/"

    def answer(self, asked: Asked) -> Said:
        """By method."""
        query = asked.query
        assert query["format"] == "json"
        assert query["nojsoncallback"] == "1"
        if query["api_key"] != self.key:
            return Said(
                {"stat": "fail", "code": 100, "message": f"Invalid API Key ({query['api_key']} is unknown)"}
            )
        if query["method"] == "flickr.photos.licenses.getInfo":
            listed = [{"id": number, "name": name, "url": url} for number, name, url in self.LICENCES]
            return Said({"licenses": {"license": listed}, "stat": "ok"})
        wanted, size, page = query["license"].split(","), int(query["per_page"]), int(query["page"])
        found = [photo for photo in matching(self.photos, query["text"]) if photo.get("license") in wanted]
        # Behind the first 4,000 it begins to repeat the last page that there is.
        start = min((page - 1) * size, 4000 - size)
        counts = {
            "page": page,
            "pages": math.ceil(len(found) / size),
            "perpage": size,
            "total": str(len(found)),
        }
        return Said({"photos": counts | {"photo": found[start : start + size]}, "stat": "ok"})
