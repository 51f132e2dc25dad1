"""The seed line by line, in its order: each table of it checked, each snippet of it run as it stands.

Hold tests/support/SEED_database_quick_reference.txt beside this file. tests/migration runs its 'Migration
Commands' and the database steps of its 'Deployment Checklist'; test_schema.py holds what the seed leaves open.
"""

import hashlib
import re
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psycopg2.errors
import pytest
from sqlalchemy import Connection, Engine, delete, inspect, select, text
from sqlalchemy.exc import IntegrityError, LegacyAPIWarning
from sqlalchemy.orm import Query, Session, joinedload, lazyload, raiseload, selectinload

import models
from models import ActivityLog, Base, CrawlJob, CreditAccount, Image, Profile, Project
from models.queueing import claim_chunks
from tests.support import seed
from tests.support.crawling import new_job
from tests.support.factories import create_profile, create_project
from tests.support.filled import FILLED, fill, index_on, only_index, profile_id
from tests.support.rows import IMPLIED, OWNER, Rows, columns, database_of_rows, rows_on
from tests.support.seed import Shell
from tests.support.statements import explain, sent

CHECKOUT = Path(__file__).parents[2]
LAZY = (lazyload("*"), lazyload(Profile.projects).lazyload("*"))
"""SQLAlchemy's own default, for a user and for the projects that are loaded through it."""


class Owner(NamedTuple):
    """Ids of rows that hang on each other."""

    user_id: uuid.UUID
    project_id: int
    job_id: int


@pytest.fixture(scope="module")
def database(services: Any, administration: Engine, template: str) -> Iterator[Engine]:
    """One database for this file: two users with a row in every table, and a third with an empty job."""
    with database_of_rows(services.database_url, administration, template) as engine:
        yield engine


@pytest.fixture
def connection(database: Engine) -> Iterator[Connection]:
    """A transaction that is undone after the test."""
    with database.connect() as connection, connection.begin() as transaction:
        yield connection
        transaction.rollback()


@pytest.fixture
def session(connection: Connection) -> Iterator[Session]:
    """A session whose commits are undone after the test."""
    with Session(connection, join_transaction_mode="create_savepoint") as session:
        yield session


@pytest.fixture
def owner(session: Session) -> Owner:
    """A user with a row in every table, of which nothing is in the session."""
    job = select(Profile.id, Project.id, CrawlJob.id).join(Profile.projects).join(Project.crawl_jobs)
    return Owner(*session.execute(job.where(Profile.email == OWNER)).one())


@pytest.fixture
def rows(connection: Connection) -> Rows:
    """Tries rows in plain SQL."""
    return rows_on(connection)


def test_every_section_of_the_seed_is_known() -> None:
    """Nobody changed the text; it has these snippets, each run below, and these tables, each checked below."""
    assert hashlib.sha256(seed.PATH.read_bytes()).hexdigest() == seed.SHA256
    assert {title: len(seed.snippets(title)) for title in seed.SECTIONS if seed.snippets(title)} == {
        "Get user's projects": 1,
        "Get project's jobs": 1,
        "Get job's images": 1,
        "Get user's credit account": 1,
        "Model Imports": 1,
        "Relationship Loading Strategies": 1,
        "Performance Tips": 4,
        "Testing Relationships": 1,
        "N+1 Query Problem": 1,
    }
    assert len(seed.foreign_keys()) == 11
    assert len(seed.cascades()) == 4
    assert len(seed.status_words()) == 5
    assert len(seed.ranges()) == 4
    assert [len(seed.bullets(title)) for title in INDEX_SECTIONS] == [7, 6, 2]
    assert len(seed.bullets("Unique Constraints")) == 4
    assert len(seed.bullets("Documentation Links")) == 4


# --- Foreign Key Relationships ---


