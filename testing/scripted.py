"""Scripted models for tests: answers given in advance, and a count of what was really sent."""

import functools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

from holdfast.contracts.errors import ConfigurationError
from holdfast.contracts.models import ModelRequest
from holdfast.gateway.scripted import Scripted

Answer = Scripted | Exception | Callable[[ModelRequest], Scripted | Awaitable[Scripted]]
"""What a send is answered with: said as it is, raised, or asked for."""


class Script:
    """A script under way: what it was asked, and how often."""

    def __init__(self, name: str, choose: Callable[[ModelRequest, int], Answer]) -> None:
        self.model = f"scripted:{__name__}:named.{name}"
        """The model to name in a request, a route or a graph's default."""
        self.requests: list[ModelRequest] = []
        """Every request that was sent, in order."""
        self._choose = choose

    @property
    def sends(self) -> int:
        """How often the model was asked. What the journal answers does not get here."""
        return len(self.requests)

    def __call__(self, request: ModelRequest) -> Scripted | Awaitable[Scripted]:
        self.requests.append(request)
        answer = self._choose(request, self.sends - 1)
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer


class _Named:
    """The scripts that can be reached by name while their block lasts."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}

    def __getattr__(self, name: str) -> Script:
        try:
            return self.scripts[name]
        except KeyError:
            raise AttributeError(f"no script named {name!r} is under way") from None


named = _Named()


@contextmanager
def scripted(name: str, *answers: Answer) -> Iterator[Script]:
    """A model that gives these answers in turn; a send beyond the last is an error."""
    with _under_way(Script(name, functools.partial(_in_turn, name, answers)), name) as script:
        yield script


@contextmanager
def scripted_by_agent(name: str, answers: Mapping[str, Answer]) -> Iterator[Script]:
    """A model whose answer goes by the agent that asks."""
    with _under_way(Script(name, functools.partial(_of_agent, name, answers)), name) as script:
        yield script


@contextmanager
def scripted_by_message(name: str, answers: Mapping[str, Answer]) -> Iterator[Script]:
    """A model whose answer goes by the first of these texts that the last message contains."""
    with _under_way(Script(name, functools.partial(_of_message, name, answers)), name) as script:
        yield script


@contextmanager
def _under_way(script: Script, name: str) -> Iterator[Script]:
    if name in named.scripts:
        raise ConfigurationError(f"a script named {name!r} is under way already")
    named.scripts[name] = script
    try:
        yield script
    finally:
        del named.scripts[name]


def _in_turn(name: str, answers: tuple[Answer, ...], request: ModelRequest, number: int) -> Answer:
    if number < len(answers):
        return answers[number]
    raise ConfigurationError(f"script {name!r} has {len(answers)} answers, and was asked once more")


def _of_agent(name: str, answers: Mapping[str, Answer], request: ModelRequest, number: int) -> Answer:
    if request.agent_name in answers:
        return answers[request.agent_name]
    raise ConfigurationError(f"script {name!r} has no answer for agent {request.agent_name!r}")


def _of_message(name: str, answers: Mapping[str, Answer], request: ModelRequest, number: int) -> Answer:
    last = str(request.messages[-1].get("content", ""))
    for text, answer in answers.items():
        if text in last:
            return answer
    raise ConfigurationError(f"script {name!r} has no answer for {last[:80]!r}")
