"""A server on the loopback that speaks OpenAI's chat completions, and can be slow, refuse, drop or talk nonsense.

Point the real client at it with `OPENAI_BASE_URL`. https://platform.openai.com/docs/api-reference/chat/create
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

_PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """What one request is answered with."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    """How long the server waits first. It does not outlast the server."""
    dropped: bool = False
    """Whether the connection is closed without a word."""

    def after(self, seconds: float) -> "HttpAnswer":
        """This answer, `seconds` later."""
        return replace(self, delay_seconds=seconds)


Reply = Callable[[Mapping[str, Any]], HttpAnswer]
"""Answers the JSON body of a chat completion request."""


def completion(
    content: str = "",
    *,
    tool_calls: Sequence[tuple[str, Mapping[str, Any]]] = (),
    model: str = "gpt-4o-mini",
    prompt_tokens: int = 10,
    completion_tokens: int = 5,
    usage: bool = True,
) -> HttpAnswer:
    """A successful answer. `tool_calls` are names and arguments; their ids count from `call_1`."""
    message: dict[str, Any] = {"role": "assistant", "content": content or None}
    if tool_calls:
        message["tool_calls"] = [_tool_call(number, *call) for number, call in enumerate(tool_calls, 1)]
    finish = "tool_calls" if tool_calls else "stop"
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
    }
    if usage:
        body["usage"] = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
    return _json(body)


def refusal(status: int, message: str = "refused", *, retry_after_seconds: float | None = None) -> HttpAnswer:
    """An error answer in OpenAI's form."""
    headers = {} if retry_after_seconds is None else {"Retry-After": str(retry_after_seconds)}
    return replace(
        _json({"error": {"message": message, "type": "error", "code": None}}), status=status, headers=headers
    )


def garbage() -> HttpAnswer:
    """A success whose body is not JSON, though it says so."""
    return HttpAnswer(body=b'{"choices": [{"mess')


def dropped() -> HttpAnswer:
    """No answer: the connection is closed."""
    return HttpAnswer(dropped=True)


def in_turn(*answers: HttpAnswer) -> Reply:
    """Gives these answers one after the other, and the last one ever after."""
    remaining = list(answers)

    def reply(request: Mapping[str, Any]) -> HttpAnswer:
        return remaining.pop(0) if len(remaining) > 1 else remaining[0]

    return reply


class OpenAIServer:
    """The server while it runs."""

    def __init__(self, reply: Reply) -> None:
        self.base_url = ""
        """What `OPENAI_BASE_URL` is set to."""
        self.requests: list[dict[str, Any]] = []
        """The JSON bodies of all chat completion requests, in order."""
        self._reply = reply
        self._closing = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # a stream callback runs in a task of its own
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, as one that times out does
        finally:
            writer.close()
            self._connections.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = await self._answer(*await _read(reader))
        if answer.delay_seconds:
            await self._wait(answer.delay_seconds)
        if not answer.dropped:
            writer.write(_head(answer) + answer.body)
            await writer.drain()

    async def _answer(self, method: str, path: str, body: bytes) -> HttpAnswer:
        if (method, path) != ("POST", _PATH):
            return refusal(404, f"this server has no {method} {path}, only POST {_PATH}")
        request = json.loads(body)
        self.requests.append(request)
        return self._reply(request)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return

    async def _close(self) -> None:
        self._closing.set()
        if self._connections:
            await asyncio.wait(self._connections, timeout=5)


@asynccontextmanager
async def openai_server(reply: Reply) -> AsyncIterator[OpenAIServer]:
    """A server for the length of the block, on a free port of the loopback."""
    server = OpenAIServer(reply)
    listening = await asyncio.start_server(server._connected, "127.0.0.1", 0)  # noqa: SLF001  # the same module's
    host, port = listening.sockets[0].getsockname()
    server.base_url = f"http://{host}:{port}/v1"
    try:
        yield server
    finally:
        listening.close()
        await server._close()  # noqa: SLF001
        await listening.wait_closed()


async def _read(reader: asyncio.StreamReader) -> tuple[str, str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request_line, *header_lines = head.split("\r\n")
    method, path, _ = request_line.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in header_lines)}
    return method, path, await reader.readexactly(int(headers.get("content-length", "0")))


def _head(answer: HttpAnswer) -> bytes:
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(answer.body)),
        "Connection": "close",
        **answer.headers,
    }
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _json(body: Mapping[str, Any]) -> HttpAnswer:
    return HttpAnswer(body=json.dumps(body).encode())


def _tool_call(number: int, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(args)}}