@pytest.mark.parametrize(("parent", "child", "number"), seed.foreign_keys())
def test_foreign_key(rows: Rows, parent: str, child: str, number: str) -> None:
    """A child needs its parent, which may have many, or one and no second; deleting the parent deletes it."""
    table, referred = seed.table_of(child), seed.table_of(parent)
    [key] = [
        key for key in inspect(rows.connection).get_foreign_keys(table) if key["referred_table"] == referred
    ]
    [column] = key["constrained_columns"]
    assert (key["referred_columns"], key["options"]) == (["id"], {"ondelete": "CASCADE"})

    missing = "gen_random_uuid()" if referred in {"profiles", "credit_accounts"} else "999999"
    with pytest.raises(IntegrityError, match=str(key["name"])) as refused:
        rows.insert(table, **{column: missing})
    assert isinstance(refused.value.orig, psycopg2.errors.ForeignKeyViolation)

    second = rows.refused_by(table, **rows.again(table, [column]))
    assert second == (None if number == "many" else f"uq_{table}_{column}")
    relationship = next(
        r for r in inspect(getattr(models, parent)).relationships if r.mapper.class_.__name__ == child
    )
    assert relationship.uselist == (number == "many")


# --- Common Queries ---


def get(shell: Shell, title: str) -> list[int]:
    """How many statements each line of a common query sent; its Query.get() works and warns."""
    [snippet] = seed.snippets(title)
    with pytest.warns(LegacyAPIWarning, match=r"The Query\.get\(\) method is considered legacy"):
        return [len(step.sent) for step in shell.type(snippet)]


def test_get_users_projects(session: Session, owner: Owner) -> None:
    """The user comes with the projects: reading them sends nothing."""
    shell = Shell(session, user_id=owner.user_id)
    loading, reading = get(shell, "Get user's projects")
    assert (loading > 1, reading) == (True, 0)
    assert [project.id for project in shell["projects"]] == [owner.project_id]
    assert session.get(Profile, owner.user_id) is shell["user"]


def test_get_projects_jobs(session: Session, owner: Owner) -> None:
    """The project comes with its jobs."""
    shell = Shell(session, project_id=owner.project_id)
    assert get(shell, "Get project's jobs")[1] == 0
    assert [job.id for job in shell["jobs"]] == [owner.job_id]


def test_get_jobs_images(session: Session, owner: Owner) -> None:
    """The job comes with its images."""
    shell = Shell(session, job_id=owner.job_id)
    assert get(shell, "Get job's images")[1] == 0
    assert [image.crawl_job_id for image in shell["images"]] == [owner.job_id]


def test_get_users_credit_account(session: Session, owner: Owner) -> None:
    """The user comes with the account, and the account with its transactions."""
    shell = Shell(session, user_id=owner.user_id)
    assert get(shell, "Get user's credit account")[1:] == [0, 0]
    assert isinstance(shell["account"], CreditAccount)
    assert [transaction.amount for transaction in shell["transactions"]] == [100]


# --- Cascade Delete Behavior ---


def reached(model: str) -> set[str]:
    """The model and all below it, by the seed's foreign keys."""
    below = {child for parent, child, _number in seed.foreign_keys() if parent == model}
    return {model}.union(*(reached(child) for child in below))


def count_rows(session: Session) -> dict[str, int]:
    """{table: how many rows it has}."""
    tables = Base.metadata.tables
    return {table: session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in tables}


@pytest.mark.parametrize("way", ["session.delete", "DELETE"])
@pytest.mark.parametrize("model", seed.cascades())
def test_cascade_delete_behavior(session: Session, owner: Owner, model: str, way: str) -> None:
    """A delete takes what the seed says and all below it, by ORM and by SQL alike, and nothing of another user."""
    gone = reached(model)
    assert gone > set(seed.cascades()[model])
    before = count_rows(session)
    keys = {"Profile": "id", "CreditAccount": "user_id", "Project": "user_id", "CrawlJob": "project_id"}
    value = owner.project_id if model == "CrawlJob" else owner.user_id
    if way == "DELETE":
        session.execute(
            text(f"DELETE FROM {seed.table_of(model)} WHERE {keys[model]} = :value"), {"value": value}
        )
    else:
        session.delete(session.query(getattr(models, model)).filter_by(**{keys[model]: value}).one())
    session.commit()
    emptied = {seed.table_of(name) for name in gone} | ({"failures"} if "CrawlJob" in gone else set())
    assert count_rows(session) == {table: number - (table in emptied) for table, number in before.items()}


