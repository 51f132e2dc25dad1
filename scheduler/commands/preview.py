"""``--dry-run``: the first results of a search, and what the job would cost at most. Writes nothing."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from scheduler.commands.asked import Asked
from scheduler.connect import open_database
from scheduler.printing import clipped, count, counted, print_json, print_table

RESULTS_SHOWN = 5
COLUMNS = ("KEYWORD", "PROVIDER", "LICENCE", "CREATOR", "URL", "SOURCE PAGE")
SPARE = ("CREATOR", "SOURCE PAGE", "PROVIDER")
FAILED = 1


def show_preview(
    asked: Asked, project: str | None, user: str | None, max_images: int | None, *, as_json: bool
) -> int:
    """Ask, and print what a search would begin with; the exit code."""
    from models.database import transaction
    from scheduler.enqueue import find_owner
    from worker.sources.preview import preview

    with open_database() as (settings, engine):
        search = asked.search(settings)
        with transaction(engine) as session:
            owner = find_owner(session, settings, project, user)
        previews = asyncio.run(preview(settings, search.keywords, search.providers, search.licences, say))
    wanted = max_images or search.max_images
    document = {
        "results": [asdict(one) for one in previews],
        "max_images": wanted,
        "credits_per_image": settings.credits_per_image,
        "credits_max": wanted * settings.credits_per_image,
        "balance": owner.balance,
    }
    if as_json:
        print_json(document)
    else:
        print_results(document)
    return FAILED if all(one.error for one in previews) else 0


def print_results(document: Mapping[str, Any]) -> None:
    """The first hits of each keyword, what could not be asked, and the price."""
    rows: list[Sequence[str]] = []
    for one in document["results"]:
        if one["error"]:
            say(f"{one['error']} ('{one['keyword']}').")
        elif not one["hits"]:
            say(f"{one['provider']} has nothing for '{one['keyword']}'.")
        rows += [
            (
                clipped(one["keyword"]),
                one["provider"],
                " ".join(part for part in (hit["licence"], hit["licence_version"]) if part) or "unknown",
                clipped(hit["creator"] or ""),
                hit["url"],
                hit["source_page"] or "",
            )
            for hit in one["hits"][:RESULTS_SHOWN]
        ]
    if rows:
        print_table(COLUMNS, rows, spare=SPARE)
    say(
        f"{counted(document['max_images'], 'image')} would cost {count(document['credits_max'])} credits at most; "
        f"the account has {count(document['balance'])}. Nothing was written."
    )


def say(sentence: str) -> None:
    """Talk goes to standard error."""
    click.echo(sentence, err=True)
