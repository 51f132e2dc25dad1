"""A request becomes one pending job, or is refused in one sentence and leaves nothing behind."""

import io
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from models.database import make_engine, transaction
from models.outcomes import Verification
from models.reports import job_report
from models.settings import read_settings
from scheduler.cli import main
from scheduler.copying import RequestError
from scheduler.enqueue import submit
from tests.support.factories import create_profile, create_project
from tests.support.processes import PROGRAM, started
from worker.sources.url_list import read_step
from worker.store import StoreError, open_store

HEADER_ONLY = {"verification": Verification.HEADER}
USER = "ada@example.invalid"
GOOD = b"http://a.example/1.jpg\n"


@pytest.fixture
def member(session):
    """A user with 100 credits."""
    return create_profile(session, USER, balance=100, commit=True)


@pytest.fixture
def command_line(monkeypatch, services, database_url, tmp_path, member):
    """Call the command line as that user, on the fresh database and a fresh store."""
    monkeypatch.setenv("PIXTRAWL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIXTRAWL_STORE_URL", (tmp_path / "store").as_uri())
    monkeypatch.setenv("PIXTRAWL_DATABASE_URL", database_url)
    monkeypatch.setenv("PIXTRAWL_REDIS_URL", services.redis_url)
    monkeypatch.setenv("PIXTRAWL_USER", USER)
    monkeypatch.chdir(tmp_path)
    return main


@pytest.fixture
def configured(command_line):
    """The settings of that command line."""
    return read_settings()


def traces(engine, folder):
    """Everything that a request could leave: rows by table, and files in the store."""
    with transaction(engine) as session:
        rows = {
            table: session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
            for table in ("crawl_jobs", "projects", "activity_logs", "job_chunks", "credit_transactions")
        }
    return rows, sorted(path for path in folder.rglob("*") if path.is_file())


def stored_candidates(settings, engine, job_id):
    """What the scheduler will read from the job's input."""
    with transaction(engine) as session:
        source = session.execute(
            text("SELECT source FROM crawl_jobs WHERE id = :id"), {"id": job_id}
        ).scalar_one()
    candidates, _, exhausted = read_step(open_store(settings.store), source, {}, 1000)
    assert exhausted
    return source, [(candidate.position, candidate.url, candidate.line) for candidate in candidates]


REFUSED_INPUTS = {
    "empty": (b"", "There is no URL in list.txt"),
    "comments": (b"# http://a.example/1\n\n   \n", "There is no URL in list.txt"),
    "prose": (b"birds\nand more birds\nftp://a.example/1\n", "There is no URL in list.txt"),
    "markup": (b'<html><a href="http://a.example/1">x</a></html>\n', "There is no URL in list.txt"),
    "nul at the start": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "list.txt is not text"),
    "nul far behind": (GOOD * 60_000 + b"\0", "list.txt is not text"),
    "utf-16": ("http://a.example/1\n".encode("utf-16"), "list.txt is UTF-16 text: save it as UTF-8"),
    "binary": (bytes(range(1, 256)) * 20, "list.txt is not text in UTF-8"),
}


def refused(command_line, capsys, arguments, sentence):
    """The command ends with exit code 2 and this one sentence on standard error."""
    assert command_line(["submit", *arguments]) == 2, arguments
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"pixtrawl: {sentence}")
    assert printed.err.count("\n") == 1


def test_inputs_that_are_refused(command_line, engine, tmp_path, capsys):
    """What is not a list of URLs is refused with exit code 2 and one sentence; no row and no object is left."""
    before = traces(engine, tmp_path / "store")
    for content, sentence in REFUSED_INPUTS.values():
        (tmp_path / "list.txt").write_bytes(content)
        refused(command_line, capsys, ["list.txt"], sentence)
        assert traces(engine, tmp_path / "store") == before, sentence


