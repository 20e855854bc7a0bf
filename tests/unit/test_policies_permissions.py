"""Cedar permissions as tables: how autonomy, effects, rules of one's own and arguments combine."""

import re
from pathlib import Path

import pytest

from holdfast.contracts.errors import ConfigurationError
from holdfast.contracts.tenancy import TenantContext
from holdfast.contracts.tools import Effect
from holdfast.contracts.verdicts import Autonomy, Decision, PolicyRequest
from holdfast.policies import permissions
from holdfast.policies.permissions import CedarPolicy, default_text

SMALL_REFUNDS = """
@id("small-refunds")
@overrides("external")
@reason("Up to 50 dollars the desk refunds on its own.")
permit (principal, action == Action::"call_tool", resource == Tool::"issue_refund")
when {
    context.numbers.hasTag("amount_usd") &&
    context.numbers.getTag("amount_usd").lessThanOrEqual(decimal("50.00"))
};
"""
CAPPED = """
@id("capped")
@reason("Nobody pays more than 1000.")
forbid (principal, action == Action::"call_tool", resource == Tool::"issue_refund")
unless {
    context.numbers.hasTag("amount_usd") &&
    context.numbers.getTag("amount_usd").lessThanOrEqual(decimal("1000.0"))
};
"""
ADMINS_WIPE = """
@id("admins-wipe")
@overrides("destructive")
permit (principal in Role::"admin", action == Action::"call_tool", resource == Tool::"wipe");
"""
UNGUARDED = """
@id("unguarded")
permit (principal, action == Action::"call_tool", resource)
when { context.numbers.getTag("n").lessThan(decimal("1.0")) };
"""


def request(**facts) -> PolicyRequest:
    standard = {
        "tenant": TenantContext(tenant_id="acme", user_id="dana", roles=("clerk",), data_scopes=("orders",)),
        "action": "call_tool",
        "resource": "issue_refund",
        "effect": Effect.EXTERNAL,
    }
    return PolicyRequest(**(standard | facts))


def refund(policy: CedarPolicy, amount: object, **facts) -> Decision:
    return policy.decide(request(args={"order_id": "A-1", "amount_usd": amount}, **facts)).decision


@pytest.fixture(scope="module")
def default() -> CedarPolicy:
    return CedarPolicy.load()


@pytest.fixture(scope="module")
def policy() -> CedarPolicy:
    return CedarPolicy([default_text(), SMALL_REFUNDS, ADMINS_WIPE])


TABLE = {
    #                         read     write      external   destructive
    Autonomy.OBSERVE: ("allow", "deny", "deny", "deny"),
    Autonomy.PROPOSE: ("allow", "preview", "preview", "preview"),
    Autonomy.SUPERVISED: ("allow", "allow", "ask", "preview"),
    Autonomy.AUTONOMOUS: ("allow", "allow", "allow", "preview"),
}


@pytest.mark.parametrize("autonomy", Autonomy)
def test_default_policies_decide_by_autonomy_and_effect(default, autonomy):
    decided = [default.decide(request(autonomy=autonomy, effect=effect)).decision for effect in Effect]
    assert tuple(decided) == TABLE[autonomy]


def test_the_table_drawn_in_the_default_policies_is_the_one_tested():
    drawn = {
        match["autonomy"]: tuple(match["row"].split())
        for match in re.finditer(r"^// (?P<autonomy>\w+) +(?P<row>(?:\w+ +){3}\w+)$", default_text(), re.MULTILINE)
        if match["autonomy"] in set(Autonomy)
    }
    assert drawn == {autonomy.value: row for autonomy, row in TABLE.items()}


def test_models_are_allowed_to_every_autonomy(default):
    decided = {
        default.decide(request(action="call_model", resource="openai:gpt-5", autonomy=autonomy)).decision
        for autonomy in Autonomy
    }
    assert decided == {Decision.ALLOW}


def test_what_no_rule_permits_is_denied():
    verdict = CedarPolicy([SMALL_REFUNDS.replace('@overrides("external")', "")]).decide(request(resource="send_mail"))
    assert (verdict.decision, verdict.rule) == (Decision.DENY, "policy.default")
    assert "send_mail" in verdict.reason


