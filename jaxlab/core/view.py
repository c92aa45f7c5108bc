"""The functional view of any NNX model: flat parameters, a pure apply, outputs by path.

Probes, masks, interpolation, training and evaluation see a model only through its `View`. The model
can be any `nnx.Module`.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.errors
import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlab.core.errors import UsageError, nearest
from jaxlab.core.masks import Masks, apply_masks, require_fitting_masks
from jaxlab.core.mesh import RULES, Rules, param_shardings
from jaxlab.core.paths import matches, natural_key, natural_sort

Params = dict[str, jax.Array]
"""`{'blocks/0/attention/query/kernel': array}` in natural order. JAX returns plain dicts in
alphabetical order: `natural_sort` restores the natural one."""


# Arrays neither compare nor hash, so a view equals only itself. What has to compare, the structure,
# is the static part of the pytree.
@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A model as pure functions of its flat parameters.

    A view is a pytree of its `params`, `state` and `masks`, so it passes through `jax.jit`,
    `jax.vmap`, `jax.grad`, `jax.device_put` and `jax.tree.map`. Everything else is static and equal
    for all builds of one config, so that trainings of one config share compiled programs.

    Attributes:
      params: `{path: array}`, the `nnx.Param` variables in natural order. A module that is used
        twice appears once, under its first path.
      state: `{path: array}`, every other variable (running statistics, stored random counters).
      masks: `{path: bool array}`, see `masked`; mostly empty.

    Example, on a model that this library has never seen:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> view = View.of(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    >>> sorted(view.params)
    ['bias', 'kernel']
    >>> zeros = jax.tree.map(jnp.zeros_like, view)
    >>> jax.jit(lambda view, x: view(x))(zeros, jnp.ones((1, 2))).tolist()
    [[0.0, 0.0, 0.0]]
    """

    params: Params
    state: dict[str, Any]
    _structure: _Structure = dataclasses.field(repr=False)
    masks: Masks = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: nnx.Module) -> View:
        """The view of a model; the arrays are shared with it, not copied.

        Raises:
          UsageError: something that is not an NNX module; a variable that holds a dict; two
            variables with one path (keys of an `nnx.Dict` may contain '/').
        """
        if not isinstance(model, nnx.Module):
            raise UsageError(f"a view takes an nnx.Module, got {_named(model)}")
        _claim_traced_arrays(model)
        graph, *states = nnx.split(model, nnx.Param, ...)
        flat, rest = (dict(nnx.to_flat_state(each)) for each in states)
        keys, state_keys = _by_path(flat), _by_path(rest)
        metadata = {path: flat[key].get_metadata() for path, key in keys.items()}
        axes = {path: of.get("axes") for path, of in metadata.items()}
        padding = {path: of["padding"] for path, of in metadata.items() if of.get("padding")}
        return cls(
            params={path: flat[key].get_value() for path, key in keys.items()},
            state={path: _value(rest[key]) for path, key in state_keys.items()},
            _structure=_shared(_Structure(graph, keys, state_keys, axes, padding)),
        )

    @classmethod
    def abstract(cls, build: Callable[[], nnx.Module]) -> View:
        """The view of `build()` with shapes in place of arrays; nothing is allocated.

        To call a model that reads its state (running statistics, dropout, a constant array), give
        it a real or traced one: `at(params, state)` or `apply_with_state`.
        """
        views = []

        # Not by nnx.eval_shape, which loses the plain arrays among a model's attributes.
        def arrays() -> tuple[Params, dict[str, Any]]:
            views.append(cls.of(build()))
            return views[0].params, views[0].state

        params, state = map(natural_sort, jax.eval_shape(arrays))
        return dataclasses.replace(views[0], params=params, state=state)

    @property
    def axes(self) -> Mapping[str, tuple[str | None, ...] | None]:
        """`{path: logical axis names or None}`, from the `axes=` metadata of each parameter."""
        return self._structure.axes

    @property
    def padding(self) -> Mapping[str, int]:
        """`{path: n}`: the n last rows of a parameter do not count, by its `padding=` metadata."""
        return self._structure.padding

    def model(
        self, params: Params | None = None, state: Mapping[str, Any] | None = None
    ) -> nnx.Module:
        """Rebuilds the NNX model, by default with the view's own arrays.

        Raises:
          UsageError: a parameter or state that is missing, or that the model does not have.
        """
        params = self.params if params is None else params
        _check(params, self._structure.param_keys, "parameter")
        return self._merged(apply_masks(params, self.masks) if self.masks else params, state)

    def _merged(self, params: Params, state: Mapping[str, Any] | None = None) -> nnx.Module:
        state = self.state if state is None else state
        structure = self._structure
        _check(state, structure.state_keys, "state")
        return nnx.merge(
            structure.graph,
            nnx.from_flat_state([(structure.param_keys[path], params[path]) for path in params]),
            nnx.from_flat_state([(structure.state_keys[path], state[path]) for path in state]),
        )

    def apply(self, params: Params, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        """What the model returns with these parameters. Pure: changes of state are dropped."""
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
        return output, {path: after[path] for path in self._structure.state_keys}

    def at(self, params: Params, state: Mapping[str, Any] | None = None) -> View:
        """The same view with other parameters, and other state where it is given.

        Raises:
          UsageError: a parameter or state that is missing, or that the model does not have.
        """
        _check(params, self._structure.param_keys, "parameter")
        params = apply_masks(params, self.masks) if self.masks else params
        if state is None:
            return dataclasses.replace(self, params=natural_sort(params))
        _check(state, self._structure.state_keys, "state")
        return dataclasses.replace(self, params=natural_sort(params), state=natural_sort(state))

    def on(self, mesh: Mesh, rules: Rules = RULES) -> View:
        """The same view with its arrays on the devices of a mesh.

        Parameters and masks are sharded by their logical axes, the state is replicated. Arrays that
        are on the mesh already keep their sharding.

        Args:
          mesh: the devices.
          rules: logical axis to mesh axes.
        """

        def moved(arrays: Mapping[str, Any]) -> dict[str, Any]:
            away = {path: x for path, x in arrays.items() if not _lies_on(x, mesh)}
            shardings, _ = param_shardings(away, self.axes, mesh, rules)
            return dict(arrays) | jax.device_put(away, shardings)

        away = {path: x for path, x in self.state.items() if not _lies_on(x, mesh)}
        state = self.state | jax.device_put(away, NamedSharding(mesh, PartitionSpec()))
        params, masks = moved(self.params), moved(self.masks)
        return dataclasses.replace(self, params=params, state=state, masks=masks)

    def masked(self, masks: Mapping[str, jax.Array]) -> View:
        """The same view with some weights masked out: zero in `params` and in every call.

        They stay zero whatever parameters the view is later given, so gradients and curvature with
        respect to them are zero. Masking a masked view joins the masks.

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

        Dropout is active, and batch normalisation uses the statistics of its batch. The training
        step switches to this mode by itself.
        """
        return self._in_mode(train=True)

    def evaluating(self) -> View:
        """The same view with the model in evaluation mode, as by `nnx.Module.eval()`.

        Dropout is off, and batch normalisation uses its running statistics, so that the rows of a
        batch do not affect each other. Every evaluation switches to this mode by itself.
        """
        return self._in_mode(train=False)

    def _in_mode(self, *, train: bool) -> View:
        modes = self._structure.modes  # merging and splitting a model takes milliseconds
        if train not in modes:
            model = self._merged(self.params)
            (model.train if train else model.eval)()
            graph, *_ = nnx.split(model, nnx.Param, ...)
            modes[train] = _shared(self._structure.with_graph(graph))
        return dataclasses.replace(self, _structure=modes[train])

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

        It sees calls in the model's own trace and through NNX's transforms (`nnx.remat`,
        `nnx.scan`), but not those inside a bare `jax.lax.scan` or `jax.checkpoint`.

        Args:
          inputs: the model's argument, or a tuple of its arguments.
          paths: patterns over module paths such as `'blocks/*/mlp'`; the model itself is `''`.
          params: parameters to use in place of the view's own.
          **kwargs: the model's keyword arguments.

        Returns:
          `{module path: what its __call__ returned}`; a module called more than once gives a tuple.

        Raises:
          UsageError: a pattern that matches no module that is called.
        """
        args = inputs if isinstance(inputs, tuple) else (inputs,)
        model = self.model(self.params if params is None else params)
        _record_calls(model)
        _, calls = nnx.capture(model, nnx.Intermediate)(*args, **kwargs)
        outputs = {
            _join(key[:-1]): value.get_value()
            for key, value in nnx.to_flat_state(calls)
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
        """The number of scalars in `params`, without `padding`."""
        padding = sum(
            n * self.params[path].size // self.params[path].shape[0]
            for path, n in self.padding.items()
        )
        return sum(p.size for p in jax.tree.leaves(self.params)) - padding


def as_view(model: View | nnx.Module) -> View:
    """The view of a model; a view is returned as it is.

    Functions that take any model call this once, at the door.

    Raises:
      UsageError: neither a view nor an NNX module.
    """
    if isinstance(model, View):
        return model
    if not isinstance(model, nnx.Module):
        raise UsageError(f"expected an nnx.Module or a View of one, got {_named(model)}")
    return View.of(model)


class _Structure:
    """Everything of a view except its arrays.

    NNX describes a model without its arrays in a graph, which is equal for all builds of one config
    and fixes the rest. Its hash takes up to milliseconds and is computed once. A graph that cannot
    be hashed, because a static attribute of the model cannot, equals only itself.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        param_keys: dict[str, tuple],
        state_keys: dict[str, tuple],
        axes: dict[str, tuple[str | None, ...] | None],
        padding: dict[str, int],
    ):
        self.graph, self.axes, self.padding = graph, axes, padding
        self.param_keys, self.state_keys = param_keys, state_keys
        self.modes: dict[bool, _Structure] = {}  # by whether it trains
        try:
            self._hash, self.hashes = hash(graph), True
        except TypeError:
            self._hash, self.hashes = id(self), False

    def with_graph(self, graph: nnx.GraphDef) -> _Structure:
        return _Structure(graph, self.param_keys, self.state_keys, self.axes, self.padding)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, _Structure) or not (self.hashes and other.hashes):
            return False
        return self._hash == other._hash and self.graph == other.graph


