"""How the processes of a run find each other."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator

import jax

from jaxlab.core import UsageError, is_main_process

RUN_AGAIN = 75
"""The exit code that asks for the same command again: `EX_TEMPFAIL` of sysexits.h."""


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    start_timeout: int = 300,
    heartbeat_timeout: int = 60,
) -> None:
    """Joins this process to the others of its run; comes before any use of JAX.

    Without arguments the cluster that this process runs in is asked, by `jax.distributed` itself:
    Cloud TPU, SLURM, Open MPI and Kubernetes. Outside of one the process stays alone, as it does
    with `num_processes=1`, and where JAX is in use already.

    Args:
      coordinator: `host:port` of process 0, the same on all of them.
      num_processes: how many take part.
      process_id: the number of this one, from 0.
      start_timeout: seconds to wait for the others at the start.
      heartbeat_timeout: seconds of silence after which a process counts as lost: the others then
        end with one line, below the output of JAX itself, and the exit code that asks to be run
        again.

    Raises:
      UsageError: some of the three without the others, numbers out of range, a coordinator that
        cannot be reached; with them, JAX in use already.
    """
    if num_processes == 1 and coordinator is None and process_id in (None, 0):
        return
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    timeouts = start_timeout, heartbeat_timeout
    if coordinator is not None and num_processes is not None and process_id is not None:
        _check(coordinator, num_processes, process_id)
        where = f"the coordinator {coordinator}"
        _initialize(where, timeouts, coordinator, num_processes, process_id)
    elif len(missing) < len(given):
        raise UsageError(
            f"{' and '.join(missing)} missing; give --coordinator=HOST:PORT, --num_processes and "
            "--process_id together, or none of them in a cluster that JAX knows"
        )
    else:
        _initialize("the coordinator that the cluster names", timeouts)
    if jax.distributed.is_initialized():
        _end_aborts_with(_last_words)


def _last_words(_signal: int) -> None:
    """What is said where JAX aborts, from a thread of its own that is none of Python's."""
    line = (
        "another process of the run seems lost: JAX aborted this one, see above; start all of them "
        "again: the same command continues from the last checkpoint\n"
    )
    os.write(2, line.encode())
    os._exit(RUN_AGAIN)


def _end_aborts_with(end: Callable[[int], None]) -> None:
    # JAX's own callback for lost processes cannot be called from Python in today's versions, and
    # Python's signal handlers run in the main thread, which waits for the devices.
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes = [ctypes.c_int, ctypes.c_void_p]
    set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))

    def restore(_handler: object = handler) -> None:  # and keeps the handler alive until then
        set_handler(signal.SIGABRT, None)

    # Without an interpreter there is nobody to say it.
    atexit.register(restore)


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--coordinator={coordinator}; it takes HOST:PORT, e.g. 10.0.0.1:1234")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise UsageError(
            f"--process_id={process_id} of --num_processes={num_processes}; expected a number "
            "from 0 to below that of the processes"
        )


def _initialize(
    where: str,
    timeouts: tuple[int, int],
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    method = None if coordinator is None else "deactivate"
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method=method,
            initialization_timeout=timeouts[0],
            heartbeat_timeout_seconds=timeouts[1],
        )
    except ValueError as error:
        # No cluster was found, and none was asked for.
        if coordinator is None and "coordinator_address" in str(error):
            return
        raise UsageError(f"cannot join the run: {error}") from None
    except RuntimeError as error:
        # A notebook that has used JAX and now calls an experiment: it is one process.
        if coordinator is None and "must be called before" in str(error):
            return
        words = " ".join(str(error).split())[:200]
        raise UsageError(
            f"cannot join the run at {where}: {words}; start all processes within "
            f"{timeouts[0]} s, with one coordinator that all can reach, or "
            "give --num_processes=1 to run alone"
        ) from None


@contextlib.contextmanager
def quiet_unless_main() -> Iterator[None]:
    """Within this context only the main process writes to standard output and gives warnings."""
    if is_main_process():
        yield
        return
    logger = logging.getLogger("jaxlab")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logger.setLevel(level)


def leave(code: int) -> None:
    """Ends a failed process of several at once: the others do not answer any more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
