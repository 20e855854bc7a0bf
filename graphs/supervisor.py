"""A supervisor with specialists: plan who is to do what, have it done side by side, answer from what came back.

`build_supervisor` makes one from your specialists; `graph` is a small one whose specialists do sums and count words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from holdfast.contracts.errors import ConfigurationError
from holdfast.contracts.tools import Effect
from holdfast.contracts.verdicts import Autonomy
from holdfast.gateway.toolset import Toolset
from holdfast.graphs.govern import govern
from holdfast.graphs.harmless import calculate, count_words
from holdfast.nodes.assembly import Source, assemble
from holdfast.nodes.context import RunContext
from holdfast.nodes.fanout import Specialist, SpecialistOutcome
from holdfast.nodes.specialist import consult


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A specialist that a supervisor may send."""

    name: str
    """A word; the journal and the budget know it by this."""
    expertise: str
    """What it is good for, told to the supervisor."""
    instructions: str
    """Its own system prompt."""
    prompt_version: str
    tools: Sequence[Any] = ()
    """What it may look things up with: tools that only read."""
    budget_share: float = 0.25
    """The part of the run's budget that it may use."""
    deadline_seconds: float = 60.0
    """How long it may take; never longer than the run has."""
    max_turns: int = 4
    """Model calls, at most."""


class Report(TypedDict):
    """What one specialist came back with."""

    specialist: str
    task: str
    status: str
    """`completed`, or how its work ended without an answer."""
    answer: str | None
    problem: str | None


class Question(TypedDict):
    """What goes in."""

    question: str


class SupervisorState(TypedDict, total=False):
    """A question on its way to its answer."""

    question: str
    tasks: dict[str, str]
    """What each specialist that is sent is asked, by name."""
    reports: list[Report]
    answer: str


class Answer(TypedDict):
    """What comes out."""

    answer: str
    reports: list[Report]


Supervision = Runtime[RunContext]


def build_supervisor(
    *,
    name: str,
    specialists: Sequence[Role],
    instructions: str,
    prompt_version: str,
    allow_partial: bool = False,
    limit: int = 4,
    default_model: str | None = None,
    autonomy: Autonomy | None = None,
) -> CompiledStateGraph[SupervisorState, RunContext, Question, Answer]:
    """A governed supervisor.

    At most `limit` specialists work at a time. Unless `allow_partial` is given, one that fails fails the run; with
    it, the answer is written from the reports there are, and the others say why they are missing.

    Raises `ConfigurationError` for two specialists of one name, and for a tool that does more than read.
    """
    team = {role.name: role for role in specialists}
    if len(team) < len(specialists) or not team:
        raise ConfigurationError(f"supervisor {name!r} needs specialists, each with a name of its own")
    tools = _reading_tools(specialists)
    lead = _Lead(name, instructions, prompt_version, team, allow_partial, limit)
    builder = StateGraph(SupervisorState, context_schema=RunContext, input_schema=Question, output_schema=Answer)
    builder.add_node("plan", lead.plan)
    builder.add_node("consult", lead.consult)
    builder.add_node("answer", lead.answer)
    builder.add_edge(START, "plan")
    builder.add_conditional_edges("plan", _after_plan)
    builder.add_edge("consult", "answer")
    builder.add_edge("answer", END)
    return govern(builder.compile(), name=name, tools=tools, default_model=default_model, autonomy=autonomy)


