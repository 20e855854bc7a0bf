"""Permissions as Cedar policies: what an agent may do alone, what a person is asked, and what is refused.

How rules combine:

- Nothing is permitted unless a `permit` says so, and no permit stands against a satisfied `forbid`.
- A permit's `@verdict` is `allow` (when it has none), `preview` or `ask`. Of all satisfied permits the strictest wins.
- A permit may name others in `@overrides("external, write")`. While it is satisfied, those do not count. That is
  how a rule of your own loosens one of `default.cedar`: explicitly, for exactly the rule it names. A forbid cannot be
  overridden.
- Whatever fails while it is decided is denied: Cedar itself skips a forbid whose evaluation errs.

So this file, loaded after the default, lets small refunds go and asks for the others:

    @id("small-refunds")
    @overrides("external")
    @reason("Up to 50 dollars the desk refunds on its own.")
    permit (principal, action == Action::"call_tool", resource == Tool::"issue_refund")
    when {
        context.numbers.hasTag("amount_usd") &&
        context.numbers.getTag("amount_usd").lessThanOrEqual(decimal("50.00"))
    };

An agent that may only propose is still asked, because `propose` is not overridden.

A rule sees a call's arguments by name: texts in `context.texts`, true and false in `context.flags`, and in
`context.numbers` every number and every text that reads as one. Numbers are decimals with four places, rounded up, so
that no amount slips under a limit by rounding; beyond Cedar's range they are its ends. Nested arguments go by their
path (`payee.country`). Lists, nulls and names that begin with `__` or hold a dot are not seen. A rule that refuses
what it cannot read says so: `forbid (...) unless { context.numbers.hasTag("amount") && ... }`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from importlib.resources import files
from pathlib import Path
from typing import Any

import cedarpy

from holdfast.contracts.canonical import digest
from holdfast.contracts.errors import ConfigurationError
from holdfast.contracts.verdicts import Decision, PolicyRequest, Verdict

_STRICTNESS = {Decision.ALLOW: 0, Decision.PREVIEW: 1, Decision.ASK: 2}
_SHOWN = 80
"""Characters of a text by which its writer knows it again."""
_PLACES = Decimal("0.0001")
_LARGEST = Decimal("922337203685477.5807")
_SMALLEST = Decimal("-922337203685477.5808")


@dataclass(frozen=True, slots=True)
class _Rule:
    """What Cedar keeps of a policy only as annotations."""

    id: str
    order: int
    permits: bool
    decision: Decision
    reason: str
    overrides: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Arguments:
    """A call's arguments as the schema knows them."""

    texts: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)


class CedarPolicy:
    """A set of Cedar policies, parsed and checked once. Raises `ConfigurationError` for a set that is not sound."""

    def __init__(self, texts: Sequence[str]) -> None:
        schema, source = _packaged("holdfast.cedarschema"), "\n".join(texts)
        parsed = _parsed(source, texts)
        _require_valid(source, schema, names={key: _name(policy) for key, policy in parsed.items()})
        self._rules = {rule.id: rule for rule in _rules(parsed)}
        self._schema = cedarpy.Schema.from_str(schema)
        self._policies = _policy_set(parsed)
        self._version = digest([schema, *texts])[:16]

    @classmethod
    def load(cls, paths: Sequence[Path] = ()) -> "CedarPolicy":
        """The default policies and those of the `.cedar` files in `paths`. To replace the default, construct a set."""
        return cls([default_text(), *(_read(path) for path in paths)])

    @property
    def version(self) -> str:
        """The digest of the texts and the schema, shortened to 16 digits."""
        return self._version

    def decide(self, request: PolicyRequest) -> Verdict:
        """The verdict on `request`. Never raises: what cannot be decided is denied."""
        try:
            answer = cedarpy.is_authorized(_question(request), self._policies, _entities(request), self._schema)
        except Exception as error:  # noqa: BLE001  # the protocol: whatever goes wrong here is a denial, not a failure
            return self._deny("policy.error", f"the request could not be decided: {error}")
        if answer.diagnostics.errors:
            return self._deny("policy.error", f"a rule failed: {'; '.join(map(str, answer.diagnostics.errors))}")
        satisfied = [self._rules[id_] for id_ in answer.diagnostics.reasons]
        if answer.decision is not cedarpy.Decision.Allow:
            return self._denied_by(satisfied, request)
        return self._permitted_by(satisfied)

    def _permitted_by(self, satisfied: Sequence[_Rule]) -> Verdict:
        overridden = frozenset[str]().union(*(rule.overrides for rule in satisfied))
        counted = [rule for rule in satisfied if rule.id not in overridden]
        if not counted:
            return self._deny("policy.error", "the satisfied rules override each other, so that none is left")
        rule = max(counted, key=lambda rule: (_STRICTNESS[rule.decision], -rule.order))
        return Verdict(decision=rule.decision, rule=rule.id, reason=rule.reason, policy_version=self._version)

    def _denied_by(self, forbids: Sequence[_Rule], request: PolicyRequest) -> Verdict:
        if not forbids:
            return self._deny("policy.default", f"no rule permits {request.action} of {request.resource!r}")
        rule = min(forbids, key=lambda rule: rule.order)
        return self._deny(rule.id, rule.reason)

    def _deny(self, rule: str, reason: str) -> Verdict:
        return Verdict(decision=Decision.DENY, rule=rule, reason=reason, policy_version=self._version)


