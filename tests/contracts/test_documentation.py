"""The reference documents say what the code says, and their examples run."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from documents import DOCS, ROOT, blocks, rows, section, text, ticked
from fix_database import DatabaseUrls
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from sources import dotted, house
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from holdfast.checkpoints.database import _OLDEST_SERVER, PoolSizes
from holdfast.checkpoints.migrating import WAIT_SECONDS
from holdfast.contracts import errors
from holdfast.contracts.classification import FOREIGN
from holdfast.contracts.errors import RETRY_RULES, ErrorType, HoldfastError
from holdfast.contracts.limits import Limits
from holdfast.contracts.tenancy import Principal, RetentionTerms, Tenant
from holdfast.contracts.tools import ToolTerms
from holdfast.policies.permissions import CedarPolicy, default_text
from holdfast.server.cli import app
from holdfast.server.exits import Exit
from holdfast.server.settings import PREFIX, EncryptionSettings, ModelPrice, Settings, TelemetrySettings, WorkerSettings
from holdfast.telemetry import names

ALONE = [name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md") if (ROOT / name).exists()]
DOCUMENTS = [*ALONE, *sorted(path.name for path in DOCS.glob("*.md"))]
GROUPS: dict[str, type[BaseModel]] = {
    "limits": Limits,
    "worker": WorkerSettings,
    "encryption": EncryptionSettings,
    "telemetry": TelemetrySettings,
}
NAMED: dict[str, type[BaseModel]] = {
    "tenants": Tenant,
    "retention": RetentionTerms,
    "principals": Principal,
    "tools": ToolTerms,
    "prices": ModelPrice,
}
LINKING = [*ALONE, *(str(path.relative_to(ROOT)) for path in sorted(DOCS.rglob("*.md"))), "benchmarks/README.md"]
EXAMPLES = [name for name in DOCUMENTS if name not in ALONE and blocks(name, "python")]


class TestSettings:
    def test_every_setting_has_its_row_and_nothing_else_has(self):
        expected = [(name, variable(name), shown(Settings, name)) for name in Settings.model_fields]
        assert written(section("settings.md", "All settings")) == expected

    @pytest.mark.parametrize("group", GROUPS)
    def test_every_member_of_a_group_has_its_row(self, group: str):
        model = GROUPS[group]
        expected = [(name, f"{PREFIX}{group}__{name}".upper(), shown(model, name)) for name in model.model_fields]
        assert written(section("settings.md", f"`{group}`")) == expected

    @pytest.mark.parametrize("group", NAMED)
    def test_every_term_of_what_has_a_name_has_its_row(self, group: str):
        model = NAMED[group]
        given_by_name = {"tenants": "tenant_id", "principals": "user_id"}.get(group)
        expected = [(name, shown(model, name)) for name in model.model_fields if name != given_by_name]
        found = [(ticked(row[0])[0], row[1]) for row in rows(section("settings.md", f"`{group}`"))]
        assert found == expected

    def test_what_is_said_of_a_setting_is_what_the_code_says(self):
        models = {"All settings": Settings} | {f"`{name}`": model for name, model in (GROUPS | NAMED).items()}
        for heading, model in models.items():
            for row in rows(section("settings.md", heading)):
                described = model.model_fields[ticked(row[0])[0]].description
                assert row[-1], f"{row[0]} says nothing"
                if described is not None:
                    assert row[-1] == " ".join(described.split())

    def test_every_group_of_settings_has_a_section(self):
        nested = {name for name, field in Settings.model_fields.items() if "contracts" in str(field.annotation)}
        assert nested - {"autonomy"} <= {*GROUPS, *NAMED}

    def test_the_file_shown_is_one_that_can_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        (shown_file,) = blocks("settings.md", "toml")
        (tmp_path / "holdfast.toml").write_text(shown_file, encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        settings = Settings()
        assert {"tenants", "principals", "routes", "tools", "prices", "limits"} <= settings.model_fields_set


class TestErrors:
    def test_every_type_has_its_row_with_its_rule_and_its_classes(self):
        tree = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HoldfastError)]
        of_type = {kind: {c.__name__ for c in tree if c.error_type is kind} - {"HoldfastError"} for kind in ErrorType}
        expected = {kind.value: (RETRY_RULES[kind].value, of_type[kind]) for kind in ErrorType}
        found = {
            ticked(row[0])[0]: (ticked(row[1])[0], set(ticked(row[2])))
            for row in rows(section("errors.md", "The ten types"))
        }
        assert found == expected

    def test_every_rule_is_explained(self):
        assert {ticked(row[0])[0] for row in rows(section("errors.md", "The rules"))} == {
            rule.value for rule in RETRY_RULES.values()
        }

    def test_the_fields_of_the_record_are_named(self):
        assert set(errors.RuntimeErrorRecord.model_fields) <= set(ticked(section("errors.md", "The record")))

    def test_foreign_families_that_are_named_are_in_the_table(self):
        families = {name.split(".")[0] for name in FOREIGN}
        assert set(ticked(section("errors.md", "Exceptions of others"))) & families


class TestCommandLine:
    def test_every_command_has_its_row_with_its_words_and_options(self):
        expected = {
            path: (str(command.help).splitlines()[0], {f for p in command.params for f in p.opts if f[:2] == "--"})
            for path, command in leaves(typer.main.get_command(app))
        }
        found = {
            ticked(row[0])[0].partition(" ")[2]: (row[1], set(ticked(row[2])))
            for row in rows(section("cli.md", "Commands"))
        }
        assert found == expected

    def test_every_exit_code_has_its_row(self):
        assert {ticked(row[0])[0] for row in rows(section("cli.md", "Exit codes"))} == {str(int(code)) for code in Exit}

    def test_no_document_names_a_command_that_is_not_there(self):
        known = {path.split(" ")[0] for path, _ in leaves(typer.main.get_command(app))}
        named = {
            match
            for name in DOCUMENTS
            for piece in [*ticked(text(name)), *blocks(name, "")]
            for match in re.findall(r"^holdfast ([a-z]+)", piece, re.MULTILINE)
        }
        assert named
        assert named <= known

    def test_no_document_gives_a_command_an_option_that_it_has_not(self):
        options = {
            path: {option for parameter in command.params for option in parameter.opts}
            for path, command in leaves(typer.main.get_command(app))
        }
        given = [line for name in DOCUMENTS for line in commands_in(name)]
        assert len(given) > 30
        for name, path, option in [(name, path, option) for name, path, words in given for option in words]:
            assert option in options[path] | {"--help"}, f"{name}: holdfast {path} has no {option}"

    def test_no_document_names_a_target_of_make_that_is_not_there(self):
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        named = {
            match
            for name in DOCUMENTS
            for piece in [*ticked(text(name)), *blocks(name, "")]
            for match in re.findall(r"^make ([a-z-]+)", piece, re.MULTILINE)
        }
        assert named
        assert named <= targets


class TestOperations:
    def test_numbers_are_those_of_the_code(self):
        said = " ".join(text("operations.md").split())
        pools, others = PoolSizes(), 4
        assert f"holds at most {pools.app + pools.engine + others} connections: {pools.app} for requests" in said
        assert f"gives up after `--wait-seconds` ({WAIT_SECONDS:g})" in said
        assert f"{_OLDEST_SERVER // 10_000}" == re.search(r"Postgres (\d+) or later", said)[1]

    def test_log_lines_that_are_worth_an_alert_are_written_somewhere(self):
        (watched,) = re.findall(r"\*\*Logs\*\*(.*?)\n- ", text("operations.md"), re.DOTALL)
        written_lines = {
            call.args[0].value
            for source in house()
            for _, call in source.calls()
            if (dotted(call.func) or "").startswith("log.") and isinstance(call.args[0], ast.Constant)
        }
        assert len(ticked(watched)) > 5
        assert set(ticked(watched)) <= written_lines

    def test_metrics_are_those_that_are_counted(self):
        (told,) = re.findall(r"the metrics (.*?)\. Alert", text("operations.md"), re.DOTALL)
        instruments = {names.RUNS, names.CALLS, names.COST, names.DROPPED, names.TOKEN_USAGE, names.OPERATION_DURATION}
        assert set(ticked(told)) == instruments

    def test_settings_that_matter_are_settings(self):
        all_settings = {
            name for heading in ("All settings", *(f"`{g}`" for g in GROUPS)) for name in variables(heading)
        }
        named = {name for row in rows(section("operations.md", "Settings that matter")) for name in ticked(row[0])}
        assert named
        assert named <= all_settings


class TestLinks:
    """Those to other places in the repository. What is elsewhere is not asked for."""

    @pytest.mark.parametrize("name", LINKING)
    def test_every_link_leads_to_a_file_and_a_heading_that_are_there(self, name: str):
        here = ROOT / name
        for link in re.findall(r"\]\(([^)\s]+)\)", here.read_text(encoding="utf-8")):
            if not link.startswith(("https:", "http:")):
                file, _, heading = link.partition("#")
                there = here.parent / file if file else here
                assert there.exists(), f"{name}: {link}"
                assert not heading or heading in anchors(there), f"{name}: {link}"


class TestExamples:
    def test_the_readme_example_runs(self, database_urls: DatabaseUrls, tmp_path: Path):
        (example,) = blocks("README.md", "python")
        done = run_as_given(example, database_urls, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "we have refunded $249.00 for order A-1077" in done.stdout

    @pytest.mark.parametrize("name", EXAMPLES)
    def test_a_documents_examples_run(self, name: str):
        document = Sybil(parsers=[PythonCodeBlockParser()]).parse(DOCS / name)
        for example in document.examples():
            example.evaluate()

    def test_documents_with_examples_were_found(self):
        assert {"policies.md"} <= set(EXAMPLES)

    def test_the_rules_shown_are_a_sound_set(self):
        shown_rules = blocks("policies.md", "cedar")
        assert shown_rules
        assert CedarPolicy([*shown_rules, default_text()]).version

    @pytest.mark.parametrize("name", [name for name in DOCUMENTS if name.startswith("threat")])
    def test_a_toml_example_is_toml(self, name: str):
        for example in blocks(name, "toml"):
            assert tomllib.loads(example)


def anchors(document: Path) -> set[str]:
    """The names of a document's headings, as a link ends with them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def run_as_given(example: str, urls: DatabaseUrls, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a script as a user would, on a database of the test's own, which has dana in its directory."""
    dana = '{"dana": {"tenants": ["default"], "roles": ["approver"]}}'
    (folder / "example.py").write_text(example, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "example.py"],
        cwd=folder,
        env=os.environ | {"DATABASE_URL": urls.app, "HOLDFAST_PRINCIPALS": dana, "XDG_DATA_HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def variable(name: str) -> str:
    return "DATABASE_URL" if name == "database_url" else f"{PREFIX}{name}".upper()


def written(markdown: str) -> list[tuple[str, str, str]]:
    """Name, variable and default of each row."""
    return [(ticked(row[0])[0], ticked(row[1])[0], row[2]) for row in rows(markdown)]


def shown(model: type[BaseModel], name: str) -> str:
    """A default as a document writes it."""
    field = model.model_fields[name]
    if name == "data_dir":
        return "the user's data folder"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "must be given"
    return plain(value)


def plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        return "see below"
    if value in ((), {}):
        return "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def variables(heading: str) -> Iterator[str]:
    """The variables of a table of settings."""
    for row in rows(section("settings.md", heading)):
        yield from ticked(row[1])


def commands_in(name: str) -> Iterator[tuple[str, str, list[str]]]:
    """Each `holdfast` that a document shows: the document, the words that call the command, and its options."""
    paths = sorted((path for path, _ in leaves(typer.main.get_command(app))), key=len, reverse=True)
    for piece in [*ticked(text(name)), *blocks(name, "")]:
        for line in re.findall(r"^(?:\w+=\S+ )*holdfast ([a-z].*)$", piece, re.MULTILINE):
            path = next((path for path in paths if f"{line} ".startswith(f"{path} ")), None)
            if path is not None:
                yield name, path, re.findall(r"(?<!\S)--[a-z-]+", line)


def leaves(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that does something, by the words that call it."""
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from leaves(child, f"{path} {name}".strip())
    else:
        yield path, command