@dataclass(frozen=True, slots=True)
class _Lead:
    """The supervisor's three nodes."""

    name: str
    instructions: str
    prompt_version: str
    team: dict[str, Role]
    allow_partial: bool
    limit: int

    async def plan(self, state: SupervisorState, runtime: Supervision) -> SupervisorState:
        """Say which specialists are sent, and what each is asked."""
        prompt = assemble(
            instructions=f"{self.instructions}\n\nSay what to ask each specialist: a task in one or two sentences, or "
            f"null for one that cannot help.\n{self._introductions()}",
            sources=[Source(name="question", content=state["question"])],
            prompt_version=f"{self.prompt_version}.plan",
        )
        reply = await runtime.context.models.call(
            prompt.messages,
            agent=self.name,
            model=runtime.context.model,
            response_schema=self._plan_schema(),
            prompt_version=prompt.prompt_version,
        )
        return {"tasks": {name: task for name, task in reply.parsed.items() if task}, "reports": []}

    async def consult(self, state: SupervisorState, runtime: Supervision) -> SupervisorState:
        """Have the tasks done side by side."""
        tasks = state["tasks"]
        outcomes = await runtime.context.fan_out(
            [self._specialist(self.team[name], task, state["question"], runtime) for name, task in tasks.items()],
            limit=self.limit,
            allow_partial=self.allow_partial,
        )
        return {"reports": [_report(outcome, tasks[outcome.name]) for outcome in outcomes]}

    async def answer(self, state: SupervisorState, runtime: Supervision) -> SupervisorState:
        """Answer the question from the reports."""
        prompt = assemble(
            instructions=f"{self.instructions}\n\nAnswer the question from the specialists' reports. Say so where a "
            "report is missing.",
            sources=[
                Source(name="question", content=state["question"]),
                Source(name="reports", content=state["reports"], max_chars=24_000),
            ],
            prompt_version=f"{self.prompt_version}.answer",
        )
        reply = await runtime.context.models.call(
            prompt.messages, agent=self.name, model=runtime.context.model, prompt_version=prompt.prompt_version
        )
        return {"answer": reply.content}

    def _specialist(self, role: Role, task: str, question: str, runtime: Supervision) -> Specialist[str]:
        async def work() -> str:
            prompt = assemble(
                instructions=role.instructions,
                sources=[Source(name="task", content=task), Source(name="question", content=question)],
                prompt_version=role.prompt_version,
            )
            return await consult(
                prompt,
                agent=role.name,
                tools=list(Toolset.of(role.tools)),
                model=runtime.context.model,
                max_turns=role.max_turns,
            )

        return Specialist(role.name, work, budget_share=role.budget_share, deadline_seconds=role.deadline_seconds)

    def _introductions(self) -> str:
        return "\n".join(f"- {role.name}: {role.expertise}" for role in self.team.values())

    def _plan_schema(self) -> dict[str, Any]:
        task = {"anyOf": [{"type": "string"}, {"type": "null"}]}
        return {
            "title": "Plan",
            "type": "object",
            "properties": {name: {**task, "description": role.expertise} for name, role in self.team.items()},
            "required": list(self.team),
            "additionalProperties": False,
        }


def _after_plan(state: SupervisorState) -> Literal["consult", "answer"]:
    return "consult" if state["tasks"] else "answer"


def _report(outcome: SpecialistOutcome[str], task: str) -> Report:
    problem = None if outcome.error is None else outcome.error.message
    return Report(specialist=outcome.name, task=task, status=outcome.status, answer=outcome.value, problem=problem)


def _reading_tools(specialists: Sequence[Role]) -> list[Any]:
    tools = list({id(tool): tool for role in specialists for tool in role.tools}.values())
    acting = [name for name, entry in Toolset.of(tools).items() if entry.terms.effect is not Effect.READ]
    if acting:
        raise ConfigurationError(
            f"specialists look things up side by side, so their tools may only read; {', '.join(acting)} may do more. "
            "Call such a tool in a node of its own, as graphs/refund_desk does"
        )
    return tools


graph = build_supervisor(
    name="supervisor",
    specialists=[
        Role(
            name="arithmetic",
            expertise="works out sums",
            instructions="You work out the sum in the task with the tool `calculate` and state its value.",
            prompt_version="arithmetic-1",
            tools=[calculate],
        ),
        Role(
            name="wording",
            expertise="counts the words of a text",
            instructions="You count the words of the text with the tool `count_words` and state the number.",
            prompt_version="wording-1",
            tools=[count_words],
        ),
    ],
    instructions="You answer questions with the help of specialists.",
    prompt_version="supervisor-1",
    default_model="scripted:holdfast.graphs.scripts:supervisor",
)
