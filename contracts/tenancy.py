"""Who pays and is isolated, and who acts."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from holdfast.contracts.ids import TenantId
from holdfast.contracts.limits import Limits


class TenantContext(BaseModel):
    """On whose behalf something happens: the specification's tenant context. Every operation carries one."""

    model_config = ConfigDict(frozen=True)

    tenant_id: TenantId
    user_id: str | None = None
    roles: tuple[str, ...] = ()
    data_scopes: tuple[str, ...] = ()
    policy_version: str = ""


class Principal(BaseModel):
    """A person or service that acts: the configured directory says which tenants and roles it has."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    user_id: str = Field(min_length=1)
    tenants: tuple[TenantId, ...] | None = ()
    """The tenants that it belongs to; elsewhere it sees nothing. None: all (a bare name on the embedded database)."""
    roles: tuple[str, ...] = ()
    """Seen by policies as its groups, and asked for by tools' `permissions`."""
    data_scopes: tuple[str, ...] = ()
    """The same, for data that a tool may touch."""

    def may_act_for(self, tenant_id: str) -> bool:
        """Whether this principal belongs to the tenant."""
        return self.tenants is None or tenant_id in self.tenants


class RetentionTerms(BaseModel):
    """How long a tenant's runs leave what. Only of runs that have ended; a worker takes it out."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    events_days: int | None = Field(default=None, ge=0, le=36_500)
    """Days from a run's end until its events are pruned; that of its end stays. None: they all stay."""
    checkpoints: Literal["all", "keep_latest"] = "all"
    """Which checkpoints of a thread stay once no run of it is open. With a delta channel in it all stay."""
    checkpoints_days: int | None = Field(default=None, ge=0, le=36_500)
    """Days from the end of a thread's last run until all its checkpoints go, and with them its state. None: never."""
    contents_days: int | None = Field(default=None, ge=0, le=36_500)
    """Days from a run's end until its words, and those of its calls and approvals, are pruned. None: they all stay."""


class Tenant(BaseModel):
    """A tenant's terms, from the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tenant_id: TenantId = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    defaults: Limits = Limits()
    """Limits of a run that names none; what is left out here is taken from `limits`."""
    may_be_unlimited: bool = False
    """Whether a run may write out `none` for a limit."""
    budget: Limits | None = None
    """What all the tenant's runs together may use, over its whole life; its deadline and steps are not read."""
    max_queued: int = Field(default=1000, ge=0)
    """Runs that may wait in the queue; a further one is refused and told when to come back."""
    retention: RetentionTerms = RetentionTerms()
    """What is pruned, and when; by default nothing."""
    legal_hold: bool = False
    """Whether everything stays, whatever `retention` says."""
