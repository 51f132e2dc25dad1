"""A job that its owner cannot pay: real scheduler, worker and payment service, one command."""

import json
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from models.database import transaction
from models.members import create_profile
from models.refills import configure_refill
from scheduler.cli import main
from tests.support.crawling import check_books, query
from tests.support.payment_service import SECRET, PaymentService
from tests.support.processes import call, environment
from tests.support.site import Site

ADA = "ada@example.invalid"


def run_with(
    engine: Engine, services: Any, database_url: str, folder: Path, *answers: str
) -> tuple[Any, Any]:
    """Crawl 40 images with 10 credits and refills of 15; (the command, the payment service afterwards)."""
    with transaction(engine) as session:
        user_id = create_profile(session, ADA, bonus=10)
        assert user_id is not None
        configure_refill(session, user_id, enabled=True, threshold=5, amount=15)
    with Site() as site, PaymentService(*answers) as service:
        urls = site.write_list(folder / "urls.txt", free=40, held=0)
        given = {"database_url": database_url, "redis_url": services.redis_url, "user": ADA}
        paid = {"payment_url": service.url, "payment_secret": SECRET}
        shell = environment(folder / "home", **given, **paid)
        return call(folder, shell, "run", urls, "--json"), service


def test_a_job_goes_on_with_what_its_owner_buys(
    engine, services, database_url, tmp_path, monkeypatch, capsys
):
    """Blocked, refilled, resumed, twice; one answer is lost on the way: all 40 images, each paid for once."""
    command, service = run_with(engine, services, database_url, tmp_path, "lost", "paid")
    assert command.process.returncode == 0, command.errors
    job = json.loads(command.output)
    assert (job["status"], job["valid_images"], job["credits"]["charged"]) == ("completed", 40, 40)
    refills = query(engine, "SELECT amount, status FROM credit_transactions WHERE refill")
    assert refills == [(15, "completed")] * len(service.charged)
    assert 2 <= len(refills) <= 3
    assert (service.credits, len(service.asked)) == ([15] * len(refills), len(refills) + 1)
    [(balance,)] = query(engine, "SELECT current_balance FROM credit_accounts")
    assert balance == 10 + 15 * len(refills) - 40
    check_books(engine)
    monkeypatch.setenv("PIXTRAWL_DATABASE_URL", database_url)
    monkeypatch.setenv("PIXTRAWL_REDIS_URL", services.redis_url)
    assert main(["credits", "audit"]) == 0
    assert "No difference" in capsys.readouterr().out


def test_a_decline_ends_the_run_with_the_way_out(engine, services, database_url, tmp_path):
    """When nobody pays, the command says so instead of waiting; what could be paid for is kept."""
    command, service = run_with(engine, services, database_url, tmp_path, "declined")
    assert command.process.returncode == 1
    assert "blocked: out of credits: 10 images accepted. Add credits" in command.errors
    assert len(service.asked) == 1
    assert query(engine, "SELECT status FROM credit_transactions WHERE refill") == [("failed",)]
    titles = [title for (title,) in query(engine, "SELECT title FROM notifications ORDER BY title")]
    assert titles == ["Auto-refill declined", "Out of credits"]
    check_books(engine)
