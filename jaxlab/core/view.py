"""The functional view of any NNX model: flat parameters, a pure apply, outputs by path.

Probes, masks, interpolation, training and evaluation see a model only through its `View`.
Nothing is asked of the model beyond being an `nnx.Module`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.errors
import jax
from flax import nnx

from jaxlab.core.errors import UsageError, nearest
from jaxlab.core.masks import Masks, apply_masks, require_fitting_masks
from jaxlab.core.paths import matches, natural_key, natural_sort

Params = dict[str, jax.Array]
"""`{'blocks/0/attention/query/kernel': array}`, in natural order (a dict that leaves `jax.jit` is
in JAX's own order, which is the alphabet's: `natural_sort` restores it)."""


# Views hold arrays, which neither compare nor hash: a view equals itself alone, and so may be a
# static argument of jit.
@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A model as pure functions of its flat parameters.

    Attributes:
      params: `{path: array}`, the `nnx.Param` variables in natural order. A module that is used
        twice appears once, under its first path.
      state: `{path: array}`, every other variable (running statistics, stored random counters).
      axes: `{path: logical axis names or None}`, from the `axes=` metadata of each parameter.
      masks: `{path: bool array}`, see `masked`; mostly empty.

    Example, on a model that this library has never seen:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> view = View.of(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    >>> sorted(view.params)
    ['bias', 'kernel']
    >>> zeros = {path: jnp.zeros_like(p) for path, p in view.params.items()}
    >>> view.apply(zeros, jnp.ones((1, 2))).tolist()
    [[0.0, 0.0, 0.0]]
    """

    params: Params
    state: dict[str, Any]
    axes: dict[str, tuple[str | None, ...] | None]
    _graph: Any = dataclasses.field(repr=False)
    _param_keys: dict[str, tuple] = dataclasses.field(repr=False)
    _state_keys: dict[str, tuple] = dataclasses.field(repr=False)
    masks: Masks = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: nnx.Module) -> View:
        """The view of a model; the arrays are shared with it, not copied.

        Raises:
          UsageError: something that is not an NNX module; a variable that holds a dict; two
            variables with one path (keys of an `nnx.Dict` may contain '/').
        """
        if not isinstance(model, nnx.Module):
            raise UsageError(f"a view takes an nnx.Module, got {type(model).__name__}")
        _claim_traced_arrays(model)
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        flat, rest = dict(nnx.to_flat_state(params)), dict(nnx.to_flat_state(rest))
        keys, state_keys = _by_path(flat), _by_path(rest)
        return cls(
            params={path: flat[key].get_value() for path, key in keys.items()},
            state={path: _value(rest[key]) for path, key in state_keys.items()},
            axes={path: flat[key].get_metadata().get("axes") for path, key in keys.items()},
            _graph=graph,
            _param_keys=keys,
            _state_keys=state_keys,
        )

    @classmethod
    def abstract(cls, build: Callable[[], nnx.Module]) -> View:
        """The view of `build()` with shapes in place of arrays; nothing is allocated.

        A model that reads its state when called (running statistics, dropout, a constant array)
        is applied by `apply_with_state`, with a real or traced state.
        """
        views = []

        # Not by nnx.eval_shape, which loses the plain arrays among a model's attributes.
        def arrays() -> tuple[Params, dict[str, Any]]:
            views.append(cls.of(build()))
            return views[0].params, views[0].state

        params, state = map(natural_sort, jax.eval_shape(arrays))
        return dataclasses.replace(views[0], params=params, state=state)

    def model(
        self, params: Params | None = None, state: Mapping[str, Any] | None = None
    ) -> nnx.Module:
        """Puts the NNX model together again, by default with the view's own arrays.

        Raises:
          UsageError: a parameter or state that the model does not have, or that is missing.
        """
        params = self.params if params is None else params
        _check(params, self._param_keys, "parameter")
        return self._merged(apply_masks(params, self.masks) if self.masks else params, state)

    def _merged(self, params: Params, state: Mapping[str, Any] | None = None) -> nnx.Module:
        state = self.state if state is None else state
        _check(state, self._state_keys, "state")
        return nnx.merge(
            self._graph,
            nnx.from_flat_state([(self._param_keys[path], params[path]) for path in params]),
            nnx.from_flat_state([(self._state_keys[path], state[path]) for path in state]),
        )

    def apply(self, params: Params, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        """What the model returns with these parameters. Pure; changes of state are dropped."""
        return getattr(self.model(params), method)(*args, **kwargs)

    def apply_with_state(
        self,
        params: Params,
        state: Mapping[str, Any],
        *args: Any,
        method: str = "__call__",
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Like `apply`, from a given state; returns the output and the state after the call.

        The state keeps its paths: variables that the call adds (sown values) are dropped.
        """
        model = self.model(params, state)
        output = getattr(model, method)(*args, **kwargs)
        after = View.of(model).state
        return output, {path: after[path] for path in self._state_keys}

    def at(self, params: Params) -> View:
        """The same view with other parameters."""
        _check(params, self._param_keys, "parameter")
        params = apply_masks(params, self.masks) if self.masks else params
        return dataclasses.replace(self, params=natural_sort(params))

    def masked(self, masks: Mapping[str, jax.Array]) -> View:
        """The same view with weights that do not count: zero in `params` and in every call.

        Whatever parameters the view is then called with, it sees them masked: gradients and
        curvature by masked weights are zero. Masks of a masked view join those that it has.

        Args:
          masks: `{path: bool array}`, true where a weight is kept.

        Raises:
          UsageError: a mask that fits no parameter, with the nearest; one of another shape or
            dtype.
        """
        require_fitting_masks(self.params, masks)
        joined = {p: self.masks[p] & mask if p in self.masks else mask for p, mask in masks.items()}
        view = dataclasses.replace(self, masks=self.masks | joined)
        is_abstract = any(isinstance(p, jax.ShapeDtypeStruct) for p in self.params.values())
        return view if is_abstract else view.at(self.params)

    def training(self) -> View:
        """The same view with the model in training mode, as by `nnx.Module.train()`.

        Dropout drops, and batch normalisation takes the statistics of its batch; the training step
        does this by itself.
        """
        return self._in_mode(train=True)

    def evaluating(self) -> View:
        """The same view with the model in evaluation mode, as by `nnx.Module.eval()`.

        Nothing is dropped, and batch normalisation takes its running statistics, so that each row
        of a batch is as if it were alone; every evaluation does this by itself.
        """
        return self._in_mode(train=False)

    def _in_mode(self, *, train: bool) -> View:
        model = self._merged(self.params)
        (model.train if train else model.eval)()
        graph, _, _ = nnx.split(model, nnx.Param, ...)
        return self if graph == self._graph else dataclasses.replace(self, _graph=graph)

    def bind(self, params: Params) -> Callable[..., Any]:
        """`apply` with the parameters filled in: what an objective takes as its model."""
        return functools.partial(self.apply, params)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`apply` with the view's own parameters."""
        return self.apply(self.params, *args, **kwargs)

    def taps(
        self,
        inputs: Any,
        paths: str | Iterable[str] = "*",
        *,
        params: Params | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Outputs of sub-modules by path, in natural order; works under jit and grad.

        Seen are calls in the model's own trace and through NNX's transforms (`nnx.remat`,
        `nnx.scan`), not those inside a bare `jax.lax.scan` or `jax.checkpoint`.

        Args:
          inputs: the model's argument, or a tuple of its arguments.
          paths: patterns over module paths such as `'blocks/*/mlp'`; the model itself is `''`.
          params: other parameters than the view's own.
          **kwargs: the model's keyword arguments.

        Returns:
          `{module path: what its __call__ returned}`; a module called more than once gives a tuple.

        Raises:
          UsageError: a pattern that fits no sub-module that is called.
        """
        args = inputs if isinstance(inputs, tuple) else (inputs,)
        model = self.model(self.params if params is None else params)
        with _sowing_calls(model):
            _, found = nnx.capture(model, nnx.Intermediate)(*args, **kwargs)
        outputs = {
            _join(key[:-1]): value.get_value()
            for key, value in nnx.to_flat_state(found)
            if key[-1] == "__call__"
        }
        patterns = [paths] if isinstance(paths, str) else list(paths)
        for pattern in patterns:
            if not any(matches(path, pattern) for path in outputs):
                raise UsageError(f"no called module fits {pattern!r}{nearest(pattern, outputs)}")
        chosen = {path: out for path, out in outputs.items() if matches(path, patterns)}
        return natural_sort(
            {path: out[0] if len(out) == 1 else out for path, out in chosen.items()}
        )

    @property
    def num_params(self) -> int:
        """The number of scalars in `params`."""
        return sum(p.size for p in jax.tree.leaves(self.params))


def _check(given: Mapping[str, Any], known: Mapping[str, Any], noun: str) -> None:
    if given.keys() == known.keys():
        return
    for path in sorted(given.keys() - known.keys()):
        raise UsageError(f"the model has no {noun} {path!r}{nearest(path, known)}")
    missing = sorted(known.keys() - given.keys(), key=natural_key)
    listed = ", ".join(missing[:5])
    raise UsageError(f"{noun} of the model missing: {listed} ({len(missing)} in all)")


def _claim_traced_arrays(model: nnx.Module) -> None:
    # A plain array as an attribute is data to NNX, but structure where it was made while tracing
    # (is_data goes by the exact type): the split would hide it, and keep the tracer.
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Pytree):
            for name, value in list(vars(node).items()):
                if isinstance(value, jax.core.Tracer):
                    setattr(node, name, nnx.data(value))


@contextlib.contextmanager
def _sowing_calls(model: nnx.Module) -> Iterator[None]:
    """Meanwhile the modules of a model keep what `__call__`, also an inherited one, returned.

    Not by `nnx.capture(method_outputs=...)`: it misses inherited calls, and keeps what all other
    methods returned, also within traces that are over when the model goes on.
    """
    kinds = {type(module) for _, module in nnx.iter_modules(model)}
    calls = {
        kind: next((vars(c)["__call__"] for c in kind.__mro__ if "__call__" in vars(c)), None)
        for kind in kinds
    }
    own = {kind: "__call__" in vars(kind) for kind in kinds}
    changed = []
    try:
        for kind, call in calls.items():
            if call is not None:
                kind.__call__ = _sowing(call)
                changed.append(kind)
        yield
    finally:
        for kind in changed:
            if own[kind]:
                kind.__call__ = calls[kind]
            else:
                del kind.__call__


def _sowing(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def sowing(self, *args: Any, **kwargs: Any) -> Any:
        output = call(self, *args, **kwargs)
        if _in_own_trace(self):
            self.sow(nnx.Intermediate, "__call__", output)
        return output

    return sowing


def _in_own_trace(module: nnx.Module) -> bool:
    """False in a bare `jax.lax.scan` or the like: what is kept there would outlive its trace."""
    try:
        for kept in getattr(module, "__captures__", ()):
            kept.set_value(kept.get_value())
    except flax.errors.TraceContextError:
        return False
    return hasattr(module, "__captures__")


def _by_path(variables: Mapping[tuple, Any]) -> dict[str, tuple]:
    keys: dict[str, tuple] = {}
    for key, variable in variables.items():
        path = _join(key)
        if isinstance(_value(variable), dict):
            raise UsageError(f"variable {path!r} holds a dict; give each array its own variable")
        if path in keys:
            raise UsageError(f"two variables have the path {path!r}; rename a key with a '/'")
        keys[path] = key
    return natural_sort(keys)


def _join(key: tuple) -> str:
    return "/".join(map(str, key))


def _value(variable: Any) -> Any:
    return variable.get_value() if isinstance(variable, nnx.Variable) else variable
