"""What PostgreSQL's catalog says about a schema, and the rows in it: for comparing two databases exactly."""

from sqlalchemy import Connection, text

Catalog = dict[tuple[str, str, str], str]

# Kind, table, name, definition. Column order is left out: a column that a revision adds comes last.
QUERIES = (
    """
SELECT 'column', c.relname, a.attname, concat_ws(' ', format_type(a.atttypid, a.atttypmod),
    CASE WHEN a.attnotnull THEN 'NOT NULL' END, 'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid),
    'IDENTITY ' || nullif(a.attidentity::text, ''), 'GENERATED ' || nullif(a.attgenerated::text, ''),
    'STORAGE ' || a.attstorage::text, 'COLLATION ' || nullif(a.attcollation, 0)::regcollation::text)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
""",
    """
SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid) || ' ' || convalidated
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
""",
    """
SELECT 'index', indrelid::regclass::text, indexrelid::regclass::text,
    pg_get_indexdef(indexrelid) || ' ' || indisvalid
FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE c.relnamespace = 'public'::regnamespace
""",
    """
SELECT 'table', relname, 'options', (SELECT string_agg(o, ' ' ORDER BY o) FROM unnest(reloptions) o)
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
""",
    """
SELECT 'comment', c.relname, coalesce(a.attname, ''), d.description
FROM pg_description d JOIN pg_class c ON c.oid = d.objoid AND d.classoid = 'pg_class'::regclass
    LEFT JOIN pg_attribute a ON (a.attrelid, a.attnum) = (d.objoid, nullif(d.objsubid, 0))
WHERE c.relnamespace = 'public'::regnamespace
""",
    """
SELECT 'sequence', coalesce(d.refobjid::regclass::text || '.' || a.attname, ''), c.relname,
    concat_ws(' ', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmax, s.seqcycle)
FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid
    LEFT JOIN pg_depend d ON d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.refobjsubid > 0
    LEFT JOIN pg_attribute a ON (a.attrelid, a.attnum) = (d.refobjid, d.refobjsubid)
WHERE c.relnamespace = 'public'::regnamespace
""",
    """
SELECT 'trigger', tgrelid::regclass::text, tgname, pg_get_triggerdef(oid)
FROM pg_trigger WHERE NOT tgisinternal
""",
    """
SELECT 'function', '', proname, pg_get_functiondef(oid)
FROM pg_proc WHERE pronamespace = 'public'::regnamespace
""",
)


def read_catalog(connection: Connection) -> Catalog:
    """{(kind, table, name): definition} of the public schema without Alembic's own table."""
    rows = [row for query in QUERIES for row in connection.execute(text(query))]
    return {(row[0], row[1], row[2]): row[3] for row in rows if row[1] != "alembic_version"}


def read_columns(connection: Connection) -> dict[str, list[str]]:
    """{table: its columns} of the public schema without Alembic's own table."""
    columns: dict[str, list[str]] = {}
    for kind, table, name in sorted(read_catalog(connection)):
        if kind == "column":
            columns.setdefault(table, []).append(name)
    return columns


def read_rows(connection: Connection, columns: dict[str, list[str]]) -> dict[str, list[str]]:
    """{table: every row as text}, of the given columns only."""
    return {
        table: sorted(
            connection.execute(
                text(f"SELECT row({', '.join(f't.{name}' for name in names)})::text FROM {table} t")
            ).scalars()
        )
        for table, names in columns.items()
    }
