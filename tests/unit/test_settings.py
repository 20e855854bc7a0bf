"""Settings: where each value comes from, and one line for each thing that is wrong."""

from decimal import Decimal
from pathlib import Path

import pytest

from holdfast.contracts.errors import ConfigurationError, NotFound
from holdfast.contracts.limits import Limits
from holdfast.contracts.tools import Effect
from holdfast.server.encryption import encryption
from holdfast.server.settings import load_settings, unknown_variables

FILE = """
model = "openai:gpt-5-mini"

[limits]
max_model_calls = 7
max_cost_usd = "2.50"

[tenants.acme]
may_be_unlimited = true
defaults = { max_steps = 9 }

[tenants.globex]

[principals.dana]
tenants = ["acme"]
roles = ["approver"]

[tools.issue_refund]
effect = "destructive"

[prices."openai:private"]
input_usd_per_million = "0.40"
output_usd_per_million = 2
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "holdfast.toml") -> None:
    Path(name).write_text(text, encoding="utf-8")


def refusal(**overrides: object) -> list[str]:
    with pytest.raises(ConfigurationError) as refused:
        load_settings(**overrides)
    return refused.value.message.splitlines()


def test_without_anything_there_is_one_tenant_with_finite_limits_and_an_embedded_database() -> None:
    settings = load_settings()
    assert settings.embedded
    assert [tenant.tenant_id for tenant in settings.all_tenants()] == ["default"]
    assert settings.all_tenants()[0].defaults.unlimited == ()
    assert settings.tenant_or_default(None) == "default"


def test_the_file_names_tenants_principals_tools_and_prices() -> None:
    write(FILE)
    settings = load_settings()
    assert settings.principals["dana"].user_id == "dana"
    assert settings.principals["dana"].tenants == ("acme",)
    assert settings.tools["issue_refund"].effect is Effect.DESTRUCTIVE
    assert settings.prices["openai:private"].output_usd_per_million == 2


def test_a_tenant_takes_the_general_limits_wherever_it_names_none() -> None:
    write(FILE)
    acme, globex = load_settings().all_tenants()
    assert (acme.defaults.max_steps, acme.defaults.max_model_calls) == (9, 7)
    assert globex.defaults == Limits(max_model_calls=7, max_cost_usd=Decimal("2.50"))
    assert acme.may_be_unlimited


def test_the_environment_comes_before_the_file_and_what_is_given_before_both(monkeypatch: pytest.MonkeyPatch) -> None:
    write(FILE)
    monkeypatch.setenv("HOLDFAST_MODEL", "anthropic:claude")
    monkeypatch.setenv("HOLDFAST_LIMITS__MAX_MODEL_CALLS", "1")
    settings = load_settings()
    assert settings.model == "anthropic:claude"
    assert (settings.limits.max_model_calls, settings.limits.max_cost_usd) == (1, Decimal("2.50"))
    assert load_settings(model="scripted:m:f").model == "scripted:m:f"


def test_unlimited_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_LIMITS__MAX_STEPS", "none")
    assert load_settings().limits.unlimited == ("max_steps",)


def test_the_database_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://app:hunter2@db/holdfast")
    monkeypatch.setenv("HOLDFAST_OWNER_DATABASE_URL", "postgresql://owner:hunter3@db/holdfast")
    settings = load_settings()
    assert not settings.embedded
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value().endswith("/holdfast")
    assert "hunter" not in f"{settings!r} {settings}"


KEY = "aGlkZGVuIGhpZGRlbiBoaWRkZW4gaGlkZGVuIGhpZGQ="


def test_an_encryption_key_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_ENCRYPTION__KEYS", f'{{"2026-11": "{KEY}"}}')
    settings = load_settings()
    wanted = encryption(settings.encryption)
    assert wanted is not None
    assert wanted.keyring.seals_with == "2026-11"
    shown = f"{settings!r} {settings} {settings.model_dump_json()} {settings.encryption!r} {wanted!r}"
    assert KEY not in shown
    assert "hidden" not in shown


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("HOLDFAST_ENCRYPTION__KEYS", f'["{KEY}"]', "input should be a valid dictionary"),
        ("HOLDFAST_ENCRYPTION__KEYS", f'"{KEY}"', "input should be a valid dictionary"),
        ("HOLDFAST_ENCRYPTION__KEYS", KEY, "error parsing value"),
        ("HOLDFAST_ENCRYPTION__KEYS", f'{{"a": ["{KEY}"]}}', "input should be a valid string"),
        ("HOLDFAST_ENCRYPTION__KEYS", f'{{"a": "{KEY}-"}}', "'a' is not base64"),
        ("HOLDFAST_ENCRYPTION__KEYS", f'{{"a": "{KEY[:20]}"}}', "'a' has 15 bytes and must have 32"),
        ("HOLDFAST_ENCRYPTION__KEYS", f'{{"a": "{KEY}", "b": "{KEY}"}}', "several encryption keys; say which one"),
        ("HOLDFAST_ENCRYPTION", f'"{KEY}"', "input should be a valid dictionary"),
        ("HOLDFAST_ENCRYPTION__KEY_ID", "a", "names 'a', and there are no keys"),
    ],
)
def test_keys_that_do_not_fit_are_refused_without_being_quoted(
    name: str, value: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=complaint) as refused:
        encryption(load_settings().encryption)
    assert KEY[:20] not in f"{refused.value} {refused.value.facts}"


def test_the_key_to_write_with_is_named_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_ENCRYPTION__KEYS", f'{{"a": "{KEY}", "b": "{KEY}"}}')
    monkeypatch.setenv("HOLDFAST_ENCRYPTION__KEY_ID", "b")
    wanted = encryption(load_settings().encryption)
    assert wanted is not None
    assert (wanted.keyring.seals_with, wanted.keyring.key_ids) == ("b", ["a", "b"])


def test_each_thing_that_is_wrong_has_a_line_that_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    write('[limits]\nmax_tokens = "many"\n[tenants.acme]\nmax_budget = 1\n')
    monkeypatch.setenv("HOLDFAST_WORKER__SLOTS", "0")
    slots, limits, tenant = sorted(refusal())
    assert slots.startswith("HOLDFAST_WORKER__SLOTS: ")
    assert slots.endswith("not '0'")
    assert limits.startswith("setting limits.max_tokens: ")
    assert tenant == "setting tenants.0.max_budget: there is no such setting"


def test_a_misspelt_group_member_is_refused_and_a_misspelt_variable_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_MODLE", "openai:x")
    assert unknown_variables() == ("HOLDFAST_MODLE",)
    monkeypatch.setenv("HOLDFAST_LIMITS__MAX_MODEL_CALL", "1")
    assert refusal() == ["HOLDFAST_LIMITS__MAX_MODEL_CALL: there is no such setting"]


@pytest.mark.parametrize("text", ["model = ", "\xff"])
def test_a_file_that_cannot_be_read_is_named(text: str, folder: Path) -> None:
    (folder / "holdfast.toml").write_bytes(text.encode("latin-1"))
    (line,) = refusal()
    assert line.startswith("holdfast.toml: cannot be read: ")


def test_a_named_file_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    write('model = "openai:other"', "other.toml")
    monkeypatch.setenv("HOLDFAST_CONFIG", "other.toml")
    assert load_settings().model == "openai:other"
    monkeypatch.setenv("HOLDFAST_CONFIG", "absent.toml")
    assert refusal() == ["HOLDFAST_CONFIG names 'absent.toml', and there is no such file; correct it, or unset it"]


def test_which_tenant_is_meant_must_be_clear() -> None:
    write("[tenants.acme]\n[tenants.globex]\n")
    settings = load_settings()
    assert settings.tenant_or_default("acme") == "acme"
    with pytest.raises(NotFound, match="several tenants; say which one: acme, globex"):
        settings.tenant_or_default(None)
    with pytest.raises(NotFound, match="no tenant 'umbrella'; the configured ones are acme, globex"):
        settings.tenant_or_default("umbrella")


def test_tenants_may_be_given_by_bare_names():
    settings = load_settings(tenants=["acme", {"tenant_id": "globex", "may_be_unlimited": True}])

    assert [tenant.tenant_id for tenant in settings.all_tenants()] == ["acme", "globex"]


def test_nothing_stays_at_the_database_for_longer_than_a_lease_is_counted_on() -> None:
    brief = load_settings(worker={"lease_ttl_seconds": 5.0}).store_terms
    assert (brief.statement_seconds, brief.lock_seconds, brief.idle_seconds) == (4.0, 4.0, 4.0)
    long = load_settings(worker={"lease_ttl_seconds": 600.0}).store_terms
    assert (long.statement_seconds, long.lock_seconds, long.idle_seconds) == (15.0, 10.0, 10.0)
    own = load_settings(worker={"lease_ttl_seconds": 600.0}, statement_seconds=60.0).store_terms
    assert (own.statement_seconds, own.transaction_seconds) == (60.0, 60.0)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"HOLDFAST_STATEMENT_SECONDS": "12.5"}, "statement_seconds is 12.5, and a worker counts on a lease for 12 s"),
        ({"HOLDFAST_WORKER__MARGIN_SECONDS": "15"}, "margin_seconds is 15, and lease_ttl_seconds 15"),
        ({"HOLDFAST_WORKER__BEAT_SECONDS": "15"}, "beat_seconds is 15, and a worker counts on a lease for 12 s"),
    ],
)
def test_terms_that_contradict_the_lease_are_refused_at_start(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], told: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (line,) = refusal()
    assert told in line
    assert "or a longer lease" in line