# By hash. Views with equal structures share one of them, and compare in no time.
_structures: weakref.WeakValueDictionary[int, _Structure] = weakref.WeakValueDictionary()


def _shared(structure: _Structure) -> _Structure:
    known = _structures.setdefault(hash(structure), structure) if structure.hashes else structure
    return known if known == structure else structure


def _flatten(view: View) -> tuple[list[tuple[Any, Any]], _Structure]:
    fields = ("params", "state", "masks")
    children = [(jax.tree_util.GetAttrKey(name), getattr(view, name)) for name in fields]
    return children, view._structure


def _unflatten(structure: _Structure, children: Iterable[Any]) -> View:
    params, state, masks = children
    # JAX sorts the keys of a dict, and now and then puts other things than dicts here.
    params, state = (
        {path: arrays[path] for path in keys}
        if isinstance(arrays, dict) and arrays.keys() == keys.keys()
        else arrays
        for arrays, keys in ((params, structure.param_keys), (state, structure.state_keys))
    )
    return View(params, state, structure, masks)


jax.tree_util.register_pytree_with_keys(View, _flatten, _unflatten)


def _lies_on(x: Any, mesh: Mesh) -> bool:
    sharding = getattr(x, "sharding", None)
    return isinstance(sharding, NamedSharding) and sharding.mesh == mesh


