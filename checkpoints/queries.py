"""Named queries, kept in `.sql` files beside the modules that run them.

A file is a list of queries, each introduced by its name and one sentence, and can be pasted into psql:

    -- name: find_run
    -- The run of a tenant by its id.
    select … where run_id = %(run_id)s

What several queries have in common is a part, which they use by a line of its own:

    -- part: runs_held
    -- The runs that are held.
    held as (select …)

    -- name: flush
    -- Write what was handed in.
    with
    -- use: runs_held
    select …
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import LiteralString, cast

from holdfast.contracts.errors import ConfigurationError

_HEADING = re.compile(r"^-- (name|part):[ \t]*(\w*)[ \t]*$", re.MULTILINE)
_USE = re.compile(r"^-- use:[ \t]*(\w+)(,?)[ \t]*$", re.MULTILINE)
_SENTENCE = re.compile(r"\A\s*(?:-- \S.*\n)+")
_DESCRIBED = re.compile(rf"{_SENTENCE.pattern}\s*(?:[^-\s]|-- use:)")


def load_queries(module: str, file: str) -> Mapping[str, LiteralString]:
    """The queries of `file`, by name, from the folder of `module` (pass `__name__`).

    Raises `ConfigurationError` for a query or a part without a name, without its sentence, or of a name used before,
    and for a part that is used and is not there.
    """
    text = files(module.rpartition(".")[0]).joinpath(file).read_text(encoding="utf-8")
    return parse_queries(text, source=file)


def parse_queries(text: str, *, source: str) -> Mapping[str, LiteralString]:
    """The queries in `text`; `source` names it in errors."""
    preamble, *found = _HEADING.split(text)
    if any(line.strip() and not line.startswith("--") for line in preamble.splitlines()):
        raise ConfigurationError(f"{source}: there is SQL before the first '-- name: …' line")
    bodies: dict[str, dict[str, str]] = {"name": {}, "part": {}}
    for kind, name, body in zip(found[::3], found[1::3], found[2::3], strict=True):
        if not name or name in bodies[kind]:
            raise ConfigurationError(f"{source}: the query name {name!r} is {'used twice' if name else 'missing'}")
        if not _DESCRIBED.match(body):
            raise ConfigurationError(f"{source}: query {name!r} needs a sentence ('-- …') and then its SQL")
        bodies[kind][name] = body.strip().rstrip(";")
    parts = {name: _SENTENCE.sub("", body) for name, body in bodies["part"].items()}
    # The files are part of the package, as literal as code; psycopg cannot know that, so this one cast says it.
    whole = {name: _with_parts(body, parts, source=source) for name, body in bodies["name"].items()}
    return cast("Mapping[str, LiteralString]", whole)


def _with_parts(body: str, parts: Mapping[str, str], *, source: str) -> str:
    def part(use: re.Match[str]) -> str:
        if use[1] not in parts:
            raise ConfigurationError(f"{source}: there is no part {use[1]!r} to use")
        return parts[use[1]] + use[2]

    return _USE.sub(part, body)
