"""The settings: `DATABASE_URL` and `HOLDFAST_*` from the environment, then `holdfast.toml`, then defaults.

Groups are joined by two underscores (`HOLDFAST_LIMITS__MAX_MODEL_CALLS=1`); `none` is None. Keys of model providers
are not settings: their clients read them where they always do (`OPENAI_API_KEY`).
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from platformdirs import user_data_path
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from holdfast.checkpoints.database import StoreTerms
from holdfast.contracts.errors import ConfigurationError, NotFound
from holdfast.contracts.limits import Dollars, Limits
from holdfast.contracts.tenancy import Principal, Tenant
from holdfast.contracts.tools import ToolTerms
from holdfast.contracts.verdicts import Autonomy
from holdfast.runtime.leases import LeaseTerms

DEFAULT_TENANT = "default"
DEFAULT_FILE = Path("holdfast.toml")
PREFIX = "HOLDFAST_"
_SECRET = frozenset({"encryption", "DATABASE_URL", "database_url", "owner_database_url"})
"""Settings whose value no complaint quotes."""

ModelName = Annotated[str, Field(pattern=r"^[a-z0-9_]+:.+$")]
"""`provider:model`, as LangChain's `init_chat_model` takes it, or `scripted:module:function`."""


class ModelPrice(BaseModel):
    """What a model costs, where the public price list does not know it or is wrong for you."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    input_usd_per_million: Dollars
    """Dollars for a million input tokens."""
    output_usd_per_million: Dollars
    """Dollars for a million output tokens."""


class WorkerSettings(BaseModel):
    """How a worker works."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    slots: int = Field(default=4, ge=1, le=256)
    """Runs worked on at the same time."""
    lease_ttl_seconds: float = Field(default=15.0, ge=1.0, le=600.0)
    """How long a run stays with a worker that says nothing. Shorter hands over sooner and beats more often."""
    margin_seconds: float | None = Field(default=None, gt=0.0)
    """How long before its lease ends a worker lets a run go, by its own clock. None: a fifth of it, at most 3 s."""
    beat_seconds: float | None = Field(default=None, gt=0.0)
    """How often leases are prolonged. None: every fifth of a lease."""
    poll_seconds: float = Field(default=1.0, gt=0.0, le=60.0)
    """How often the queue is looked at when nothing wakes the worker."""
    cleanup_seconds: float = Field(default=5.0, ge=0.0, le=300.0)
    """How long a node that was cancelled may clean up before it is left behind."""
    max_attempts: int = Field(default=5, ge=1, le=1000)
    """Workers that may be lost in a row on a run before it counts as dead. Recorded when the run is admitted."""
    prune_seconds: float = Field(default=600.0, gt=0.0, le=86_400.0)
    """How often what the tenants' terms let go of is pruned (`tenants`, `retention`)."""


class TelemetrySettings(BaseModel):
    """What is told to the outside, and for how long anything may wait for it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    capture_content: bool = False
    """Whether prompts, answers, arguments and exception messages are written into spans."""
    max_queued_spans: int = Field(default=2048, ge=1, le=1_000_000)
    """Spans that may wait for the exporter; more are dropped and counted."""
    shutdown_seconds: float = Field(default=2.0, ge=0.0, le=60.0)
    """How long the end of the process waits for the exporter, at most."""
    log_format: Literal["console", "json"] = "console"
    """How log lines look on standard error."""
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """The least important lines that are shown."""


class EncryptionSettings(BaseModel):
    """The keys that what is stored is encrypted with."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    keys: Mapping[str, SecretStr] = Field(default_factory=dict, repr=False)
    """Keys by their ids: 32 random bytes each, in base64. Without any, nothing is encrypted."""
    key_id: str | None = None
    """The one to write with; the others open what was written before. May be left out while there is only one."""


def _tenants(given: object) -> object:
    """Tenants by name, as a file has them, or in a list of terms or bare names."""
    if isinstance(given, Mapping):
        return [{"tenant_id": name, **terms} if isinstance(terms, Mapping) else terms for name, terms in given.items()]
    if isinstance(given, list | tuple):
        return [{"tenant_id": each} if isinstance(each, str) else each for each in given]
    return given


def _principals(given: object) -> object:
    if isinstance(given, Mapping):
        return {
            name: {"user_id": name, **terms} if isinstance(terms, Mapping) else terms for name, terms in given.items()
        }
    return given


