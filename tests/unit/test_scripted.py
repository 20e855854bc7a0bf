from decimal import Decimal

import pytest

from holdfast.contracts.deadline import Deadline
from holdfast.contracts.errors import ConfigurationError
from holdfast.contracts.models import ModelRequest, ToolCallRequest
from holdfast.gateway.scripted import ScriptedProvider, ScriptedReply
from holdfast.testing.clock import VirtualClock
from holdfast.testing.scripted import scripted, scripted_by_agent, scripted_by_message


def request(text: str = "hello", agent: str = "drafter") -> ModelRequest:
    return ModelRequest(
        run_id="r",
        agent_name=agent,
        model_policy="default",
        messages=[{"role": "user", "content": text}],
        deadline=Deadline.after_seconds(10, clock=VirtualClock()),
    )


def provider(model: str) -> ScriptedProvider:
    return ScriptedProvider(model.removeprefix("scripted:"))


async def echo(asked: ModelRequest) -> str:
    return str(asked.messages[-1]["content"]).upper()


async def test_an_asynchronous_script_answers_from_its_request():
    with scripted("echo", echo) as script:
        reply = await provider(script.model).send(request("hello"), timeout_seconds=1)

    assert reply.content == "HELLO"


async def test_the_same_request_counts_the_same_tokens_each_time():
    with scripted("counted", "four" * 5, "four" * 5) as script:
        model = provider(script.model)
        first = await model.send(request(), timeout_seconds=1)
        second = await model.send(request(), timeout_seconds=1)

    assert (first.output_tokens, first.input_tokens) == (5, second.input_tokens)
    assert first == second


async def test_a_mapping_is_answered_as_json():
    with scripted("mapping", {"amount": "12.00", "to": "Zoë"}) as script:
        reply = await provider(script.model).send(request(), timeout_seconds=1)

    assert reply.content == '{"amount": "12.00", "to": "Zoë"}'


async def test_a_reply_states_its_tokens_its_cost_and_the_tools_it_wants():
    wish = ToolCallRequest(id="call_1", name="look_up", args={"order": "A-1"})
    stated = ScriptedReply(tool_calls=(wish,), input_tokens=70, output_tokens=3, cost_usd=Decimal("0.01"))
    with scripted("stated", stated) as script:
        reply = await provider(script.model).send(request(), timeout_seconds=1)

    assert (reply.input_tokens, reply.output_tokens, reply.cost_usd) == (70, 3, Decimal("0.01"))
    assert reply.tool_calls == (wish,)
    assert reply.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "path",
    [
        "no.such.module:answer",
        "holdfast.gateway.scripted:nothing",
        "holdfast.gateway.scripted",
        ":answer",
        "",
        "holdfast.gateway.scripted:_CHARACTERS_PER_TOKEN",
        "holdfast.testing.scripted:named.nobody",
    ],
)
def test_a_path_that_names_no_function_is_refused_when_the_model_is_opened(path):
    with pytest.raises(ConfigurationError, match="scripted:"):
        ScriptedProvider(path)


async def test_an_answer_of_another_kind_is_refused():
    with scripted("number", lambda asked: 12) as script, pytest.raises(ConfigurationError, match="not int"):
        await provider(script.model).send(request(), timeout_seconds=1)


async def test_answers_go_by_agent_or_by_what_the_last_message_says():
    with (
        scripted_by_agent("agents", {"drafter": "a draft", "judge": "a verdict"}) as agents,
        scripted_by_message("messages", {"refund": "no", "hello": "hi"}) as messages,
    ):
        assert (await provider(agents.model).send(request(agent="judge"), timeout_seconds=1)).content == "a verdict"
        assert (await provider(messages.model).send(request("hello!"), timeout_seconds=1)).content == "hi"
        with pytest.raises(ConfigurationError, match="stranger"):
            await provider(agents.model).send(request(agent="stranger"), timeout_seconds=1)

    assert (agents.sends, messages.sends) == (2, 1)


async def test_a_send_beyond_the_last_answer_is_an_error():
    with scripted("short", "only one") as script:
        model = provider(script.model)
        await model.send(request(), timeout_seconds=1)
        with pytest.raises(ConfigurationError, match="1 answers"):
            await model.send(request(), timeout_seconds=1)
