"""How a training ends that does not finish: what it is called, what its run's status says, and what the user can do."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

import torch

from evle.data.loader import worker_death
from evle.engine.checkpoint import Position
from evle.engine.run_folder import DIVERGED, Run
from evle.errors import ConfigError, EvleError


class Interrupted(EvleError):
    """The run was asked to stop (Ctrl-C, SIGTERM) and did, after saving."""

    exit_code = 130  # as shells report Ctrl-C


class Diverged(EvleError):
    """A loss or a gradient is not finite; the weights were not updated with it."""

    exit_code = 3  # by which a recipe tells it from errors that would stop its other runs, too


@contextlib.contextmanager
def report_failures(run: Run) -> Iterator[SimpleNamespace]:
    """Write how a run ended, when it did not finish, into its status; `at` is set as soon as it is known."""
    reported = SimpleNamespace(at=Position(step=run.status().get("step", 0)))
    try:
        yield reported
    except (Interrupted, KeyboardInterrupt) as error:
        run.set_status("interrupted", reported.at.step, str(error) or "stopped at once")
        raise
    except Diverged as error:
        run.set_status(DIVERGED, reported.at.step, str(error))
        raise
    except BaseException as error:
        problem = _in_our_words(error)
        run.set_status("failed", reported.at.step, str(problem) if problem else f"{type(error).__name__}: {error}")
        if problem is None:
            raise
        raise problem from None


def _in_our_words(error: BaseException) -> EvleError | None:
    """What the user can do about an error of torch; None where it is not theirs."""
    if isinstance(error, torch.OutOfMemoryError):
        return ConfigError(
            "out of memory: raise train.accumulation (each micro-batch gets smaller, the total batch stays), or "
            "set train.gradient_checkpointing=true"
        )
    return worker_death(error)
