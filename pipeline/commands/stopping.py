"""What is said when a run is stopped from the keyboard: what is kept, and the command that goes on."""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from pipeline.plan import State, Step, look_up
from pipeline.store import Store

STATUS = 130  # as shells have it of Ctrl-C


@contextmanager
def stoppable(console: Console, kept_of: Callable[[], str], program: str = "raydpo") -> Iterator[None]:
    """End the `program` with a message at Ctrl-C. While Ray Train trains it is Ray's to hear it, and to exit."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        kept = kept_of()
        again = shlex.join([*program.split(), *sys.argv[1:]])
        console.print(f"Stopped. Kept: {escape(kept or 'nothing yet')}.", soft_wrap=True, highlight=False)
        console.print(f"The same command goes on: {escape(again)}", soft_wrap=True, highlight=False)
        raise typer.Exit(STATUS) from None


def kept_of(steps: Sequence[Step], store: Store) -> str:
    """What a run has made by now."""
    return "; ".join(filter(None, (_kept(step, store) for step in steps)))


def _kept(step: Step, store: Store) -> str:
    """Of one stage; nothing where it has not begun, or is not asked for."""
    now = look_up(step, store)
    if step.state == State.NOT_NEEDED or now.state == State.MISS:
        return ""
    if now.state == State.HIT:
        return f"{step.name}, finished"
    if step.stage.name != "train":
        return f"{step.name}, {now.why.rpartition('; ')[2]}"
    checkpoints = sorted((store.draft(step.stage.name, step.fingerprint) / "checkpoints").glob("step-*"))
    number = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
    return f"{step.name}, a checkpoint of step {number}" if number else f"{step.name} has no checkpoint yet"