def default_text() -> str:
    """The text of `default.cedar`, for a set that is built from texts."""
    return _packaged("default.cedar")


def _packaged(name: str) -> str:
    return (files("holdfast.policies") / name).read_text(encoding="utf-8")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the policy file {path} cannot be read: {error}") from error


# What is checked at start


def _parsed(source: str, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    try:
        parsed = json.loads(cedarpy.policies_to_json_str(source))
    except ValueError as error:
        culprit = next((text for text in texts if not _parses(text)), source)
        raise ConfigurationError(
            f"the Cedar policies that begin with {culprit.strip()[:_SHOWN]!r} do not parse: {error}"
        ) from error
    if parsed["templates"]:
        raise ConfigurationError("Cedar templates are not used here; write the policies out")
    return dict(parsed["staticPolicies"])


def _parses(text: str) -> bool:
    try:
        cedarpy.policies_to_json_str(text)
    except ValueError:
        return False
    return True


def _require_valid(source: str, schema: str, *, names: Mapping[str, str]) -> None:
    result = cedarpy.validate_policies(source, schema)
    if result.validation_passed:
        return
    complaints = "; ".join(str(error) for error in result.errors)
    for key in sorted(names, key=len, reverse=True):
        complaints = complaints.replace(f"[{key}] ", "").replace(f"`{key}`", repr(names[key]))
    raise ConfigurationError(f"the Cedar policies do not fit policies/holdfast.cedarschema: {complaints}")


def _policy_set(parsed: Mapping[str, dict[str, Any]]) -> cedarpy.PolicySet:
    """The set under our own ids: Cedar answers with the keys of this mapping."""
    by_id = {_name(policy): policy for policy in parsed.values()}
    return cedarpy.PolicySet.from_json_str(json.dumps({"templates": {}, "staticPolicies": by_id, "templateLinks": []}))


def _name(policy: Mapping[str, Any]) -> str:
    return str(policy.get("annotations", {}).get("id") or "without @id")


def _rules(parsed: Mapping[str, dict[str, Any]]) -> Iterator[_Rule]:
    known: set[str] = set()
    for order, policy in enumerate(parsed.values()):
        rule = _rule(order, policy)
        if rule.id in known:
            raise ConfigurationError(f"two Cedar policies have @id({rule.id!r}); ids are unique over all files")
        known.add(rule.id)
        yield rule
    named = {name for order, policy in enumerate(parsed.values()) for name in _rule(order, policy).overrides}
    if unknown := sorted(named - known):
        raise ConfigurationError(f"@overrides names {', '.join(unknown)}, but no Cedar policy has that @id")


def _rule(order: int, policy: Mapping[str, Any]) -> _Rule:
    notes = policy.get("annotations", {})
    if not notes.get("id"):
        raise ConfigurationError(f"a Cedar policy (number {order + 1}) has no @id; verdicts are recorded by it")
    permits = policy["effect"] == "permit"
    if not permits and notes.keys() & {"verdict", "overrides"}:
        raise ConfigurationError(f"the forbid {notes['id']!r} has a @verdict or @overrides; a forbid always denies")
    return _Rule(
        id=notes["id"],
        order=order,
        permits=permits,
        decision=_decision(notes) if permits else Decision.DENY,
        reason=notes.get("reason") or f"rule {notes['id']!r} says so",
        overrides=frozenset((notes.get("overrides") or "").replace(",", " ").split()),
    )


def _decision(notes: Mapping[str, Any]) -> Decision:
    verdict = notes.get("verdict", Decision.ALLOW)
    if verdict not in set(_STRICTNESS):
        raise ConfigurationError(
            f"the permit {notes['id']!r} has @verdict({verdict!r}); it can be allow, preview or ask, and a denial is "
            "written as forbid"
        )
    return Decision(verdict)


# What is asked of Cedar


def _question(request: PolicyRequest) -> dict[str, Any]:
    is_tool = request.action == "call_tool"
    context: dict[str, Any] = {
        "autonomy": request.autonomy.value,
        "agent": request.agent_name,
        "graph": request.graph_name,
    }
    if is_tool:
        context |= {kind.lower(): {"__entity": _uid(kind, "args")} for kind in ("Texts", "Numbers", "Flags")}
    return {
        "principal": _uid("User", request.tenant.user_id or ""),
        "action": _uid("Action", request.action),
        "resource": _uid("Tool" if is_tool else "Model", request.resource),
        "context": context,
    }


def _entities(request: PolicyRequest) -> list[dict[str, Any]]:
    tenant = request.tenant
    roles = [_uid("Role", role) for role in sorted(set(tenant.roles))]
    principal = _entity(
        _uid("User", tenant.user_id or ""),
        attrs={"tenant": tenant.tenant_id, "scopes": list(tenant.data_scopes)},
        parents=roles,
    )
    entities = [principal, *(_entity(role) for role in roles)]
    if request.action == "call_model":
        return [*entities, _entity(_uid("Model", request.resource))]
    terms = {"effect": request.effect.value, "idempotent": request.idempotent}
    arguments = _projected(request.args)
    return [
        *entities,
        _entity(_uid("Tool", request.resource), attrs=terms),
        _entity(_uid("Texts", "args"), tags=arguments.texts),
        _entity(_uid("Numbers", "args"), tags=arguments.numbers),
        _entity(_uid("Flags", "args"), tags=arguments.flags),
    ]


def _uid(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "id": name}


def _entity(
    uid: Mapping[str, str],
    *,
    attrs: Mapping[str, Any] | None = None,
    parents: Sequence[Mapping[str, str]] = (),
    tags: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return {"uid": uid, "attrs": attrs or {}, "parents": list(parents), "tags": tags or {}}


def _projected(args: Mapping[str, Any]) -> _Arguments:
    arguments = _Arguments()
    for path, value in _leaves(args, prefix=""):
        match value:
            case bool():
                arguments.flags[path] = value
            case int() | float() | Decimal():
                arguments.numbers[path] = _cedar_decimal(Decimal(str(value)))
            case str():
                arguments.texts[path] = value
                if (number := _number(value)) is not None:
                    arguments.numbers[path] = _cedar_decimal(number)
    return arguments


def _leaves(args: Mapping[str, Any], *, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every single value by its path. A name with a dot is left out, so that no path can be forged."""
    for name, value in args.items():
        if name.startswith("__") or "." in name:
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, prefix=f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _number(text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _cedar_decimal(number: Decimal) -> dict[str, Any]:
    within = min(max(number, _SMALLEST), _LARGEST)
    rounded = min(within.quantize(_PLACES, rounding=ROUND_CEILING), _LARGEST)
    return {"__extn": {"fn": "decimal", "arg": f"{rounded:f}"}}