# --- Indexes for Performance ---

INDEX_SECTIONS = ("User Queries", "Job Queries", "Activity Queries")
QUERIES = {
    "profiles.user_tier": "user_tier = 'ENTERPRISE'",
    "projects.user_id": "user_id = {user}",
    "activity_logs.user_id": "user_id = {user}",
    "credit_accounts.user_id": "user_id = {user}",
    "api_keys.user_id": "user_id = {user}",
    "notifications.user_id": "user_id = {user}",
    "usage_metrics.user_id": "user_id = {user}",
    "crawl_jobs.project_id": "project_id = 7",
    "crawl_jobs.status": "status = 'running'",
    "crawl_jobs.(project_id, status)": "project_id = 10 AND status = 'running'",
    "images.crawl_job_id": "crawl_job_id = 7",
    "job_chunks.job_id": "job_id = 7",
    "job_chunks.status": "status = 'processing'",
    "activity_logs.(user_id, timestamp)": "user_id = {user} AND timestamp > now() - interval '11 hours' "
    "ORDER BY timestamp DESC LIMIT 50",
    "activity_logs.(resource_type, resource_id)": "resource_type = 'crawl_job' AND resource_id = '7'",
}


def test_indexes_for_performance(engine: Engine) -> None:
    """At 100,000 rows the planner reads no whole table for any line; the named index alone serves it, too."""
    lines = [line for section in INDEX_SECTIONS for line in seed.bullets(section)]
    with engine.connect() as connection:
        fill(connection, *FILLED)
        served = {}
        for line in lines:
            table, names = seed.place(line)
            query = text(f"SELECT * FROM {table} WHERE {QUERIES[line].format(user=profile_id(7))}")
            assert "Seq Scan" not in explain(connection, query).nodes, line
            index = index_on(connection, table, names)
            assert index, f"no index on {line}"
            with only_index(connection, table, index):
                plan = explain(connection, query)
            conditions = " ".join(plan.conditions)
            served[line] = plan.indexes == [index] and all(name in conditions for name in names)
    assert served == dict.fromkeys(QUERIES, True)


# --- Constraints ---


@pytest.mark.parametrize("place", seed.status_words())
def test_status_values(rows: Rows, place: str) -> None:
    """Each word is accepted, with what a row in that status needs; every other word is refused, in any letters."""
    table, [column] = seed.place(place)
    words = seed.status_words()[place]
    others = {word for others in seed.status_words().values() for word in others} - set(words)
    for word in words:
        implied = IMPLIED.get((table, word), "")
        assert rows.refused_by(table, **{column: f"'{word}'"}, **columns(implied)) is None
        if implied:
            assert str(rows.refused_by(table, **{column: f"'{word}'"})).startswith(f"ck_{table}_")
    for word in [*others, words[0].upper(), f" {words[0]}", "other", ""]:
        assert rows.refused_by(table, **{column: f"'{word}'"}) == f"ck_{table}_{column}"


@pytest.mark.parametrize("place", seed.ranges())
def test_ranges(rows: Rows, place: str) -> None:
    """A number is accepted at each end of its range and refused one beyond."""
    table, [column] = seed.place(place)
    lowest, highest = seed.ranges()[place]
    tried = [lowest - 1, lowest] + ([2**31 - 1] if highest is None else [highest, highest + 1])
    rule = f"ck_{table}_{column}"
    expected = [rule, None] + ([None] if highest is None else [None, rule])
    assert [rows.refused_by(table, **{column: value}) for value in tried] == expected


