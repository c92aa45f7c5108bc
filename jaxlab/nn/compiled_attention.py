"""Softmax attention over ranges of keys as compiled code for CPUs, called through `jax.ffi`.

Queries meet their keys tile by tile, forward and backward: no logits, weights or masks are ever
arrays, keys are not copied window by window, and rows and heads run on all cores that are free. The
operations of `tiles` compute the same, and are its reference.

It is C++ (`compiled_attention.cc`), built once for this processor by the system's compiler when it
is first used, and kept in the user's cache. It has a derivative of its own (`jax.custom_vjp`),
which closes forward mode: no Hessian-vector products through it. Plain operations have both modes.

Letters: n rows, t queries, s keys, h heads, g heads of keys and values, k width of a head, m
distances.
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
import numpy as np

from jaxlab.core import UsageError, map_shards, platform
from jaxlab.nn.bilinear import on_one_cpu_device

SOURCE = pathlib.Path(__file__).with_name("compiled_attention.cc")
"""The code."""

COMPILERS = ("c++", "g++", "clang++")
"""What is looked for, in order, where the environment names no `CXX`."""

TARGETS = {"forward": "jaxlab_attention_forward", "backward": "jaxlab_attention_backward"}
"""Names under which XLA calls the code."""


def attend_ranges(
    q_nthk: jax.Array,
    k_nsgk: jax.Array,
    v_nsgk: jax.Array,
    first_nt: jax.Array,
    last_nt: jax.Array,
    *,
    bias_hm: jax.Array | None = None,
    offset: int = 0,
    mask_ns: jax.Array | None = None,
) -> jax.Array:
    """Attention in which query i sees the keys from `first` to `last`, both included.

    On a mesh every device runs it on its own rows and heads.

    Args:
      q_nthk: float32 queries [n, t, h, k], already scaled.
      k_nsgk: float32 keys [n, s, g, k]; g divides h, and neighbouring heads share keys.
      v_nsgk: values of the same.
      first_nt: int32 [n, t], the first key that a query sees.
      last_nt: int32 [n, t], the last one; less than the first: it sees none.
      bias_hm: float32 [h, m], added to the logits by distance, which of query i and key j is
        `i + offset - j`; keys at a negative distance, or at m and more, are not seen. None: no
        bias, and no limit.
      offset: see there.
      mask_ns: float32 [n, s], added to the logits of a key: 0, or `tiles.MASKED` to hide it. No
        derivative is taken by it.

    Returns:
      [n, t, h, k]; a query that sees no key gives zero.

    Raises:
      UsageError: another platform or dtype, or no compiler; see `require_compiled`.
      TypeError: arrays whose shapes or dtypes do not fit each other.
    """
    require_compiled(q_nthk.dtype)
    n, t, h, k = q_nthk.shape
    _, s, g, _ = k_nsgk.shape
    given = [(k_nsgk, (n, s, g, k)), (v_nsgk, (n, s, g, k))]
    given += [] if bias_hm is None else [(bias_hm, (h, bias_hm.shape[-1]))]
    given += [] if mask_ns is None else [(mask_ns, (n, s))]
    if h % g or any(x.shape != shape or x.dtype != jnp.float32 for x, shape in given):
        found = ", ".join(f"{x.dtype}{list(x.shape)}" for x, _ in given)
        raise TypeError(f"queries float32{[n, t, h, k]} do not fit the other arrays: {found}")
    if k_nsgk.shape[2] < h and not on_one_cpu_device():  # a device may hold heads without theirs
        k_nsgk, v_nsgk = (jnp.repeat(x, h // x.shape[2], axis=2) for x in (k_nsgk, v_nsgk))
    bias_hm = jnp.zeros((h, 0), jnp.float32) if bias_hm is None else bias_hm
    mask_ns = jnp.zeros((n, 0), jnp.float32) if mask_ns is None else mask_ns
    rows, of_token = ("batch", None, "heads", None), ("batch", None)
    run = map_shards(
        functools.partial(_attend, offset), rows, rows, rows, of_token, of_token,
        ("heads", None), of_token,
    )
    ranges = (jnp.broadcast_to(x, (n, t)).astype(jnp.int32) for x in (first_nt, last_nt))
    return run(q_nthk, k_nsgk, v_nsgk, *ranges, bias_hm, mask_ns)


def require_compiled(dtype: jax.typing.DTypeLike) -> None:
    """Refuses what the compiled code cannot run, and builds it where it is not yet.

    Raises:
      UsageError: another platform than CPU; another dtype than float32; no C++ compiler, or one
        that fails.
    """
    if platform() != "cpu":
        raise UsageError(
            f"attention kernel 'compiled' runs on CPUs, and this program is for {platform()}; take "
            "kernel 'plain'"
        )
    if dtype != jnp.float32:
        raise UsageError(
            f"attention kernel 'compiled' computes in float32, not in {jnp.dtype(dtype).name}; set "
            "dtype='float32' or take kernel 'plain'"
        )
    _register()


def find_compiler() -> str | None:
    """The path of the C++ compiler that would be used: `CXX`, or the first of `COMPILERS`."""
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, (named,) if named else COMPILERS)), None)


@functools.cache
def _register() -> None:
    """Builds the library if need be, and tells XLA of it; once a process."""
    path = build()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UsageError(
            f"attention kernel 'compiled' cannot be loaded: {error}; remove {path}, or set "
            "XDG_CACHE_HOME to a folder from which programs may run, or take kernel 'plain'"
        ) from error
    for name, target in TARGETS.items():
        handler = jax.ffi.pycapsule(getattr(library, f"attention_{name}"))
        jax.ffi.register_ffi_target(target, handler, platform="cpu")


def build(folder: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """The library's path, compiled now unless a copy for this machine is kept.

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
            f"attention kernel 'compiled' needs a C++ compiler, and {tried} is not on the PATH; "
            "install one, name it in CXX, or take kernel 'plain'"
        )
    if folder is None:
        cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(cache) / "jaxlab"
    folder = pathlib.Path(folder)
    native = "-mcpu=native" if system.machine() in ("arm64", "aarch64") else "-march=native"
    command = [
        compiler, "-O3", native, "-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-DNDEBUG",
        "-shared", "-fPIC", f"-I{jax.ffi.include_dir()}", str(SOURCE),
    ]
    version = _run([compiler, "--version"]).stdout
    of = (SOURCE.read_text(), command, version, jax.lib.__version__, _processor())
    path = folder / f"attention-{hashlib.sha256(repr(of).encode()).hexdigest()[:16]}.so"
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
                    f"attention kernel 'compiled' does not build with {compiler} (code "
                    f"{done.returncode}): {first}; name another compiler in CXX, or take kernel "
                    "'plain'"
                )
            made.replace(path)
    except OSError as error:
        raise UsageError(
            f"attention kernel 'compiled' cannot be kept in {folder}: {error.strerror}; set "
            "XDG_CACHE_HOME to a folder that can be written, or take kernel 'plain'"
        ) from error
    return path


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(
            f"attention kernel 'compiled' needs a C++ compiler, and {command[0]} does not run: "
            f"{error.strerror}; name another in CXX, or take kernel 'plain'"
        ) from error


