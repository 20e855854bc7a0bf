"""The whole schema as one text, read back from the catalogue of a database that has it.

`docs/schema.sql` is that text after all migrations, so that a reviewer sees in one file what a migration changes; `make
schema` writes it, and a test fails when it is not up to date. It is SQL that makes the same schema, though migrations
are the only way that a database gets it.
"""

from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg.rows import TupleRow

from holdfast.checkpoints.embedded import EmbeddedServer

FILE = Path(__file__).resolve().parents[1] / "docs" / "schema.sql"
HEAD = """\
-- The schema after all migrations of checkpoints/migrations, where its reasons stand, in PostgreSQL {major}'s words.
-- Written by `make schema`.
"""
_STRANGE = """
select c.relkind::text || ' ' || c.relname from pg_class c
 where c.relnamespace = 'public'::regnamespace and c.relkind not in ('r', 'i')
union all
select 'type ' || t.typname from pg_type t
 where t.typnamespace = 'public'::regnamespace and t.typrelid = 0 and t.typelem = 0
union all
select 'extension ' || extname from pg_extension where extname <> 'plpgsql'
union all
select 'rule ' || rulename from pg_rules where schemaname = 'public'"""
_TABLES = """
select oid, relname, array_to_string(reloptions, ', '), relrowsecurity, relforcerowsecurity from pg_class
 where relnamespace = 'public'::regnamespace and relkind = 'r'
 order by relname <> 'applied_migrations', oid  -- which is there before or after the others"""
_COLUMNS = """
select quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod)
       || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid, true), '')
       || case when a.attnotnull then ' not null' else '' end
  from pg_attribute a left join pg_attrdef d on (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
 where a.attrelid = %s and a.attnum > 0 and not a.attisdropped order by a.attnum"""
_CONSTRAINTS = """
select 'constraint ' || quote_ident(conname) || ' ' || pg_get_constraintdef(oid, true) from pg_constraint
 where conrelid = %s and contype not in ('n', 't')
 order by array_position('{p,u,c,f,x}', contype::text), conname"""
_INDEXES = """
select pg_get_indexdef(i.indexrelid, 0, true) from pg_index i join pg_class c on c.oid = i.indexrelid
 where i.indrelid = %s
   and not exists (select from pg_constraint where conindid = i.indexrelid and contype in ('p', 'u', 'x'))
 order by c.relname"""
_POLICIES = """
select format('create policy %%I on %%I%%s for %%s to %%s%%s%%s', policyname, tablename,
              case permissive when 'PERMISSIVE' then '' else ' as restrictive' end, lower(cmd),
              array_to_string(roles, ', '), ' using (' || qual || ')', ' with check (' || with_check || ')')
  from pg_policies where schemaname = 'public' and tablename = %s order by policyname"""
_GRANTS = """
select format('grant %%s on %%I to %%s', string_agg(privilege, ', ' order by privilege), relname, grantee) from (
    select c.relname, lower(acl.privilege_type) as privilege, acl.grantee::regrole::text as grantee
      from pg_class c, aclexplode(c.relacl) acl where c.oid = %(table)s and acl.grantee <> c.relowner
    union all
    select c.relname, format('%%s (%%s)', lower(acl.privilege_type), string_agg(a.attname, ', ' order by a.attnum)),
           acl.grantee::regrole::text
      from pg_class c join pg_attribute a on a.attrelid = c.oid, aclexplode(a.attacl) acl
     where c.oid = %(table)s group by c.relname, acl.privilege_type, acl.grantee) granted
 group by relname, grantee order by grantee"""
_FUNCTIONS = """
select p.oid, p.oid::regprocedure::text, p.prokind from pg_proc p
 where p.pronamespace = 'public'::regnamespace order by p.oid"""
_FUNCTION = "select replace(pg_get_functiondef(%s), 'FUNCTION public.', 'FUNCTION ')"
_AGGREGATE = """
select format('create aggregate %%I(%%s) (sfunc = %%s, stype = %%s)', p.proname,
              pg_get_function_identity_arguments(p.oid), a.aggtransfn::text, format_type(a.aggtranstype, null))
  from pg_proc p join pg_aggregate a on a.aggfnoid = p.oid where p.oid = %s"""
_WHO_MAY_CALL = """
select format('grant execute on function %%s to %%s', p.oid::regprocedure,
              case acl.grantee when 0 then 'public' else acl.grantee::regrole::text end)
  from pg_proc p, aclexplode(p.proacl) acl where p.oid = %s and acl.grantee <> p.proowner order by 1"""
_IS_CLOSED = """
select proacl is not null and not exists (select from aclexplode(proacl) where grantee = 0) from pg_proc
 where oid = %s"""
_TRIGGERS = """
select pg_get_triggerdef(oid, true) from pg_trigger where tgrelid = %s and not tgisinternal order by tgname"""


def schema(url: str) -> str:
    """The schema `public` of a database. Refuses kinds of objects that it does not know, rather than leave them out."""
    with psycopg.connect(url) as conn:
        conn.execute("set search_path = public")
        if strange := [row[0] for row in conn.execute(_STRANGE)]:
            raise NotImplementedError(f"tests/schema.py does not know how to write: {', '.join(strange)}")
        tables = conn.execute(_TABLES).fetchall()
        paragraphs = ["\n".join(_table(conn, row)) for row in tables]
        paragraphs += ["\n".join(_function(conn, row)) for row in conn.execute(_FUNCTIONS).fetchall()]
        paragraphs += ["\n".join(triggers) for row in tables if (triggers := _statements(conn, _TRIGGERS, row[0]))]
        head = HEAD.format(major=conn.info.server_version // 10_000)
    return "\n".join([head, *(f"{paragraph}\n" for paragraph in paragraphs)])


def _table(conn: psycopg.Connection, row: TupleRow) -> Iterator[str]:
    table, name, options, secured, forced = row
    lines = [row[0] for query in (_COLUMNS, _CONSTRAINTS) for row in conn.execute(query, [table])]
    yield f"create table {name} (\n    " + ",\n    ".join(lines) + f"\n){f' with ({options})' if options else ''};"
    yield from _statements(conn, _INDEXES, table)
    yield from [f"alter table {name} {way} row level security;" for way, is_so in _security(secured, forced) if is_so]
    yield from _statements(conn, _POLICIES, name)
    yield from [f"{row[0]};" for row in conn.execute(_GRANTS, {"table": table})]


def _security(secured: bool, forced: bool) -> Iterator[tuple[str, bool]]:
    yield "enable", secured
    yield "force", forced


def _function(conn: psycopg.Connection, row: TupleRow) -> Iterator[str]:
    function, signature, kind = row
    yield from _statements(conn, _AGGREGATE if kind == "a" else _FUNCTION, function)
    if conn.execute(_IS_CLOSED, [function]).fetchone() == (True,):
        yield f"revoke execute on function {signature} from public;"
    yield from _statements(conn, _WHO_MAY_CALL, function)


def _statements(conn: psycopg.Connection, query: str, about: object) -> list[str]:
    return [f"{row[0].rstrip()};" for row in conn.execute(query.encode(), [about])]


def main() -> None:
    """Write the file, from a database of its own."""
    server = EmbeddedServer(temporary=True)
    server.start()
    try:
        FILE.write_text(schema(server.owner_url), encoding="utf-8")
    finally:
        server.stop()


if __name__ == "__main__":
    main()