def test_a_higher_priority_is_more_urgent(engine: Engine) -> None:
    """'Higher = more urgent': the chunk of priority 10 is claimed before those of 5 and 0."""
    chunks = {priority: new_job(engine, [1], priority=priority).chunk_ids[0] for priority in (5, 0, 10)}
    with Session(engine) as session:
        assert [chunk.id for chunk in claim_chunks(session, 3)] == [chunks[10], chunks[5], chunks[0]]


# --- Unique Constraints ---


@pytest.mark.parametrize("line", seed.bullets("Unique Constraints"))
def test_unique_constraints(rows: Rows, line: str) -> None:
    """A second row with the same key is refused, by name; with one column of it different it is accepted."""
    table, names = seed.place(line)
    key = rows.again(table, names)
    with pytest.raises(IntegrityError) as refused:
        rows.insert(table, **key)
    assert isinstance(refused.value.orig, psycopg2.errors.UniqueViolation)
    assert refused.value.orig.diag.constraint_name == f"uq_{table}_{'_'.join(names)}"
    for name in names:
        assert rows.refused_by(table, **{other: key[other] for other in names if other != name}) is None


# --- Deployment Checklist, Migration Commands: tests/migration ---


def test_the_migration_that_the_checklist_names_exists() -> None:
    """'Review migration file' finds the file."""
    [path] = re.findall(r"Review migration file: `(.+)`", seed.SECTIONS["Deployment Checklist"])
    assert (CHECKOUT / path).is_file()


# --- Model Imports ---


def test_model_imports(session: Session) -> None:
    """The twelve names come from ``models``, each a mapped class with a table of its own."""
    shell = Shell(session)
    imported = {name: value for name, value in shell.names.items() if isinstance(value, type)}
    assert len({seed.table_of(name) for name in imported}) == 12
    assert all(issubclass(value, Base) and getattr(models, name) is value for name, value in imported.items())


# --- Relationship Loading Strategies ---


def test_all_relationships_load_by_selectin() -> None:
    """'All relationships use lazy="selectin"'."""
    relationships = [
        relationship for mapper in Base.registry.mappers for relationship in mapper.relationships
    ]
    assert {relationship.lazy for relationship in relationships} == {"selectin"}


def load(session: Session, query: Query[Any]) -> tuple[list[Any], list[str]]:
    """(every object of a query, the statements that it took), into an empty session."""
    session.expunge_all()
    with sent(session.get_bind()) as statements:
        return query.all(), statements


def test_relationship_loading_strategies(session: Session, owner: Owner) -> None:
    """Each override loads the same projects: by a query when touched, by a join, by a second query.

    ``user.projects`` 'triggers query' only with an explicit ``lazyload``: by default they are there already.
    """
    [snippet] = seed.snippets("Relationship Loading Strategies")
    names = {"joinedload": joinedload, "selectinload": selectinload}
    touched, joined, selectin = Shell(session, user=session.get_one(Profile, owner.user_id), **names).type(
        snippet
    )
    assert (touched.sent, len(touched.value)) == ([], 1)

    for query, sign in ((joined.value, "LEFT OUTER JOIN projects"), (selectin.value, "projects.user_id IN")):
        users, statements = load(session, query.order_by(Profile.email))
        assert [sign in statement for statement in statements].count(True) == 1
        assert ["FROM projects" in statement for statement in statements].count(True) == (
            query is selectin.value
        )
        assert sorted(len(user.projects) for user in users) == [1, 1, 1]

    one = session.query(Profile).filter_by(id=owner.user_id)
    [lazy], statements = load(session, one.options(*LAZY))
    touched = Shell(session, user=lazy, **names).type(snippet)[0]
    assert (len(statements), len(touched.sent), len(touched.value)) == (1, 1, 1)


# --- Performance Tips ---