REFUSED_REQUESTS = {
    "missing": (["nowhere.txt"], "nowhere.txt does not exist"),
    "folder": (["."], ". is a folder"),
    "below a file": (["good.txt/list.txt"], "good.txt/list.txt cannot be read (Not a directory)"),
    "one of two": (["good.txt", "nowhere.txt"], "nowhere.txt does not exist"),
    "standard input twice": (["-", "-"], "Standard input (-) can be given only once"),
    "priority above": (["good.txt", "--priority", "11"], "The priority is 0 to 10"),
    "priority below": (["good.txt", "--priority", "-1"], "The priority is 0 to 10"),
    "priority in words": (["good.txt", "--priority", "high"], "Invalid value for '--priority'"),
    "no images": (["good.txt", "--max-images", "0"], "The number of images is 1 to"),
    "too many images": (["good.txt", "--max-images", "99999999999"], "The number of images is 1 to"),
    "long name": (
        ["good.txt", "--name", "x" * 101],
        "A job's name has 1 to 100 characters; this one has 101",
    ),
    "blank name": (["good.txt", "--name", " "], "A job's name has 1 to 100 characters"),
    "unknown project": (["good.txt", "--project", "fish"], "There is no project fish"),
    "unknown project id": (["good.txt", "--project", "9999"], "There is no project 9999"),
    "unknown user": (["good.txt", "--user", "eve@example.invalid"], "There is no user eve@example.invalid"),
    "no input": ([], "There is nothing to crawl"),
    "half an address": (["https://[x/a.csv"], "https://[x/a.csv cannot be read"),
}


def test_requests_that_are_refused(command_line, engine, tmp_path, capsys):
    """A wrong option or a file that cannot be read is refused with exit code 2; nothing is written."""
    (tmp_path / "good.txt").write_bytes(GOOD)
    before = traces(engine, tmp_path / "store")
    for arguments, sentence in REFUSED_REQUESTS.values():
        refused(command_line, capsys, arguments, sentence)
        assert traces(engine, tmp_path / "store") == before, sentence


def test_who_cannot_pay(command_line, configured, engine, session, tmp_path):
    """Without credits, without an account, or in somebody else's name nothing is queued."""
    (tmp_path / "good.txt").write_bytes(GOOD)
    poor = create_profile(session, "poor@example.invalid", balance=1, commit=True)
    pond = create_project(session, poor, "Pond", commit=True)
    session.execute(text("INSERT INTO profiles (email) VALUES ('none@example.invalid')"))
    session.commit()
    dear = configured.model_copy(update={"credits_per_image": 2})
    before = traces(engine, tmp_path / "store")
    for arguments, sentence in (
        ({"user": "poor@example.invalid"}, "poor@example.invalid has 1 credits and one image costs 2"),
        ({"project": str(pond.id)}, "poor@example.invalid has 1 credits and one image costs 2"),
        ({"project": "Pond"}, "There is no project Pond"),
        ({"user": "none@example.invalid"}, "none@example.invalid has no credit account"),
        ({"user": USER, "project": str(pond.id)}, f"Pond belongs to poor@example.invalid, not to {USER}"),
    ):
        with pytest.raises(RequestError, match=sentence):
            submit(dear, engine, ["good.txt"], **arguments)
    assert traces(engine, tmp_path / "store") == before


def test_a_store_that_cannot_be_written(configured, engine, tmp_path):
    """A store that fails leaves no row."""
    (tmp_path / "good.txt").write_bytes(GOOD)
    (tmp_path / "full").write_bytes(b"")
    blocked = configured.model_copy(update={"store_url": (tmp_path / "full").as_uri()})
    before = traces(engine, tmp_path / "store")
    with pytest.raises(StoreError):
        submit(blocked, engine, ["good.txt"])
    assert traces(engine, tmp_path / "store") == before


def test_a_row_that_cannot_be_written(configured, engine, tmp_path):
    """When the database refuses the row at the end, the copied input is deleted again."""
    (tmp_path / "good.txt").write_bytes(GOOD)
    with transaction(engine) as session:
        session.execute(text("ALTER TABLE crawl_jobs ADD CONSTRAINT closed CHECK (id < 0)"))
    before = traces(engine, tmp_path / "store")
    with pytest.raises(Exception, match="closed"):
        submit(configured, engine, ["good.txt"])
    assert traces(engine, tmp_path / "store") == before


