import pytest

from holdfast.contracts.deadline import Deadline
from holdfast.contracts.errors import InvalidRequest
from holdfast.contracts.models import ModelRequest
from holdfast.gateway.validation import read_answer, repair_request, require_schema
from holdfast.testing.clock import VirtualClock

SCHEMA = {
    "type": "object",
    "properties": {"amount": {"type": "number", "minimum": 0}, "why": {"type": "string"}},
    "required": ["amount"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "content",
    [
        '{"amount": 12}',
        '  {"amount": 12}\n',
        '```json\n{"amount": 12}\n```',
        '```\n{"amount": 12}\n```',
    ],
)
def test_an_answer_that_fits_is_read_with_or_without_a_fence(content):
    assert read_answer(content, SCHEMA) == ({"amount": 12}, None)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("twelve dollars", "json"),
        ("", "json"),
        ('{"amount": NaN}', "json"),
        ("[" * 100_000, "json"),
        ('{"amount": "12"}', "type at $.amount"),
        ('{"amount": -1}', "minimum at $.amount"),
        ("{}", "required at $"),
        ('{"amount": 1, "card": "4111"}', "additionalProperties at $"),
    ],
)
def test_an_answer_that_does_not_fit_is_complained_about_and_not_read(content, rule):
    value, complaint = read_answer(content, SCHEMA)

    assert value is None
    assert complaint is not None
    assert complaint.rule == rule


def test_a_complaint_is_short_however_long_the_answer_and_its_rule_quotes_nothing():
    _, complaint = read_answer('{"amount": "%s"}' % ("secret" * 10_000), SCHEMA)

    assert complaint is not None
    assert len(complaint.text) < 600
    assert "secret" not in complaint.rule


def test_a_repair_shows_the_model_its_own_answer_and_the_complaint():
    request = ModelRequest(
        run_id="r",
        agent_name="a",
        model_policy="default",
        messages=[{"role": "user", "content": "how much?"}],
        deadline=Deadline.after_seconds(10, clock=VirtualClock()),
    )
    _, complaint = read_answer('{"amount": "12"}', SCHEMA)
    assert complaint is not None

    repaired = repair_request(request, '{"amount": "12"}', complaint)

    assert repaired.messages[:-2] == request.messages
    assert repaired.messages[-2] == {"role": "assistant", "content": '{"amount": "12"}'}
    assert repaired.messages[-1]["role"] == "user"
    assert "type at $.amount" in repaired.messages[-1]["content"]
    assert repaired.deadline is request.deadline


def test_a_schema_that_is_none_is_refused():
    with pytest.raises(InvalidRequest, match="no JSON Schema"):
        require_schema({"type": "objekt"})
