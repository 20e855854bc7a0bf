"""The command line: `holdfast`. Errors are one line on standard error; exit codes are those of `exits.Exit`."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.exceptions import TyperException

from holdfast.checkpoints.migrating import WAIT_SECONDS
from holdfast.contracts.approvals import DecisionType
from holdfast.contracts.classification import translated
from holdfast.contracts.errors import (
    ConfigurationError,
    HoldfastError,
    InvalidRequest,
    InvariantViolated,
    PolicyDenied,
    UnclassifiedFailure,
)
from holdfast.contracts.limits import Limits
from holdfast.server import arguments, commands, doctor, travelling
from holdfast.server.commands import Session
from holdfast.server.exits import Exit
from holdfast.server.settings import load_settings

_CODES = "Exit codes: " + ", ".join(
    f"{code.value} {meaning}"
    for code, meaning in {
        Exit.OK: "done",
        Exit.RUN_FAILED: "the run failed or was cancelled",
        Exit.REFUSED: "refused: it does not fit or is not allowed",
        Exit.WAITS: "the run waits for a person",
        Exit.UNAVAILABLE: "not configured, or out of reach",
        Exit.BROKEN: "holdfast itself failed",
    }.items()
)

# By the first class that fits.
_CODE_OF: dict[type[HoldfastError], Exit] = {
    ConfigurationError: Exit.UNAVAILABLE,
    InvalidRequest: Exit.REFUSED,
    PolicyDenied: Exit.REFUSED,
    UnclassifiedFailure: Exit.BROKEN,
    InvariantViolated: Exit.BROKEN,
}

_PIPE_COLUMNS = 160

app = typer.Typer(
    name="holdfast",
    help=f"Run LangGraph agents with an owner, a budget, a deadline and a person to ask.\n\n{_CODES}.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
db = typer.Typer(help="The database.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(db, name="db")

Tenant = Annotated[str | None, typer.Option(help="The tenant; the only one, or `default`, when left out.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
By = Annotated[str, typer.Option(help="Who decides: a name in the directory of principals.")]
Traveller = Annotated[str, typer.Option(help="Who asks: a name in the directory, with the role operator or admin.")]
Detach = Annotated[bool, typer.Option("--detach", help="Only queue it; a worker runs it.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Only record it; a worker carries the run on.")]
Limit = Annotated[str | None, typer.Option(metavar="N", help="A number, or `none` for unlimited.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]
ApprovalId = Annotated[str, typer.Argument(metavar="APPROVAL", help="The approval's id.")]


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Options before the command."""


@app.command()
def demo() -> int:
    """Watch a refund handled: specialists, a budget, a person asked, a worker killed in the middle, one refund."""
    from holdfast.server.demo import demo as show_demo  # needs graphs that other commands do not

    return show_demo()


@app.command()
def run(
    graph: Annotated[str, typer.Argument(help="A name in langgraph.json, or module:attribute.")],
    input_: Annotated[str, typer.Option("--input", metavar="FILE|JSON", help="The graph's input; - reads stdin.")],
    tenant: Tenant = None,
    thread: Annotated[str | None, typer.Option(help="Your key of the conversation to go on with.")] = None,
    user: Annotated[str | None, typer.Option(help="On whose behalf: a name in the directory.")] = None,
    max_cost_usd: Limit = None,
    max_model_calls: Limit = None,
    max_tool_calls: Limit = None,
    max_tokens: Limit = None,
    max_steps: Limit = None,
    deadline_seconds: Limit = None,
    detach: Detach = False,
    as_json: Json = False,
) -> int:
    """Run a graph, and show how it ends or whom it waits for."""
    limits = _limits(max_cost_usd, max_model_calls, max_tool_calls, max_tokens, max_steps, deadline_seconds)
    given = arguments.input_given(input_)
    session = _session(as_json)
    return _done(
        commands.start(session, graph, given, tenant=tenant, user=user, thread=thread, limits=limits, detach=detach),
    )


@app.command()
def runs(
    tenant: Tenant = None,
    status: Annotated[str | None, typer.Option(help="Only runs in this state.")] = None,
    thread: Annotated[str | None, typer.Option(help="Only runs of this thread.")] = None,
    as_json: Json = False,
) -> int:
    """List runs, newest first."""
    session = _session(as_json)
    return _done(commands.listing(session, tenant=tenant, status=status, thread=thread))


