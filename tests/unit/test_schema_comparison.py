"""The files of migrations, and how a database's list compares with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from holdfast.checkpoints.schema import Migration, Phase, compare, migrations
from holdfast.contracts.errors import ConfigurationError


def applied(known: Sequence[Migration]) -> list[dict[str, Any]]:
    """The list of a database that has these."""
    return [{name: getattr(each, name) for name in ("number", "phase", "name", "checksum")} for each in known]


def written(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_text("select 1", encoding="utf-8")
    return folder


def test_pre_migrations_come_before_post_ones_each_by_number(tmp_path: Path) -> None:
    names = ("0003_c.post.sql", "0001_a.sql", "0004_d.pre.sql", "0003_c.pre.sql", "0002_b.sql")
    found = migrations(written(tmp_path, *names))
    assert [str(each) for each in found] == [
        "0001 a (pre)",
        "0002 b (pre)",
        "0003 c (pre)",
        "0004 d (pre)",
        "0003 c (post)",
    ]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["0003_a.pre.sql", "0003_b.pre.sql"], r"several pre migrations of the same number: \[3\]"),
        (["0004_a.pre.sql"], r"not numbered 1, 2, 3 …: \[1, 2, 4\]"),
        (["0003_a.sql"], "0003_a.sql is not called NNNN_what.pre.sql or NNNN_what.post.sql"),
        (["3_a.pre.sql"], "3_a.pre.sql is not called"),
        (["0003_a.during.sql"], "0003_a.during.sql is not called"),
    ],
)
def test_files_that_are_misnumbered_or_misnamed_are_refused(tmp_path: Path, names: list[str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        migrations(written(tmp_path, "0001_a.sql", "0002_b.sql", *names))


def test_what_is_not_applied_yet_is_pending_in_order() -> None:
    known = migrations()
    assert compare(applied(known)) == []
    assert compare(applied(known[:2])) == known[2:]


@pytest.mark.parametrize("phase", Phase)
def test_migration_that_is_missing_below_one_that_was_applied_is_refused(phase: Phase) -> None:
    known = migrations()
    first = next(each for each in known if each.phase is phase)
    with pytest.raises(ConfigurationError) as caught:
        compare(applied([each for each in known if each is not first]))
    assert f"lacks the migration {first}, though " in str(caught.value)


def test_migration_that_newer_code_numbered_on_hides_no_hole() -> None:
    known = [each for each in migrations() if each.phase is Phase.PRE]
    later = {"number": 99, "phase": "pre", "name": "later", "checksum": "x"}
    assert compare([*applied(known), later]) == [each for each in migrations() if each.phase is Phase.POST]
    with pytest.raises(ConfigurationError, match=r"though 0099 later \(pre\) was applied"):
        compare([*applied(known[:-1]), later])
