"""Named queries, kept in `.sql` files beside the modules that run them.

A file is a list of queries, each introduced by its name and one sentence, and can be pasted into psql:

    -- name: find_run
    -- The run of a tenant by its id.
    select … where run_id = %(run_id)s
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import LiteralString, cast

from holdfast.contracts.errors import ConfigurationError

_NAME = re.compile(r"^-- name:[ \t]*(\w*)[ \t]*$", re.MULTILINE)
_SENTENCE = re.compile(r"\A\s*(?:-- \S.*\n)+")
_DESCRIBED = re.compile(rf"{_SENTENCE.pattern}\s*[^-\s]")


def load_queries(module: str, file: str) -> Mapping[str, LiteralString]:
    """The queries of `file`, by name, from the folder of `module` (pass `__name__`).

    Raises `ConfigurationError` for a query without a name, without its sentence, or of a name used before.
    """
    text = files(module.rpartition(".")[0]).joinpath(file).read_text(encoding="utf-8")
    return parse_queries(text, source=file)


def parse_queries(text: str, *, source: str) -> Mapping[str, LiteralString]:
    """The queries in `text`; `source` names it in errors."""
    preamble, *found = _NAME.split(text)
    if any(line.strip() and not line.startswith("--") for line in preamble.splitlines()):
        raise ConfigurationError(f"{source}: there is SQL before the first '-- name: …' line")
    queries: dict[str, str] = {}
    for name, body in zip(found[::2], found[1::2], strict=True):
        if not name or name in queries:
            raise ConfigurationError(f"{source}: the query name {name!r} is {'used twice' if name else 'missing'}")
        if not _DESCRIBED.match(body):
            raise ConfigurationError(f"{source}: query {name!r} needs a sentence ('-- …') and then its SQL")
        queries[name] = body.strip().rstrip(";")
    # The files are part of the package, as literal as code; psycopg cannot know that, so this one cast says it.
    return cast("Mapping[str, LiteralString]", queries)