@app.command()
def show(
    run_id: RunId,
    tenant: Tenant = None,
    at: Annotated[str | None, typer.Option(metavar="CHECKPOINT", help="The state at a checkpoint instead.")] = None,
    by: Annotated[str | None, typer.Option(help="Who looks at an earlier state: a name in the directory.")] = None,
    as_json: Json = False,
) -> int:
    """Show a run: status, limits, usage, calls, approvals, cause; or its thread's state at a checkpoint."""
    session = _session(as_json)
    if at is not None:
        return _done(travelling.state(session, run_id, tenant=tenant, at=at, by=by))
    return _done(commands.show(session, run_id, tenant=tenant))


@app.command()
def history(
    run_id: RunId,
    by: Traveller,
    tenant: Tenant = None,
    limit: Annotated[int, typer.Option(min=1, help="Checkpoints at most.")] = 100,
    before: Annotated[str | None, typer.Option(metavar="CHECKPOINT", help="Only older ones than this.")] = None,
    as_json: Json = False,
) -> int:
    """List the checkpoints of a run's thread, newest first, with what was written at each."""
    session = _session(as_json)
    return _done(travelling.history(session, run_id, tenant=tenant, by=by, limit=limit, before=before))


@app.command()
def fork(
    run_id: RunId,
    by: Traveller,
    tenant: Tenant = None,
    at: Annotated[str | None, typer.Option(metavar="CHECKPOINT", help="From where; the latest when left out.")] = None,
    thread: Annotated[str | None, typer.Option(help="Your key of the new thread.")] = None,
    values: Annotated[str | None, typer.Option(metavar="FILE|JSON", help="Change these fields of the state.")] = None,
    max_cost_usd: Limit = None,
    max_model_calls: Limit = None,
    max_tool_calls: Limit = None,
    max_tokens: Limit = None,
    max_steps: Limit = None,
    deadline_seconds: Limit = None,
    detach: Detach = False,
    as_json: Json = False,
) -> int:
    """Go on from a checkpoint on a new thread; its calls are made, asked about and paid for anew."""
    limits = _limits(max_cost_usd, max_model_calls, max_tool_calls, max_tokens, max_steps, deadline_seconds)
    update = arguments.values_given(values)
    session = _session(as_json)
    return _done(
        travelling.fork(
            session, run_id, tenant=tenant, by=by, at=at, thread=thread, values=update, limits=limits, detach=detach
        )
    )


@app.command()
def resume(
    run_id: RunId,
    by: Traveller,
    tenant: Tenant = None,
    max_cost_usd: Limit = None,
    max_model_calls: Limit = None,
    max_tool_calls: Limit = None,
    max_tokens: Limit = None,
    max_steps: Limit = None,
    deadline_seconds: Limit = None,
    detach: Detach = False,
    as_json: Json = False,
) -> int:
    """Go on where a run failed or was cancelled, as a new run; limits hold for both together."""
    limits = _limits(max_cost_usd, max_model_calls, max_tool_calls, max_tokens, max_steps, deadline_seconds)
    session = _session(as_json)
    return _done(travelling.resume(session, run_id, tenant=tenant, by=by, limits=limits, detach=detach))


@app.command()
def replay(run_id: RunId, by: Traveller, tenant: Tenant = None, as_json: Json = False) -> int:
    """Execute a run again against its record, touching nothing, and say where today's code does otherwise."""
    session = _session(as_json)
    return _done(travelling.replay(session, run_id, tenant=tenant, by=by))


@app.command()
def events(
    run_id: Annotated[
        str | None, typer.Argument(metavar="RUN", help="The run's id; with --verify, all when left out.")
    ] = None,
    tenant: Tenant = None,
    after: Annotated[int, typer.Option(min=0, help="Only events with a greater number.")] = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Check instead that they are what was written.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Show them as they commit, to the end.")] = False,
    as_json: Json = False,
) -> int:
    """Show what happened in a run, in order."""
    if verify:
        if after or follow:
            raise InvalidRequest("--verify goes with neither --after nor --follow: it checks a whole log as it is now")
        return _done(commands.verify(_session(as_json), run_id, tenant=tenant))
    if run_id is None:
        raise InvalidRequest("say which run: its id")
    show = commands.follow if follow else commands.events
    return _done(show(_session(as_json), run_id, tenant=tenant, after=after))


@app.command()
def approve(
    approval: ApprovalId,
    by: By,
    args: Annotated[str | None, typer.Option(metavar="JSON", help="Approve with these arguments instead.")] = None,
    answer: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer in the tool's place, or a question.")
    ] = None,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> int:
    """Say yes to what a run asks, and carry it on until it rests again."""
    edited = arguments.args_given(args)
    if edited is not None and answer is not None:
        raise InvalidRequest("--args and --answer exclude each other: change the call, or answer in its place")
    decision: DecisionType = "edit" if edited is not None else "respond" if answer is not None else "approve"
    session = _session(as_json)
    return _done(commands.decide(session, approval, decision, by=by, args=edited, message=answer, wait=not no_wait))


