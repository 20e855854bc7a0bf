"""Every port and every public method says on whose behalf it works: a tenant, a principal, an owner."""

import inspect
from typing import Protocol, get_type_hints

import pytest

from holdfast.contracts import ports
from holdfast.runtime.blocking import BlockingRuntime
from holdfast.runtime.runtime import Runtime

WHO = {"tenant", "tenant_id", "principal", "owner", "by", "scope", "tenants", "worker_id"}
CARRIES_ONE = {"RunRequest", "Tenant", "Owner", "Principal"}
NO_TENANT_DATA = {"Ids", "Dice", "Store"}
FOR_NOBODY = {
    "Leases.seconds_to_next_expiry": "a time; whose lease it is, is not told",
    "Heartbeat.close": "gives a connection back",
    "Workers.alive": "whose workers they are is no tenant's affair",
    "Workers.wanted": "names of graphs and numbers of runs, for whoever operates",
    "Workers.claimable": "names of graphs, for a worker of the process",
}
PORTS = [
    c
    for c in vars(ports).values()
    if inspect.isclass(c) and Protocol in c.__bases__ and c.__module__ == ports.__name__
    if c.__name__ not in NO_TENANT_DATA
]


def methods(kind: type) -> list[tuple[str, object]]:
    return [
        (f"{kind.__name__}.{name}", member)
        for name, member in vars(kind).items()
        if inspect.isfunction(member) and not name.startswith("_")
    ]


def says_for_whom(function: object) -> bool:
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    hints = get_type_hints(function)  # type: ignore[arg-type]
    kinds = {getattr(hint, "__name__", "") for name, hint in hints.items() if name != "return"}
    return bool(WHO & set(parameters)) or bool(CARRIES_ONE & kinds)


@pytest.mark.parametrize(("name", "function"), [pair for port in PORTS for pair in methods(port)])
def test_every_method_of_a_port_says_for_whom_it_works(name, function):
    assert says_for_whom(function) is (name not in FOR_NOBODY), f"{name} names no tenant, principal or owner"


@pytest.mark.parametrize(("name", "function"), [*methods(Runtime), *methods(BlockingRuntime)])
def test_every_method_of_the_runtime_says_for_whom_it_works(name, function):
    if name.endswith((".register", ".hand_back", ".lost_worker")):
        pytest.skip("about this process, touches no tenant's data")
    assert says_for_whom(function), f"{name} names no tenant or principal"


def test_the_walk_sees_the_ports():
    assert {port.__name__ for port in PORTS} >= {
        "Runs",
        "Leases",
        "Journal",
        "Ledger",
        "Events",
        "Approvals",
        "Tenants",
        "Workers",
    }