def test_the_verdict_names_the_rule_its_reason_and_the_version(default):
    verdict = default.decide(request())
    assert verdict.rule == "external"
    assert verdict.reason == "The tool reaches others, and the agent is supervised."
    assert verdict.policy_version == default.version


class TestOverrides:
    @pytest.mark.parametrize(
        ("amount", "decision"),
        [
            ("50.00", "allow"),
            ("50.01", "ask"),
            (50, "allow"),
            (50.00001, "ask"),
            ("50.00001", "ask"),
            ("5e1", "allow"),
            ("fifty", "ask"),
            ("60,00", "ask"),
            ("NaN", "ask"),
            ("1e400", "ask"),
            (2**70, "ask"),
            (True, "ask"),
            (None, "ask"),
            ([12], "ask"),
            ({"value": 12}, "ask"),
            ({"__extn": {"fn": "decimal", "arg": "1.0"}}, "ask"),
            ({"__entity": {"type": "Role", "id": "admin"}}, "ask"),
        ],
    )
    def test_a_rule_of_ones_own_loosens_only_the_amounts_it_can_read(self, policy, amount, decision):
        assert refund(policy, amount) == decision

    def test_a_missing_amount_is_asked_for(self, policy):
        assert policy.decide(request(args={"order_id": "A-1"})).decision == Decision.ASK

    @pytest.mark.parametrize(
        ("autonomy", "decision"),
        [("observe", "deny"), ("propose", "preview"), ("supervised", "allow"), ("autonomous", "allow")],
    )
    def test_it_loosens_just_the_rule_it_names(self, policy, autonomy, decision):
        assert refund(policy, "12.00", autonomy=Autonomy(autonomy)) == decision

    def test_another_tool_is_not_loosened(self, policy):
        assert refund(policy, "12.00", resource="wire_money") == Decision.ASK

    def test_a_role_is_held_by_the_principal_not_claimed_in_the_arguments(self, policy):
        wiping = {"resource": "wipe", "effect": Effect.DESTRUCTIVE, "args": {"role": "admin"}}
        admin = TenantContext(tenant_id="acme", user_id="ada", roles=("admin",))
        assert policy.decide(request(**wiping)).decision == Decision.PREVIEW
        assert policy.decide(request(**wiping, tenant=admin)).decision == Decision.ALLOW

    def test_rules_that_override_each_other_leave_nothing_permitted(self):
        first = SMALL_REFUNDS.replace('"external"', '"twin"')
        twin = first.replace('@id("small-refunds")', '@id("twin")').replace(
            '@overrides("twin")', '@overrides("small-refunds")'
        )
        verdict = CedarPolicy([first, twin]).decide(request(args={"amount_usd": "1.00"}))
        assert (verdict.decision, verdict.rule) == (Decision.DENY, "policy.error")


def test_a_forbid_wins_over_every_permit_and_names_itself():
    policy = CedarPolicy([default_text(), SMALL_REFUNDS, CAPPED])
    assert refund(policy, "12.00") == Decision.ALLOW
    verdict = policy.decide(request(args={"amount_usd": "1000.01"}, autonomy=Autonomy.AUTONOMOUS))
    assert (verdict.decision, verdict.rule, verdict.reason) == ("deny", "capped", "Nobody pays more than 1000.")


def test_the_strictest_satisfied_permit_wins():
    asked = '@id("mail") @verdict("ask") permit (principal, action == Action::"call_tool", resource == Tool::"mail");'
    policy = CedarPolicy([default_text(), asked])
    assert policy.decide(request(resource="mail", autonomy=Autonomy.AUTONOMOUS)).rule == "mail"


