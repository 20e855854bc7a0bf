"""Offline models of the ready graphs: they find the sums and quoted texts in a question, and ask for the right tool."""

import json
import re
from typing import Any

from holdfast.contracts.models import ModelRequest, ToolCallRequest
from holdfast.gateway.scripted import ScriptedReply

_SUM = re.compile(r"\(*-?\d[\d.]*\)*(?:\s*[-+*/]\s*\(*-?\d[\d.]*\)*)+")
_QUOTED = re.compile(r"\"([^\"]+)\"")
_FENCED = re.compile(r"^<<<(\w+) (\w+)\n(.*?)\n\2 \1>>>$", re.DOTALL | re.MULTILINE)


def agent(request: ModelRequest) -> ScriptedReply:
    """The agent: a tool for each sum and each quoted text of the last question, then what the tools said."""
    start = max(index for index, message in enumerate(request.messages) if message["role"] == "user")
    results = [message for message in request.messages[start:] if message["role"] == "tool"]
    if results:
        return _said("; ".join(str(result["content"]) for result in results))
    calls = _calls(str(request.messages[start]["content"]), turn=start)
    return _asked(calls) if calls else _said("I do sums, and I count the words of a quoted text.")


def supervisor(request: ModelRequest) -> ScriptedReply:
    """The supervisor and its specialists, told apart by what they are asked for."""
    if request.tools or any(message["role"] == "tool" for message in request.messages):
        return agent(request.model_copy(update={"messages": [*_only_task(request.messages)]}))
    sources = _sources(request.messages)
    if request.response_schema is not None:
        return _said(json.dumps(_plan(sources["question"])))
    reports: list[dict[str, Any]] = json.loads(sources["reports"])
    told = [f"{report['specialist']}: {report['answer'] or report['problem']}" for report in reports]
    return _said("\n".join(told) or "None of my specialists can help with that.")


def _plan(question: str) -> dict[str, str | None]:
    quoted, total = _QUOTED.search(question), _SUM.search(_QUOTED.sub("", question))
    return {
        "arithmetic": f"Work out {total[0]}" if total else None,
        "wording": f"Count the words of {quoted[0]}" if quoted else None,
    }


def _calls(question: str, *, turn: int) -> tuple[ToolCallRequest, ...]:
    asked = [("count_words", {"text": text}) for text in _QUOTED.findall(question)]
    asked += [("calculate", {"expression": total}) for total in _SUM.findall(_QUOTED.sub("", question))]
    return tuple(
        ToolCallRequest(id=f"call-{turn}-{number}", name=name, args=args) for number, (name, args) in enumerate(asked)
    )


def _only_task(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    task = _sources(messages)["task"]
    return [{**message, "content": task} if message["role"] == "user" else message for message in messages]


def _sources(messages: list[dict[str, Any]]) -> dict[str, str]:
    text = "\n".join(str(message["content"]) for message in messages if message["role"] == "user")
    return {name: content for name, _, content in _FENCED.findall(text)}


def _said(content: str) -> ScriptedReply:
    return ScriptedReply(content=content)


def _asked(calls: tuple[ToolCallRequest, ...]) -> ScriptedReply:
    return ScriptedReply(content="", tool_calls=calls)
