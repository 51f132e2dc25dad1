"""Scrapy's images pipeline over a list: one item for each URL. Run by the Python of .venv-bench.

The pipeline decodes each picture and stores it as a JPEG that it encoded anew. Every setting that is not about the
number of connections is Scrapy's own.
"""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import scrapy  # type: ignore[import-not-found] # it is in .venv-bench only.
from scrapy.crawler import CrawlerProcess  # type: ignore[import-not-found]


class Pictures(scrapy.Spider):  # type: ignore[misc]
    """Yields an item with one picture for each URL."""

    name = "pictures"
    urls: list[str]

    async def start(self) -> AsyncIterator[Any]:
        """Items need no page that they were found on."""
        for url in self.urls:
            yield {"image_urls": [url]}


def main(list_file: str, folder: str, connections: str) -> None:
    """Say that all is imported, wait for a line, crawl, print how many pictures were stored."""
    urls = Path(list_file).read_text("utf-8").split()
    process = CrawlerProcess(
        {
            "ITEM_PIPELINES": {"scrapy.pipelines.images.ImagesPipeline": 1},
            "IMAGES_STORE": folder,
            "CONCURRENT_REQUESTS": int(connections),
            "CONCURRENT_REQUESTS_PER_DOMAIN": int(connections),
            "CONCURRENT_ITEMS": int(connections),
            "DOWNLOAD_DELAY": 0,
            "TELNETCONSOLE_ENABLED": False,
            "LOG_LEVEL": "ERROR",
        }
    )
    crawler = process.create_crawler(Pictures)
    process.crawl(crawler, urls=urls)
    print("ready", flush=True)
    sys.stdin.readline()
    process.start()
    print(crawler.stats.get_value("file_status_count/downloaded", 0), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
