"""The processes that train together: joining them, waiting for them, and ending one of them."""

from __future__ import annotations

import os
import re
import sys
from typing import NoReturn

import jax
import orbax.checkpoint as ocp

from pipeline.schema import UserError

_PATIENCE_SEC = 24 * 3600  # how long processes wait for the one that trains the tokenizer or writes the encoder


def join_others(
    *, distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the other processes, if the arguments say that there are any.

    Args:
        distributed: the job's scheduler knows the others.
        coordinator: HOST:PORT of process 0, where it does not.
        num_processes: with `coordinator`, how many there are.
        process_id: with `coordinator`, the number of this one.

    Raises:
        UserError: the arguments contradict each other, or the processes cannot be joined.
    """
    by_hand = (coordinator, num_processes, process_id)
    if by_hand != (None, None, None) and None in by_hand:
        raise UserError(
            "--coordinator, --num-processes and --process-id belong together; give all three, or --distributed"
        )
    if not distributed and coordinator is None:
        return
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator {coordinator} is not HOST:PORT, e.g. --coordinator host0:8476")
    try:
        jax.distributed.initialize(*by_hand)
    except (RuntimeError, ValueError) as error:
        first_line = (str(error).splitlines() or [repr(error)])[0]
        raise UserError(
            f"cannot join the other processes ({first_line}); give each process --coordinator, --num-processes and "
            "--process-id, and start all of them within five minutes"
        ) from error


def wait_for_all(name: str) -> None:
    """Waits until all processes have called this. Without it, collectives would give up after some minutes."""
    if jax.process_count() > 1:
        ocp.multihost.sync_global_processes(name, timeout=_PATIENCE_SEC, processes=set(range(jax.process_count())))


def say(text: str) -> None:
    """Prints a line, in process 0."""
    if jax.process_index() == 0:
        print(text, flush=True)


def leave(status: int, *, at_once: bool = False) -> NoReturn:
    """Ends this process. If it is one of several, it ends at once: a normal exit would wait for the others.

    Args:
        status: the exit code.
        at_once: do not wait for threads either, such as those that write to a store that no longer answers.
    """
    if at_once or jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
