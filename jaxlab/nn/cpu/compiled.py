"""Compiled code for CPUs that XLA calls through `jax.ffi`, built once and kept in the user's cache.

It is C++ (the `.cc` files of this room), built for this processor by the system's compiler when it
is first used. Only the backend `compiled` uses it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import pathlib
import platform as system
import shutil
import subprocess
import tempfile

import jax
import jax.numpy as jnp

from jaxlab.core import UsageError, platform

SOURCES = tuple(
    pathlib.Path(__file__).with_name(name)
    for name in ("compiled_attention.cc", "compiled_products.cc", "compiled.h")
)
"""The code; all but the header is compiled."""

COMPILERS = ("c++", "g++", "clang++")
"""The compilers to look for, in order, if the environment names no `CXX`."""

TARGETS = {
    name: f"jaxlab_{name}"
    for name in ("attention_forward", "attention_backward", "matrix_product", "rectify")
}
"""Names under which XLA calls the functions of the code."""


def require_compiled(dtype: jax.typing.DTypeLike) -> None:
    """Refuses what the compiled code cannot run, and builds it if need be.

    Raises:
      UsageError: another platform than CPU; another dtype than float32; no C++ compiler, or one
        that fails.
    """
    if platform() != "cpu":
        raise UsageError(
            f"backend 'compiled' runs on CPUs, and this program is for {platform()}; take "
            "backend='plain'"
        )
    if dtype != jnp.float32:
        raise UsageError(
            f"backend 'compiled' computes in float32, not in {jnp.dtype(dtype).name}; set "
            "dtype='float32' or take backend='plain'"
        )
    _register()


def find_compiler() -> str | None:
    """The path of the C++ compiler that would be used: `CXX`, or the first of `COMPILERS`."""
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, (named,) if named else COMPILERS)), None)


@functools.cache
def _register() -> None:
    """Builds the library if need be and registers it with XLA, once per process."""
    path = build()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UsageError(
            f"backend 'compiled' cannot be loaded: {error}; remove {path}, or set "
            "XDG_CACHE_HOME to a folder from which programs may run, or take backend='plain'"
        ) from error
    for name, target in TARGETS.items():
        handler = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(target, handler, platform="cpu")


def build(folder: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """The path of the library, which is compiled now unless a copy for this machine exists.

    Args:
      folder: where libraries are kept; by default `jaxlab` in the user's cache (`XDG_CACHE_HOME`,
        else `~/.cache`).

    Raises:
      UsageError: no compiler; a compiler that fails, with its first error; a folder that cannot
        be written.
    """
    if (compiler := find_compiler()) is None:
        tried = os.environ.get("CXX") or ", ".join(COMPILERS)
        raise UsageError(
            f"backend 'compiled' needs a C++ compiler, and {tried} is not on the PATH; "
            "install one, name it in CXX, or take backend='plain'"
        )
    if folder is None:
        cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(cache) / "jaxlab"
    folder = pathlib.Path(folder)
    native = "-mcpu=native" if system.machine() in ("arm64", "aarch64") else "-march=native"
    command = [
        compiler,
        "-O3",
        native,
        "-std=c++17",
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-DNDEBUG",
        "-shared",
        "-fPIC",
        f"-I{jax.ffi.include_dir()}",
        *(str(source) for source in SOURCES if source.suffix == ".cc"),
    ]
    version = _run([compiler, "--version"]).stdout
    code = [source.read_text() for source in SOURCES]
    of = (code, command, version, jax.lib.__version__, _processor())
    path = folder / f"compiled-{hashlib.sha256(repr(of).encode()).hexdigest()[:16]}.so"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = pathlib.Path(scratch) / path.name
            done = _run([*command, "-o", str(made)])
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if "error" in line]
                first = (errors or done.stderr.splitlines() or ["it says nothing"])[0]
                raise UsageError(
                    f"backend 'compiled' does not build with {compiler} (code "
                    f"{done.returncode}): {first}; name another compiler in CXX, or take "
                    "backend='plain'"
                )
            made.replace(path)
    except OSError as error:
        raise UsageError(
            f"backend 'compiled' cannot be kept in {folder}: {error.strerror}; set "
            "XDG_CACHE_HOME to a folder that can be written, or take backend='plain'"
        ) from error
    return path


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(
            f"backend 'compiled' needs a C++ compiler, and {command[0]} does not run: "
            f"{error.strerror}; name another in CXX, or take backend='plain'"
        ) from error


def _processor() -> str:
    """Tells apart processors with different instructions: the cache may be on a shared disk."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return system.platform()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