class Settings(BaseSettings):
    """All settings of one process. Only the server sees them; the rooms below are given what they need."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        env_parse_none_str="none",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        toml_file=None,
    )

    database_url: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("DATABASE_URL", "database_url"), repr=False
    )
    """The Postgres to use, as the login of the application. None: an embedded one is started."""
    owner_database_url: SecretStr | None = Field(default=None, repr=False)
    """The same database as its owner, for `holdfast db upgrade` alone."""
    statement_seconds: float | None = Field(default=None, gt=0.0)
    """How long one statement may take, at most as long as a worker counts on a lease. None: so long, at most 15 s."""
    data_dir: Path = Field(default_factory=lambda: user_data_path("holdfast"))
    """Where the embedded database keeps its data; for root, /var/lib/holdfast unless this is set."""
    model: ModelName | None = None
    """The model that the route `default` means; None: the graph's own offline model."""
    routes: Mapping[str, ModelName] = Field(default_factory=dict)
    """Names for models, so that a graph asks for `cheap` and the operator says what that is."""
    prices: Mapping[str, ModelPrice] = Field(default_factory=dict)
    """Prices by `provider:model`, before the public list is asked."""
    tenants: Annotated[tuple[Tenant, ...], BeforeValidator(_tenants)] = ()
    """The tenants and their terms. When none is named there is one, `default`."""
    principals: Annotated[Mapping[str, Principal], BeforeValidator(_principals)] = Field(default_factory=dict)
    """Who may act: tenants, roles and data scopes by name."""
    limits: Limits = Limits()
    """Limits of a run that names none, for tenants that have no defaults of their own."""
    autonomy: Autonomy | None = None
    """How far agents may act alone; None: as far as each graph says."""
    tools: Mapping[str, ToolTerms] = Field(default_factory=dict)
    """Terms of tools by name, over what their authors declared."""
    policy_files: tuple[Path, ...] = ()
    """Cedar policies, besides the ones that come with holdfast."""
    worker: WorkerSettings = WorkerSettings()
    """How a worker works."""
    encryption: EncryptionSettings = EncryptionSettings()
    """Encryption of what is stored, which is off until there is a key."""
    telemetry: TelemetrySettings = TelemetrySettings()
    """Spans and logs. Where spans go is OpenTelemetry's own setting (`OTEL_EXPORTER_OTLP_ENDPOINT`)."""
    max_input_bytes: int = Field(default=1_048_576, gt=0)
    """The largest input of a run, in bytes."""
    approval_expires_seconds: float = Field(default=604_800.0, gt=0)
    """How long a person has to decide."""
    attached_tenant: str | None = None
    """For whom graphs run that another engine hosts (Studio); None: the only tenant."""
    attached_user: str = Field(default="studio", min_length=1)
    """Who they run as."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = _settings_file()
        sources = (init_settings, env_settings)
        return sources if file is None else (*sources, TomlConfigSettingsSource(settings_cls, toml_file=file))

    @property
    def embedded(self) -> bool:
        """Whether the database is our own, for this user alone."""
        return self.database_url is None

    @property
    def embedded_folder(self) -> Path | None:
        """The folder of the embedded server; None where it chooses for itself."""
        return self.data_dir / "postgres" if "data_dir" in self.model_fields_set else None

    def consistent(self) -> Self:
        """These settings; raises `ConfigurationError` where the terms of leases and of the database contradict each
        other."""
        _ = self.store_terms
        return self

    @property
    def lease_terms(self) -> LeaseTerms:
        """How leases are kept."""
        worker = self.worker
        return LeaseTerms(worker.lease_ttl_seconds, margin=worker.margin_seconds, beat=worker.beat_seconds)

    @property
    def store_terms(self) -> StoreTerms:
        """How long anything at the database may take, by the lease."""
        return StoreTerms.within(self.lease_terms.usable_seconds, statement_seconds=self.statement_seconds)

    def all_tenants(self) -> tuple[Tenant, ...]:
        """The tenants with their defaults complete: theirs, and the general limits wherever they name none."""
        named = self.tenants or (Tenant(tenant_id=DEFAULT_TENANT),)
        return tuple(tenant.model_copy(update={"defaults": tenant.defaults.over(self.limits)}) for tenant in named)

    def tenant_or_default(self, name: str | None) -> str:
        """`name`, or the tenant that is meant when none is named. Raises `NotFound` where that is not clear."""
        known = [tenant.tenant_id for tenant in self.all_tenants()]
        if name is None and len(known) > 1 and DEFAULT_TENANT not in known:
            raise NotFound(f"there are several tenants; say which one: {', '.join(sorted(known))}")
        chosen = name if name is not None else (known[0] if len(known) == 1 else DEFAULT_TENANT)
        if chosen not in known:
            raise NotFound(f"there is no tenant {chosen!r}; the configured ones are {', '.join(sorted(known))}")
        return chosen


def load_settings(**overrides: Any) -> Settings:
    """The settings of this process; `overrides` come before the environment. Raises `ConfigurationError` with one
    line for each thing that is wrong."""
    try:
        return Settings(**overrides).consistent()
    except ValidationError as error:
        raise ConfigurationError("\n".join(_line(problem) for problem in error.errors())) from None
    except SettingsError as error:
        raise ConfigurationError(f"the environment: {error}{_because(error)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigurationError(f"{_settings_file()}: cannot be read: {error}") from error


def unknown_variables() -> tuple[str, ...]:
    """Variables of the environment that look like settings and are none: misspelt ones, most likely."""
    known = {"config", *Settings.model_fields} - {"database_url"}
    named = (name for name in os.environ if name.startswith(PREFIX))
    return tuple(sorted(name for name in named if name.removeprefix(PREFIX).lower().split("__")[0] not in known))


def _settings_file() -> Path | None:
    named = os.environ.get(f"{PREFIX}CONFIG")
    if named:
        if not Path(named).is_file():
            raise ConfigurationError(
                f"{PREFIX}CONFIG names {named!r}, and there is no such file; correct it, or unset it"
            )
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


def _line(problem: ErrorDetails) -> str:
    path = [str(part) for part in problem["loc"]]
    variable = "DATABASE_URL" if path[:1] == ["DATABASE_URL"] else PREFIX + "__".join(path).upper()
    where = variable if variable in os.environ else f"setting {'.'.join(path)}"
    if problem["type"] == "extra_forbidden":
        return f"{where}: there is no such setting"
    given = "" if _SECRET.intersection(path) else f", not {_shown(problem['input'])}"
    return f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}{given}"


def _shown(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _because(error: SettingsError) -> str:
    return f": {error.__cause__}" if error.__cause__ is not None else ""