def test_tip_1_relationships_and_manual_joins_agree(session: Session, owner: Owner) -> None:
    """Both ways give the same projects. Here the 'manual join' reads one table's index and asks for less."""
    user = session.get_one(Profile, owner.user_id)
    good, avoid = Shell(session, user=user, user_id=user.id).type(seed.snippets("Performance Tips")[0])
    assert good.sent == []
    assert good.value == avoid.value.all()
    _, through_user = load(session, session.query(Profile).filter_by(id=owner.user_id))
    _, columns_only = load(session, avoid.value.options(raiseload("*")))
    assert len(columns_only) == 1 < len(through_user)


def test_tip_2_batch_operations(engine: Engine) -> None:
    """Three jobs at once are one INSERT and one commit; one at a time they are three of each."""
    snippet = seed.snippets("Performance Tips")[1]
    with Session(engine) as session:
        project_id = create_project(session, create_profile(session), commit=True).id
        jobs = [CrawlJob(project_id=project_id, name=f"{number}") for number in range(6)]
        with sent(engine) as at_once:
            Shell(session, job1=jobs[0], job2=jobs[1], job3=jobs[2]).type(seed.part(snippet, "Good"))
        with sent(engine) as singly:
            for job in jobs[3:]:
                Shell(session, job1=job).type(seed.part(snippet, "Avoid"))
        assert all(job.id for job in jobs)
    for statements, number in ((at_once, 1), (singly, 3)):
        assert len([sql for sql in statements if sql.startswith("INSERT INTO crawl_jobs")]) == number
        assert statements.count("COMMIT") == number


def test_tip_3_use_indexes_for_filtering(session: Session) -> None:
    """A rare status comes from the index, '%pattern%' reads the table; so does a status that most rows have."""
    good, avoid = Shell(session).type(seed.snippets("Performance Tips")[2])
    connection = session.connection()
    fill(connection, "crawl_jobs")
    indexes = set(explain(connection, good.value.statement).indexes)
    assert indexes
    assert indexes <= {"ix_crawl_jobs_status", "ix_crawl_jobs_live"}
    assert explain(connection, avoid.value.statement).nodes == ["Seq Scan"]
    common = session.query(CrawlJob).filter(CrawlJob.status == "completed")
    assert explain(connection, common.statement).nodes == ["Seq Scan"]


def test_tip_4_limit_result_sets(session: Session, owner: Owner) -> None:
    """50 logs of 60 come back; but each log's user comes with all that is the user's, which no LIMIT bounds.

    The seed writes ``...`` for the condition. Only ``raiseload("*")`` makes the limit hold for the statement.
    """
    session.add_all(ActivityLog(user_id=owner.user_id, action="login") for _ in range(59))
    session.add_all(CrawlJob(project_id=owner.project_id, name="Owls") for _ in range(70))
    session.commit()
    snippet = seed.snippets("Performance Tips")[3].replace("...", "ActivityLog.user_id == user_id")
    limited, everything = (step.value for step in Shell(session, user_id=owner.user_id).type(snippet))
    assert len(load(session, everything)[0]) == 60
    logs, statements = load(session, limited)
    assert (len(logs), len(statements)) == (50, 12)
    assert len(logs[0].user.projects[0].crawl_jobs) == 71

    logs, statements = load(session, limited.options(raiseload("*")))
    assert (len(logs), len(statements), len(session.identity_map)) == (50, 1, 50)


def test_one_row_loads_what_is_above_and_beside_it(session: Session, owner: Owner) -> None:
    """An image loads its job, project and user, and all the user's other rows: a statement for each table."""
    images = session.query(Image).filter_by(crawl_job_id=owner.job_id)
    [image], statements = load(session, images)
    assert len(statements) == 12
    assert image.crawl_job.project.user.notifications[0].title == "Done"
    assert len(load(session, images.options(raiseload("*")))[1]) == 1


# --- Testing Relationships ---