def _named(thing: Any) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__


def _check(given: Mapping[str, Any], known: Mapping[str, Any], noun: str) -> None:
    if given.keys() == known.keys():
        return
    for path in sorted(given.keys() - known.keys()):
        raise UsageError(f"the model has no {noun} {path!r}{nearest(path, known)}")
    missing = sorted(known.keys() - given.keys(), key=natural_key)
    listed = ", ".join(missing[:5])
    raise UsageError(f"{noun} of the model missing: {listed} ({len(missing)} in all)")


def _claim_traced_arrays(model: nnx.Module) -> None:
    # A plain array as an attribute is data to NNX, but an array made while tracing is taken for
    # static (`is_data` goes by the exact type): the split would hide it, and keep the tracer.
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Pytree):
            for name, value in list(vars(node).items()):
                if isinstance(value, jax.core.Tracer):
                    setattr(node, name, nnx.data(value))


def _record_calls(model: nnx.Module) -> None:
    """Makes every module of a model sow what its `__call__`, own or inherited, returns.

    The modules are moved to subclasses, so the model must be a private copy; its classes stay as
    they are. (`nnx.capture(method_outputs=...)` patches the classes, misses inherited calls, and
    records all other methods, even in traces that have ended.)
    """
    for _, module in list(nnx.iter_modules(model)):
        kind = type(module)
        if callable(module) and "_records_calls" not in vars(kind):
            object.__setattr__(module, "__class__", _recording(kind))


@functools.cache
def _recording(kind: Any) -> Any:
    """A subclass of a model's class that sows the output of each call."""

    @functools.wraps(kind.__call__)
    def recorded(self: nnx.Module, *args: Any, **kwargs: Any) -> Any:
        output = kind.__call__(self, *args, **kwargs)
        if _in_own_trace(self):
            self.sow(nnx.Intermediate, "__call__", output)
        return output

    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    body = {"__call__": recorded, "_records_calls": True} | names
    metaclass: Any = type(kind)
    default: Any = nnx.Pytree.__init_subclass__
    make = functools.partial(metaclass, kind.__name__, pytree=kind._pytree__is_pytree)
    if kind.__init_subclass__.__func__ is default.__func__:
        return make((kind,), body)
    # The model's own `__init_subclass__` may keep a list of classes or need arguments. So the class
    # is made as a child of nnx.Module, moved, and stripped of what NNX knows better of `kind`.
    recording = make((nnx.Module,), body)
    try:
        recording.__bases__ = (kind,)
    except TypeError:  # Python lays out a class that begins with a plain mixin otherwise
        return make((kind,), body)
    for name in [name for name in vars(recording) if name.startswith("_pytree__")]:
        delattr(recording, name)
    return recording


def _in_own_trace(module: nnx.Module) -> bool:
    """False in a bare `jax.lax.scan` or the like: a value sown there would outlive its trace."""
    try:
        for captured in getattr(module, "__captures__", ()):
            captured.set_value(captured.get_value())
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
