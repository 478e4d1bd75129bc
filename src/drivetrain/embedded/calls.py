"""Plain Python calls: one runtime per project in a background thread of this process."""

from __future__ import annotations

import atexit
import os
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.calls import Attribution
from drivetrain.core.declarations import Workflow
from drivetrain.core.errors import DrivetrainError, RequestError, did_you_mean
from drivetrain.core.policies import Decided
from drivetrain.embedded.applying import keep, person
from drivetrain.embedded.background import BackgroundRuntime
from drivetrain.embedded.starting import to_serve
from drivetrain.execution.admission import Admitted
from drivetrain.execution.call import CallResult, Execution
from drivetrain.execution.plan import WorkflowPlan
from drivetrain.project.files import find_root
from drivetrain.providers.answers import message_of

_lock = threading.Lock()
_projects: dict[tuple[int, Path, str | None], Project] = {}


class Project:
    """A loaded project, serving calls from any thread of this process: what is live, or the folder where nothing was
    ever released."""

    def __init__(self, root: Path, environment: str | None) -> None:
        self.snapshot = to_serve(root, environment).snapshot
        keep(self.snapshot)
        self._waiting: set[Future[CallResult]] = set()
        self._background = BackgroundRuntime(self.snapshot, "drivetrain")
        self._runtime = self._background.runtime

    def call(self, name: str, raw: bytes) -> CallResult:
        """The Call of workflow `name` with an input as JSON. Raises: DrivetrainError, RequestError."""
        plan = self._runtime.plans.workflows.get(name)
        if plan is None:
            raise DrivetrainError(
                f"Project `{self.snapshot.name}` has no workflow `{name}`.",
                looked=[str(self.snapshot.root)],
                do=did_you_mean(name, self._runtime.plans.workflows),
            )
        if self._background.is_here:
            raise DrivetrainError(
                f"Workflow `{name}` was called by a rule or a check of its own project, which would wait for itself.",
                do="Make it a variant of the route, or call it from the program that calls the workflow.",
            )
        admitted = plan.admit_input(raw)
        waiting: Future[CallResult] = Future()
        self._waiting.add(waiting)
        waiting.add_done_callback(self._waiting.discard)
        self._background.soon(self._start, plan, admitted, waiting)
        return waiting.result()

    def close(self) -> None:
        """Ends running calls and writes what is buffered."""
        self._background.close(self._leave)

    def _leave(self) -> None:
        for waiting in list(self._waiting):
            message = "the project was closed while this call ran; it may have been sent"
            waiting.set_exception(RequestError(503, message, code="closed", kind="server_error"))

    def _start(self, plan: WorkflowPlan, admitted: Admitted, waiting: Future[CallResult]) -> None:
        runtime, workflow = self._runtime, plan.workflow
        now_ns = time.time_ns()
        execution = Execution(
            plan,
            admitted,
            Attribution("", workflow.team, workflow.use_case, "", person()),
            call_id=runtime.next_call_id(),
            opened_ns=now_ns,
            day=runtime.day(now_ns),
            door="python",
            env=runtime.environment,
            client=_Waiting(waiting),
        )
        execution.start()


class _Waiting:
    """Gives a Call's end to the thread that asked."""

    def __init__(self, waiting: Future[CallResult]) -> None:
        self._waiting = waiting

    def on_stream(self, data: bytes) -> None:
        """Never called: plain calls do not stream."""

    def on_finished(self, result: CallResult) -> None:
        if not self._waiting.done():
            self._waiting.set_result(result)


def project(root: Path, environment: str | None = None) -> Project:
    """The project in `root`, loaded once per process and environment."""
    key = (os.getpid(), root.resolve(), environment)
    with _lock:
        known = _projects.get(key)
        if known is None:
            known = _projects[key] = Project(root, environment)
            if len(_projects) == 1:
                atexit.register(close)
        return known


def close() -> None:
    """Ends every project of this process; a later call loads it anew."""
    with _lock:
        here = [key for key in _projects if key[0] == os.getpid()]
        for key in here:
            _projects.pop(key).close()


def call(root: Path, name: str, raw: bytes, environment: str | None = None) -> CallResult:
    """The Call of a project's workflow with an input as JSON; failures are in its `error`."""
    return project(root, environment).call(name, raw)


def answer(workflow: Workflow[Any, Any], value: Any) -> Any:
    """The output of `workflow` for `value`; a text where it declares no output type.

    Raises: RequestError where the call is refused or fails; DrivetrainError where no project is found.
    """
    return output_of(_called(workflow, value), workflow)


def _called(workflow: Workflow[Any, Any], value: Any) -> CallResult:
    """The answered Call. Raises: RequestError, DrivetrainError."""
    root = Path(workflow.project) if workflow.project else find_root(Path(workflow.place.file).parent)
    result = project(root).call(workflow.name, _as_json(workflow, value))
    if result.error is not None:
        raise explained(result, result.error)
    return result


def decide(workflow: Workflow[Any, Any], value: Any) -> Decided:
    """The output of `workflow` for `value` with what its policy decides.

    Raises: RequestError where the call is refused or fails; DrivetrainError where it has no policy.
    """
    if workflow.policy is None:
        raise DrivetrainError(
            f"Workflow `{workflow.name}` has no policy, so it decides nothing.",
            do="Declare `policy=dt.Policy(...)`, or call it as a function for its answer.",
        )
    result = _called(workflow, value)
    made = result.decision
    assert made is not None, "an answered call of a workflow with a policy has a Decision"
    return Decided(
        output_of(result, workflow), made.action, made.reason, made.values, result.call_id, made.policy, made.version,
        made.explored, made.propensity,
    )  # fmt: skip


def explained(result: CallResult, error: RequestError) -> RequestError:
    """The error with what the last attempt said, for whoever runs this process and may know its input and
    addresses."""
    reason = result.attempts[-1].reason if result.attempts else ""
    what = error.what if not reason or reason in error.what else f"{error.what} ({reason})"
    if error.code == "template_failed" and (detail := getattr(error.__cause__, "detail", None)):
        what = f"{what} ({detail})"
    told = RequestError(error.status, what, code=error.code, kind=error.kind, param=error.param)
    told.do = f"`drivetrain calls show {result.call_id}` tells what was tried."
    return told


def output_of(result: CallResult, workflow: Workflow[Any, Any]) -> Any:
    """A Call's output, as the caller's own output type or as text."""
    output = result.output
    if output is None and workflow.output is None:
        return message_of(result.body).content or ""
    if workflow.output is not None and not isinstance(output, workflow.output):
        # The project's code is loaded under a name of its own, so its types are not the caller's.
        return msgspec.convert(msgspec.to_builtins(output), workflow.output)
    return output


def _as_json(workflow: Workflow[Any, Any], value: Any) -> bytes:
    if workflow.input is None and isinstance(value, str):
        value = {"messages": [{"role": "user", "content": value}]}
    try:
        return msgspec.json.encode(value)
    except TypeError as error:
        wanted = workflow.input.__name__ if workflow.input is not None else "text or {'messages': [...]}"
        raise DrivetrainError(f"Workflow `{workflow.name}` takes {wanted}, not {type(value).__name__}.") from error


__all__ = ["Project", "RequestError", "answer", "call", "close", "decide", "output_of", "project"]