@pytest.mark.parametrize("name", ["test_fk_constraint", "test_relationship_loading", "test_cascade_delete"])
def test_testing_relationships(engine: Engine, name: str) -> None:
    """The seed's own three tests pass as they stand."""

    def create_and_show(user: Profile) -> Project:
        """The user's projects have been looked at: so the session deletes them itself, and their ids stay known."""
        project = create_project(session, user)
        assert user.projects == [project]
        return project

    with Session(engine) as session:
        shell = Shell(
            session,
            pytest=pytest,
            IntegrityError=IntegrityError,
            create_profile=partial(create_profile, session),
            create_project=create_and_show,
        )
        shell.type(*seed.snippets("Testing Relationships"))
        shell[name]()


def test_fk_constraint_refuses_the_project_and_not_only_the_missing_name(session: Session) -> None:
    """The seed's invalid job has no name either; with one, it is its project that is refused."""
    session.add(CrawlJob(project_id=999, name="Nobody's"))
    with pytest.raises(IntegrityError, match="fk_crawl_jobs_project_id_projects") as refused:
        session.commit()
    assert isinstance(refused.value.orig, psycopg2.errors.ForeignKeyViolation)


# --- Troubleshooting ---


def message(error: IntegrityError) -> str:
    """An error as a shell's last lines show it, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def quoted(title: str) -> str:
    """The message that a section quotes, on one line."""
    return " ".join(seed.quoted(title).split())


def test_foreign_key_constraint_violation(session: Session, owner: Owner) -> None:
    """The message is the seed's; with the id of a profile that exists, the project is accepted."""
    session.add(Project(user_id=uuid.uuid4(), name="Birds"))
    with pytest.raises(IntegrityError) as refused:
        session.commit()
    assert message(refused.value).startswith(quoted("Foreign Key Constraint Violation"))
    session.rollback()
    session.add(Project(user_id=owner.user_id, name="Birds"))
    session.commit()


def test_cascade_delete_issues(session: Session, owner: Owner) -> None:
    """Without the cascade the delete is refused with the seed's message; as configured it is automatic."""
    key = "fk_projects_user_id_profiles"
    without_cascade = f"ADD CONSTRAINT {key} FOREIGN KEY (user_id) REFERENCES profiles (id)"
    session.execute(text(f"ALTER TABLE projects DROP CONSTRAINT {key}, {without_cascade}"))
    with pytest.raises(IntegrityError) as refused:
        session.execute(delete(Profile).where(Profile.id == owner.user_id))
    # The server names the key, too, and the driver its own error.
    said = (
        message(refused.value).replace(f' "{key}"', "").replace("(psycopg2.errors.ForeignKeyViolation) ", "")
    )
    assert said.startswith(quoted("Cascade Delete Issues"))

    session.rollback()
    session.execute(delete(Profile).where(Profile.id == owner.user_id))
    session.commit()
    assert session.get(Project, owner.project_id) is None


def loop(session: Session, word: str, users: Any) -> list[int]:
    """Statements of each step of one half of the seed's example, typed with an empty session."""
    session.expunge_all()
    [snippet] = seed.snippets("N+1 Query Problem")
    shell = Shell(session, users=users, selectinload=selectinload)
    return [len(step.sent) for step in shell.type(seed.part(snippet, word))]


def test_n_plus_1_query_problem(session: Session, owner: Owner) -> None:
    """The 'bad' loop is not bad here: both loops ask each table once (for each 500 users), and not for each user.

    It is a query per user as soon as somebody asks for lazy loading.
    """
    users = session.query(Profile)
    few = [loop(session, "Bad", users), loop(session, "Good", users)]
    for _ in range(4):
        create_project(session, create_profile(session))
    session.commit()
    many = [loop(session, "Bad", users), loop(session, "Good", users)]
    assert few == many == [[12], [0, 12]]
    assert loop(session, "Bad", users.all()) == [0]
    assert loop(session, "Bad", users.options(*LAZY)) == [1 + users.count()]


# --- Documentation Links ---


@pytest.mark.parametrize("title", seed.bullets("Documentation Links"))
def test_documentation_links(title: str) -> None:
    """The document that the seed names exists and says something."""
    path = CHECKOUT / seed.bullets("Documentation Links")[title].strip("`")
    assert path.read_text().startswith("# ")