@app.command()
def reject(
    approval: ApprovalId,
    by: By,
    message: Annotated[str | None, typer.Option(help="Why; the model is told.")] = None,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> int:
    """Say no to what a run asks, and carry it on until it rests again."""
    session = _session(as_json)
    return _done(commands.decide(session, approval, "reject", by=by, message=message, wait=not no_wait))


@app.command()
def cancel(
    run_id: RunId,
    by: By,
    tenant: Tenant = None,
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    as_json: Json = False,
) -> int:
    """Stop a run."""
    session = _session(as_json)
    return _done(commands.cancel(session, run_id, tenant=tenant, by=by, reason=reason))


@app.command()
def hold(
    run_id: RunId,
    by: By,
    tenant: Tenant = None,
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    lift: Annotated[bool, typer.Option("--lift", help="Take the hold off again.")] = False,
    as_json: Json = False,
) -> int:
    """Keep a run's events, checkpoints and contents from being pruned or deleted."""
    session = _session(as_json)
    return _done(commands.hold(session, run_id, tenant=tenant, by=by, reason=reason, lifting=lift))


@app.command()
def worker() -> int:
    """Serve the graphs of langgraph.json until stopped."""
    session = _session(as_json=False)
    return _done(commands.work(session))


@app.command(name="doctor")
def check(as_json: Json = False) -> int:
    """Check that everything is in place, and say what to do where it is not."""
    return _done(doctor.examine(Console(), as_json=as_json))


@db.command()
def upgrade(
    finish: Annotated[bool, typer.Option("--finish", help="Also what must wait until no older version runs.")] = False,
    wait_seconds: Annotated[
        float, typer.Option(min=0, help="How long a migration asks again for tables that are locked.")
    ] = WAIT_SECONDS,
    as_json: Json = False,
) -> int:
    """Bring the database up to this version; the embedded one does so by itself."""
    return _done(commands.upgrade(_session(as_json), finish=finish, wait_seconds=wait_seconds))


@db.command()
def status(as_json: Json = False) -> int:
    """Show which migrations were applied, and which are pending."""
    return _done(commands.status(_session(as_json)))


@db.command()
def encrypt(
    clear_too: Annotated[
        bool, typer.Option("--clear-too", help="Also what was written in the clear to an encrypted database.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Encrypt what the database holds: for the first time, or with a new key."""
    return _done(commands.encrypt(_session(as_json), clear_too=clear_too))


def main(args: list[str] | None = None) -> int:
    """Run one command and return its exit code. No traceback reaches the reader, unless `--debug` asks for it."""
    given = sys.argv[1:] if args is None else args
    try:
        return int(app(args=given, prog_name="holdfast", standalone_mode=False) or Exit.OK)
    except TyperException as error:
        return _complain(f"{error.format_message()} (holdfast --help says more)", Exit.REFUSED)
    except KeyboardInterrupt:
        return _complain("stopped; a run under way goes on where it stopped when a worker is there", Exit.STOPPED)
    except Exception as error:
        if given[:1] == ["--debug"]:
            raise
        ours = translated(error)
        code = next((code for kind, code in _CODE_OF.items() if isinstance(ours, kind)), Exit.UNAVAILABLE)
        hint = f" (holdfast --debug {' '.join(given)} shows where)" if code is Exit.BROKEN else ""
        return _complain(f"{ours.message}{hint}", code)


def _limits(
    max_cost_usd: str | None,
    max_model_calls: str | None,
    max_tool_calls: str | None,
    max_tokens: str | None,
    max_steps: str | None,
    deadline_seconds: str | None,
) -> Limits | None:
    return arguments.limits_given(
        {
            "max_cost_usd": max_cost_usd,
            "max_model_calls": max_model_calls,
            "max_tool_calls": max_tool_calls,
            "max_tokens": max_tokens,
            "max_steps": max_steps,
            "deadline_seconds": deadline_seconds,
        }
    )


def _done(command: Coroutine[Any, Any, Exit]) -> int:
    return asyncio.run(command)


def _session(as_json: bool) -> Session:
    return Session(settings=load_settings(), console=_console(), as_json=as_json)


def _console() -> Console:
    """Standard output. A pipe has no width of its own, and what reads it wants whole words."""
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_COLUMNS)


def _complain(message: str, code: Exit) -> Exit:
    console = Console(stderr=True)
    for line in message.splitlines():
        console.print(Text(f"error: {line}"), soft_wrap=True)
    return code
