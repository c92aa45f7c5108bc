"""Python processes that skip the imports: forked from one that has done them.

Importing JAX, Flax and the rooms costs a process several seconds of CPU time. `Python.start` forks
its processes from a server that has imported them and has not yet started JAX's backend, so that
each process still has devices and XLA flags of its own. Tests of the imports, of the allocator or
of the hash seed start an interpreter of their own instead.

The server reads one request a line from a socket, with three file descriptors: standard output,
standard error and the pipe on which it answers the process id and later the exit code.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pathlib
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
IMPORTED = (
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "optax",
    "orbax.checkpoint",
    "jax.experimental.pallas",
)


class Process:
    """A process that runs; close to `subprocess.Popen` with text pipes."""

    def __init__(self, server: socket.socket, request: dict):
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self.status, answers = os.pipe()
        message = json.dumps(request).encode() + b"\n"
        fds = [self.out.fileno(), self.err.fileno(), answers]
        sent = socket.send_fds(server, [message], fds)
        server.sendall(message[sent:])
        os.close(answers)
        self.args, self.returncode, self.answer = request["arguments"], None, b""
        while b"\n" not in self.answer:
            self.answer += os.read(self.status, 64) or b"-1\n"
        self.pid = int(self.answer.split()[0])
        if self.pid < 0:
            raise RuntimeError("the server of tests/forked.py has ended; see its errors above")

    def poll(self) -> int | None:
        """The exit code, or None while the process runs."""
        while self.returncode is None and select.select([self.status], [], [], 0)[0]:
            self.read_status()
        return self.returncode

    def read_status(self) -> None:
        part = os.read(self.status, 64)
        self.answer += part
        if not part:
            os.close(self.status)
            self.returncode = int(self.answer.split()[1])

    def communicate(self) -> tuple[str, str]:
        """Waits for the end; gives what was printed and the errors."""
        while self.returncode is None:
            self.read_status()
        texts = []
        for file in (self.out, self.err):
            file.seek(0)
            texts.append(file.read().decode())
            file.close()
        return texts[0], texts[1]

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


class Python:
    """Runs `python ARGUMENTS` in processes with one device, from the root of the project."""

    def __init__(self):
        self.socket, theirs = socket.socketpair()
        self.server = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            cwd=ROOT,
        )
        theirs.close()

    def start(self, *arguments: str, cwd: pathlib.Path = ROOT, **environment: str) -> Process:
        """Starts `python ARGUMENTS`, whose first is -m, -c or a file."""
        environment = {**os.environ, "XLA_FLAGS": os.environ["QUICK_XLA_FLAGS"], **environment}
        request = {"arguments": list(arguments), "cwd": str(cwd), "environment": environment}
        return Process(self.socket, request)

    def __call__(self, *arguments: str, **kwargs) -> subprocess.CompletedProcess[str]:
        """Runs it to its end; the keywords are those of `start`."""
        process = self.start(*arguments, **kwargs)
        out, err = process.communicate()
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def close(self) -> None:
        """Ends the server; processes that run are not touched."""
        self.socket.close()
        self.server.wait()


def next_request(connection: socket.socket) -> tuple[dict, list[int]]:
    """Waits for one; ends the server when there is nobody left to ask."""
    message, fds, _, _ = socket.recv_fds(connection, 2**16, 3)
    while message and not message.endswith(b"\n"):
        message += connection.recv(2**16)
    if not message:
        os._exit(0)
    return json.loads(message), fds


def serve(connection: socket.socket) -> tuple[dict, list[int]]:
    """Answers requests for ever; returns in the forked processes, each with its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    while True:
        request, fds = next_request(connection)
        if os.fork():
            for fd in fds:
                os.close(fd)
            continue
        # A process in between waits for the end of the one that was asked for.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        connection.close()
        process = os.fork()
        if process == 0:
            return request, fds
        os.write(fds[2], b"%d\n" % process)
        _, status = os.waitpid(process, 0)
        os.write(fds[2], b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)


def become(request: dict, fds: list[int]) -> None:
    """Runs what was asked for in this process, as if it were new."""
    os.dup2(fds[0], 1)
    os.dup2(fds[1], 2)
    for fd in fds:
        os.close(fd)
    for name in os.environ.keys() | request["environment"].keys():
        if name.startswith("JAX_") and os.environ.get(name) != request["environment"].get(name):
            sys.exit(f"{name} is read when JAX is imported: start an interpreter for this test")
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    first, *rest = request["arguments"]
    if first == "-m":
        sys.argv, sys.path[0] = rest, request["cwd"]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = [first, *rest], str(pathlib.Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    import jaxlab

    for room in jaxlab.__all__:
        getattr(jaxlab, room)
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    become(*serve(socket.socket(fileno=int(sys.argv[1]))))
