"""A ready specialist: a model that looks things up and answers, within one task and a bounded number of turns."""

import json
from collections.abc import Sequence
from typing import Any

from holdfast.contracts.models import Message, ModelResponse, ToolCallRequest
from holdfast.nodes.assembly import Prompt, cut
from holdfast.nodes.context import current

_RESULT_CHARS = 8_000


async def consult(
    prompt: Prompt, *, agent: str, tools: Sequence[str] = (), model: str = "default", max_turns: int = 4
) -> str:
    """The model's answer, after at most `max_turns` model calls (at least one). The last is given no tools, so that it
    must answer.

    Give it tools that only read: several calls share one task here, and one that a person must approve would have its
    siblings run again. Raises what the doors raise.
    """
    messages, turns_left = list(prompt.messages), max(1, max_turns)
    while True:
        turns_left -= 1
        reply = await current().models.call(
            messages,
            agent=agent,
            model=model,
            tools=_shown(tools) if turns_left else None,
            prompt_version=prompt.prompt_version,
        )
        if not reply.tool_calls or not turns_left:
            return reply.content
        messages.append(_asked(reply))
        messages.extend([await _looked_up(call, allowed=tools) for call in reply.tool_calls])


def _shown(tools: Sequence[str]) -> list[dict[str, Any]]:
    return [schema for schema in current().tools.schemas() if schema["function"]["name"] in tools]


async def _looked_up(call: ToolCallRequest, *, allowed: Sequence[str]) -> Message:
    if call.name not in allowed:
        content = f"there is no tool {call.name!r} here; there are {', '.join(allowed)}"
    else:
        content = (await current().tools.call(call.name, call.args, tool_call_id=call.id)).text
    return {"role": "tool", "tool_call_id": call.id, "content": cut(content, _RESULT_CHARS)}


def _asked(reply: ModelResponse) -> Message:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": json.dumps(call.args)}}
        for call in reply.tool_calls
    ]
    return {"role": "assistant", "content": reply.content, "tool_calls": calls}