def _processor() -> str:
    """What tells processors apart whose instructions differ: a cache may lie on a shared disk."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return system.platform()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(offset: int, q, k, v, first_nt, last_nt, bias_hm, mask_ns) -> jax.Array:
    return _attend_forward(offset, q, k, v, first_nt, last_nt, bias_hm, mask_ns)[0]


def _attend_forward(offset: int, *arrays: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    q_nthk = arrays[0]
    n, t, h, _ = q_nthk.shape
    top_nht = jax.ShapeDtypeStruct((n, h, t), jnp.float32)
    out, top = _call("forward", offset, (q_nthk, top_nht), *arrays)
    return out, (*arrays, out, top)


def _attend_backward(
    offset: int, kept: tuple[jax.Array, ...], dout: jax.Array
) -> tuple[jax.Array | np.ndarray, ...]:
    q, k, v, first_nt, _, bias_hm, mask_ns = kept[:7]
    dbias_nhm = jax.ShapeDtypeStruct((q.shape[0], *bias_hm.shape), jnp.float32)
    dq, dk, dv, dbias = _call("backward", offset, (q, k, v, dbias_nhm), *kept, dout)
    of_range = np.zeros(first_nt.shape, jax.dtypes.float0)
    return dq, dk, dv, of_range, of_range, dbias.sum(axis=0), jnp.zeros_like(mask_ns)


_attend.defvjp(_attend_forward, _attend_backward)


def _call(name: str, offset: int, outs: tuple, *arrays: jax.Array) -> list[jax.Array]:
    (n, t, h, k), s, m = arrays[0].shape, arrays[1].shape[1], arrays[5].shape[1]
    pairs = n * h * t * min(m or s, s)  # the most that may be read; plans count them
    flops = {"forward": 2, "backward": 5}[name] * 2 * pairs * k
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outs]
    call = jax.ffi.ffi_call(TARGETS[name], shapes, vmap_method="sequential")
    return call(*arrays, offset=np.int64(offset), flops=np.int64(flops))