def test_one_line_that_is_no_url_stops_nothing(configured, engine, tmp_path):
    """BOM, CRLF, comments, Latin-1 and bad lines are taken: each line that says something is a candidate."""
    (tmp_path / "list.txt").write_bytes(
        b"\xef\xbb\xbf# birds\r\nhttp://a.example/1\r\n\r\nnonsense\r\nhttp://a.example/caf\xe9\r\n  http://a.example/2"
    )
    submission = submit(configured, engine, [str(tmp_path / "list.txt")])
    source, candidates = stored_candidates(configured, engine, submission.job_id)
    assert candidates == [
        (0, "http://a.example/1", 2),
        (1, "nonsense", 4),
        (2, "http://a.example/caf\ufffd", 5),
        (3, "http://a.example/2", 6),
    ]
    assert submission.candidates == 4
    assert source["files"] == [{"name": "list.txt", "bytes": 87, "candidates": 4}]


def test_the_row_says_what_was_asked(configured, engine, session, member, tmp_path):
    """Options end in the job's row, and its images go to its own prefix of the store unless a folder is given."""
    project = create_project(session, member, "Birds", commit=True)
    (tmp_path / "list.txt").write_bytes(GOOD * 3)
    plain = submit(configured, engine, ["list.txt"])
    asked = submit(
        configured,
        engine,
        ["list.txt"],
        name="Herons",
        project="Birds",
        max_images=2,
        priority=9,
        folder="file:///somewhere/else",
        **HEADER_ONLY,
    )
    with transaction(engine) as reading:
        first, second = job_report(reading, plain.job_id), job_report(reading, asked.job_id)
    names = (
        "name",
        "project",
        "user",
        "priority",
        "max_images",
        "total_images",
        "status",
        "store_url",
        "verification",
    )
    images = f"{(tmp_path / 'store').as_uri()}/jobs/{plain.job_id}"
    assert [first[name] for name in names] == [
        "list.txt",
        "default",
        USER,
        5,
        3,
        3,
        "pending",
        images,
        "full",
    ]
    elsewhere = "file:///somewhere/else"
    assert [second[name] for name in names] == [
        "Herons",
        "Birds",
        USER,
        9,
        2,
        3,
        "pending",
        elsewhere,
        "header",
    ]
    assert second["project_id"] == project.id


def test_the_default_project_is_made_once_for_each_user(configured, engine, session, tmp_path):
    """Each user's first job makes a project of their own, and later jobs go there."""
    (tmp_path / "list.txt").write_bytes(GOOD)
    create_profile(session, "bob@example.invalid", balance=5, commit=True)
    for user in (None, USER, "bob@example.invalid", "bob@example.invalid"):
        submit(configured, engine, ["list.txt"], user=user)
    with transaction(engine) as reading:
        found = reading.execute(
            text(
                "SELECT u.email, p.name, count(*) FROM crawl_jobs j JOIN projects p ON p.id = j.project_id "
                "JOIN profiles u ON u.id = p.user_id GROUP BY 1, 2 ORDER BY 1"
            )
        ).all()
    assert found == [(USER, "default", 2), ("bob@example.invalid", "default", 2)]


def test_first_requests_at_once_share_one_default_project(configured, database_url, engine, tmp_path):
    """Requests that find no default project at the same moment make one, not one each."""
    (tmp_path / "urls.txt").write_bytes(GOOD)
    start = threading.Barrier(8)

    def first(_number):
        own = make_engine(database_url)
        try:
            start.wait(30)
            return submit(configured, own, [str(tmp_path / "urls.txt")], reuse=False)
        finally:
            own.dispose()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(first, range(8)))
    rows, _ = traces(engine, tmp_path / "store")
    assert (rows["crawl_jobs"], rows["projects"]) == (8, 1)


def test_several_files_are_one_job(configured, engine, tmp_path):
    """Files are taken in their order, each with line numbers of its own."""
    (tmp_path / "b.txt").write_bytes(b"# b\nhttp://a.example/b")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhttp://a.example/a\n")
    submission = submit(configured, engine, ["b.txt", "a.txt"])
    source, candidates = stored_candidates(configured, engine, submission.job_id)
    assert candidates == [(0, "http://a.example/b", 2), (1, "http://a.example/a", 1)]
    assert [(file["name"], file["candidates"]) for file in source["files"]] == [("b.txt", 1), ("a.txt", 1)]
    with transaction(engine) as session:
        assert job_report(session, submission.job_id)["name"] == "b.txt, a.txt"


