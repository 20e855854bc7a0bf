"""How many input tokens a request may have, before any provider has counted them."""

from holdfast.contracts.canonical import canonical
from holdfast.contracts.models import ModelRequest

_FRAMING = 16
"""Tokens that a provider puts around a conversation; its JSON names and quotes outweigh those around each message."""
_TOOL_FRAMING = 512
"""Tokens of a provider's own instructions when tools or a schema are given (Anthropic documents up to 346)."""
_MEDIA = 4_000
"""Tokens of a picture or a page, wherever its bytes are: they do not tell."""

_TEXTUAL = frozenset({"text", "reasoning", "thinking", "tool_use", "tool_result"})


def input_tokens(request: ModelRequest, *, bytes_per_token: float) -> int:
    """An upper bound of the request's input tokens.

    A byte-level tokenizer never makes more tokens than the text has bytes, so with `bytes_per_token=1` the bound
    holds for every text; English is nearer to 4. Media count a flat amount.
    """
    media, messages = _apart(request.messages)
    asked = canonical({"messages": messages, "tools": request.tools, "schema": request.response_schema})
    framing = _TOOL_FRAMING if request.tools or request.response_schema is not None else _FRAMING
    return int(len(asked) / bytes_per_token) + 1 + framing + media * _MEDIA


def _apart(messages: list[dict[str, object]]) -> tuple[int, list[dict[str, object]]]:
    """How many media blocks the messages hold, and the messages without them."""
    media, rest = 0, []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            textual = [block for block in content if _is_textual(block)]
            media += len(content) - len(textual)
            message = {**message, "content": textual}
        rest.append(message)
    return media, rest


def _is_textual(block: object) -> bool:
    return not isinstance(block, dict) or block.get("type", "text") in _TEXTUAL