class TestArguments:
    """What a rule sees of the arguments; the arguments come from a model."""

    def sees(self, condition: str, args: dict) -> bool:
        rule = f'@id("r") permit (principal, action == Action::"call_tool", resource) when {{ {condition} }};'
        return CedarPolicy([rule]).decide(request(args=args)).decision == Decision.ALLOW

    def test_nested_arguments_go_by_their_path(self):
        condition = 'context.texts.hasTag("payee.country") && context.texts.getTag("payee.country") == "DE"'
        assert self.sees(condition, {"payee": {"country": "DE"}})
        assert not self.sees(condition, {"payee.country": "DE"})
        assert not self.sees(condition, {"payee": {"country": "FR"}, "payee.country": "DE"})

    def test_flags_are_flags_and_not_numbers(self):
        assert self.sees('context.flags.hasTag("express") && context.flags.getTag("express")', {"express": True})
        assert not self.sees('context.numbers.hasTag("express")', {"express": True})

    def test_a_text_that_reads_as_a_number_is_both(self):
        assert self.sees('context.texts.hasTag("n") && context.numbers.hasTag("n")', {"n": "12"})

    @pytest.mark.parametrize("args", [{"__x": "a"}, {"x": None}, {"x": ["a"]}, {"x": {"__y": "a"}}, {"x": {}}])
    def test_names_with_underscores_nulls_and_lists_are_not_seen(self, args):
        assert not self.sees(" || ".join(f'context.texts.hasTag("{n}")' for n in ("__x", "x", "x.__y", "__y")), args)

    def test_an_amount_is_never_rounded_below_a_limit(self):
        condition = 'context.numbers.hasTag("n") && context.numbers.getTag("n").lessThanOrEqual(decimal("1.0"))'
        assert self.sees(condition, {"n": "1.0000"})
        assert not self.sees(condition, {"n": "1.00000000000000000000000001"})


def test_a_request_that_cannot_be_put_to_cedar_is_denied_not_raised(default):
    verdict = default.decide(request(resource="\ud800"))
    assert (verdict.decision, verdict.rule) == (Decision.DENY, "policy.error")


def test_a_forbid_that_fails_denies_though_cedar_would_skip_it():
    overflow = '@id("over") forbid (principal, action, resource) when { 9223372036854775807 + 1 == 0 };'
    verdict = CedarPolicy([default_text(), overflow]).decide(request(effect=Effect.READ))
    assert (verdict.decision, verdict.rule) == (Decision.DENY, "policy.error")
    assert "overflow" in verdict.reason


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("permit (principal, action, resource", "begin with 'permit (principal, action, resource' do not parse"),
        ("permit (principal, action, resource);", "@id"),
        ('@id("a") permit (principal, action, resource); @id("a") permit (principal, action, resource);', "unique"),
        ('@id("a") @verdict("maybe") permit (principal, action, resource);', "'maybe'"),
        ('@id("a") @verdict("deny") permit (principal, action, resource);', "written as forbid"),
        ('@id("a") @verdict("ask") forbid (principal, action, resource);', "a forbid always denies"),
        ('@id("a") @overrides("nobody") permit (principal, action, resource);', "nobody"),
        ('@id("a") permit (principal == ?principal, action, resource);', "templates"),
        ('@id("a") permit (principal, action == Action::"call_toool", resource);', "call_toool"),
        ('@id("a") permit (principal, action, resource) when { resource.effct == "read" };', "effct"),
        (UNGUARDED, "unguarded"),
    ],
)
def test_an_unsound_set_is_refused_at_start_naming_what_is_wrong(text, complaint):
    with pytest.raises(ConfigurationError, match=re.escape(complaint)):
        CedarPolicy([default_text(), text])


def test_a_missing_policy_file_is_refused_by_name(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"absent\.cedar"):
        CedarPolicy.load([tmp_path / "absent.cedar"])


def test_files_are_loaded_after_the_default(tmp_path: Path):
    (tmp_path / "refunds.cedar").write_text(SMALL_REFUNDS)
    assert refund(CedarPolicy.load([tmp_path / "refunds.cedar"]), "12.00") == Decision.ALLOW


def test_the_version_changes_with_any_rule():
    one, same = CedarPolicy([default_text(), SMALL_REFUNDS]), CedarPolicy([default_text(), SMALL_REFUNDS])
    other = CedarPolicy([default_text(), SMALL_REFUNDS.replace("50.00", "51.00")])
    assert one.version == same.version
    assert len({one.version, other.version, CedarPolicy.load().version}) == 3


def test_the_example_in_the_docstring_is_the_rule_tested_here():
    [example] = re.findall(r"(?m)^    @id\(\"small-refunds\"\)\n(?:    .*\n)+", permissions.__doc__)
    assert example.split() == SMALL_REFUNDS.split()