def test_the_same_request_is_recognised(configured, engine, tmp_path):
    """The same content and options are the same request whatever the file is called; nothing is stored twice."""
    (tmp_path / "list.txt").write_bytes(GOOD * 2)
    (tmp_path / "copy.txt").write_bytes(GOOD * 2)
    first = submit(configured, engine, ["list.txt"], reuse=True)
    left = traces(engine, tmp_path / "store")
    again = submit(configured, engine, ["copy.txt"], name="other", reuse=True)
    assert (again.job_id, again.existing) == (first.job_id, True)
    assert traces(engine, tmp_path / "store") == left
    for options in ({"priority": 6}, {"max_images": 1}, {"folder": "file:///x"}, HEADER_ONLY):
        assert not submit(configured, engine, ["list.txt"], reuse=True, **options).existing
    (tmp_path / "half.txt").write_bytes(GOOD)
    assert not submit(configured, engine, ["half.txt", "half.txt"], reuse=True).existing
    assert not submit(configured, engine, ["list.txt"]).existing


def test_standard_input(command_line, engine, monkeypatch, capsys):
    """A dash reads standard input, and its job is called so."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GOOD * 3)))
    assert command_line(["submit", "-"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "Job 1: 3 candidates queued in project default\n"
    assert "pixtrawl watch 1" in printed.err
    with transaction(engine) as session:
        assert job_report(session, 1)["name"] == "standard input"


def test_a_pipe_without_a_size(command_line, engine, tmp_path):
    """A list that is generated while it is read is streamed through the installed program."""
    script = "for i in range(40_000): print(f'http://a.example/{i:09}.jpg')"
    with started(sys.executable, "-c", script, stdout=subprocess.PIPE) as writer:
        done = subprocess.run(
            [PROGRAM, "submit", "-"],
            stdin=writer.stdout,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "Job 1: 40,000 candidates queued in project default\n")


def test_a_job_ignores_only_what_the_operator_lets_it(
    configured, engine, command_line, monkeypatch, capsys, tmp_path
):
    """Which opt-outs a job does not obey stands in its row, is shown, and makes it another request."""
    (tmp_path / "list.txt").write_bytes(GOOD)
    for words, said in (
        ("tdm,robots", "No job may ignore robots or tdm here"),
        ("all", "there is no opt-out all"),
    ):
        for command in ("submit", "run"):
            assert command_line([command, "list.txt", "--ignore-opt-outs", words]) == 2
            assert said in capsys.readouterr().err
    with transaction(engine) as session:
        assert session.execute(text("SELECT count(*) FROM crawl_jobs")).scalar_one() == 0
    monkeypatch.setenv("PIXTRAWL_OPT_OUTS_IGNORABLE", "robots, x-robots-tag")
    assert command_line(["submit", "list.txt", "--ignore-opt-outs", "tdm"]) == 2
    assert command_line(["submit", "list.txt", "--ignore-opt-outs", "X-Robots-Tag,robots", "--json"]) == 0
    job = json.loads(capsys.readouterr().out)
    assert job["ignored_opt_outs"] == ["robots", "x-robots-tag"]
    assert command_line(["show", str(job["id"])]) == 0
    assert "opt-outs not obeyed" in capsys.readouterr().out
    allowing = read_settings()
    given = {"ignore_opt_outs": "robots,x-robots-tag", "reuse": True}
    assert submit(allowing, engine, ["list.txt"], **given).job_id == job["id"]
    assert not submit(allowing, engine, ["list.txt"], reuse=True).existing
    monkeypatch.setenv("PIXTRAWL_OPT_OUTS_IGNORABLE", "everything")
    assert command_line(["jobs"]) == 2
    assert "PIXTRAWL_OPT_OUTS_IGNORABLE: there is no opt-out everything" in capsys.readouterr().err
