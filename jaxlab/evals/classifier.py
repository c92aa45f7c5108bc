"""A classifier of images as evaluations run it: in evaluation mode, on devices, batch by batch."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxlab.core import (
    RULES,
    Params,
    Predictions,
    Rules,
    UsageError,
    View,
    batch_sharding,
    constrain,
    local_rows,
    make_mesh,
    param_shardings,
    place_rows,
    require_labels,
    use_mesh,
    whole,
)
from jaxlab.data import unit_images


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Labelled images on the host.

    Attributes:
      images: uint8 or float32 in [0, 1], [n, h, w, c].
      labels: int [n].
      index: int32 [n], the number of each image in its data set.
      domain: where they come from.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    domain: str

    @classmethod
    def of(
        cls, images: Any, labels: Any = None, index: Any = None, domain: str | None = None
    ) -> Examples:
        """Checks images and labels, or an image set: anything with `images`, `labels`, `name`.

        Raises:
          UsageError: no images, or images of another dtype, rank or range; labels that are absent
            or not one an image.
        """
        if hasattr(images, "images"):
            if labels is not None:
                raise UsageError("labels beside an image set, which has its own; leave them out")
            domain = getattr(images, "name", "") if domain is None else domain
            images, labels = images.images, images.labels
        if labels is None:
            raise UsageError("images without labels; give labels, int [n], or an image set")
        images, labels = np.asarray(images), np.asarray(labels)
        # Levels need no look at each; floats are checked, all of them.
        is_levels = images.dtype == np.uint8 and images.ndim == 4
        unit_images(images[:1] if is_levels else images)
        if not len(images):
            raise UsageError(f"no images: shape {images.shape}; give at least one")
        images = images if is_levels else images.astype(np.float32)
        index = np.arange(len(images)) if index is None else np.asarray(index)
        for noun, array in (("labels", labels), ("index", index)):
            if array.shape != images.shape[:1]:
                raise UsageError(
                    f"{noun} of shape {array.shape} for images of shape {images.shape}; expected "
                    f"({len(images)},), one an image"
                )
        return cls(images, labels, index.astype(np.int32), domain or "")

    def batches(self, size: int, rows: tuple[int, ...]) -> Iterator[dict[str, np.ndarray]]:
        """Batches of `size` rows in order, the last one padded with zeros; of each, `rows` only.

        They hold `inputs`, `targets`, `index`, and `mask`, which is false where padded.
        """
        columns = {"inputs": self.images, "targets": self.labels, "index": self.index}
        for start in range(0, len(self.images), size):
            count = min(size, len(self.images) - start)

            def of_rows(column: np.ndarray, start: int = start, count: int = count) -> np.ndarray:
                part = column[start : start + count]
                if count < size:
                    pad = np.zeros((size - count, *column.shape[1:]), column.dtype)
                    part = np.concatenate([part, pad])
                return part if len(rows) == size else part[list(rows)]

            batch = {name: of_rows(column) for name, column in columns.items()}
            yield batch | {"mask": np.array(rows) < count}


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A model in evaluation mode on the devices of a mesh.

    Attributes:
      net: the model, with shapes in place of arrays. It is one object for every call with the
        same view, so that programs which take it as a static argument are made once.
      params, state: `{path: array}`, on the devices of the mesh.
      mesh, rules: the devices, and how arrays lie on them.
    """

    net: View
    params: Params
    state: Mapping[str, Any]
    mesh: Mesh
    rules: Rules

    @classmethod
    def of(
        cls,
        view: View,
        params: Params | None = None,
        state: Mapping[str, Any] | None = None,
        mesh: Mesh | None = None,
        rules: Rules = RULES,
    ) -> Classifier:
        """A view with arrays of its own or others; by default on the devices of the parameters."""
        params = view.params if params is None else params
        state = view.state if state is None else state
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in params.values()):
            raise UsageError("the view has shapes in place of arrays; pass params= and state=")
        mesh = _mesh_of(params) if mesh is None else mesh
        return cls(
            _net(view),
            _placed(params, view.axes, mesh, rules),
            _placed(state, {}, mesh, rules),
            mesh,
            rules,
        )

    def run(self, jitted: Callable[..., Any], *args: Any) -> Any:
        """`jitted(net, rules, params, state, *args)` on the mesh; the first two are static."""
        with use_mesh(self.mesh, self.rules):
            return jitted(self.net, self.rules, self.params, self.state, *args)

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """The rows of this host as a batch of all hosts, on the devices."""
        return place_rows(dict(batch), batch_sharding(self.mesh, self.rules))

    def num_classes(self, shape: tuple[int, ...], dtype: Any) -> int:
        """How many logits a batch of images of this shape and dtype gives.

        Raises:
          UsageError: images that the model does not take; outputs that are not [b, c].
        """
        rows = batch_sharding(self.mesh, self.rules)
        images = jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
        try:
            out = self.run(predicted_logits.eval_shape, images)
        except UsageError:
            raise
        except (TypeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(
                f"the model does not take images of shape {shape[1:]} and dtype {dtype}: {reason}"
            ) from error
        return out.shape[1]

    def predict(
        self,
        examples: Examples,
        batch_size: int,
        logits: Callable[[dict[str, jax.Array]], jax.Array] | None = None,
    ) -> Predictions:
        """The logits of all examples, by default those of their images as they are.

        Args:
          examples: images and labels.
          batch_size: rows of a batch over all devices.
          logits: `batch -> logits_bc`, on the devices.

        Raises:
          UsageError: a batch size that does not divide over the devices; images that the model does
            not take; labels out of range.
        """
        rows = self.rows(batch_size)
        shape = (batch_size, *examples.images.shape[1:])
        require_labels(examples.labels, self.num_classes(shape, examples.images.dtype))
        if logits is None:
            logits = self._logits
        parts, last = [], None
        for batch in examples.batches(batch_size, rows):
            # One batch is under way while the logits of the one before it are fetched.
            last, done = logits(self.place(batch)), last
            if done is not None:
                parts.append(np.asarray(whole(done)))
        parts.append(np.asarray(whole(last)))
        return Predictions(
            np.concatenate(parts)[: len(examples.labels)],
            examples.labels.astype(np.int32),
            examples.index,
            examples.domain,
        )

    def rows(self, batch_size: int) -> tuple[int, ...]:
        """The rows of a batch that are of this host.

        Raises:
          UsageError: a batch size below 1, or one that does not divide over the devices.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size}; expected 1 or more")
        return local_rows(batch_size, self.mesh, self.rules)

    def _logits(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        return self.run(predicted_logits, batch["inputs"])


def logits_of(
    net: View, params: Params, state: Mapping[str, Any], images_bhwc: jax.Array
) -> jax.Array:
    """Float32 logits [b, c] of uint8 or unit float images; for use under `jax.jit`."""
    logits, _ = net.apply_with_state(params, state, unit_images(images_bhwc))
    if getattr(logits, "ndim", None) != 2:
        what = getattr(logits, "shape", type(logits).__name__)
        raise UsageError(f"the model returns {what}; a classifier returns logits [b, c]")
    if logits.shape[1] < 2:
        raise UsageError("the model returns one logit; a classifier has one for each of 2 or more")
    return constrain(logits.astype(jnp.float32), "batch", None)


@functools.partial(jax.jit, static_argnums=(0, 1))
def predicted_logits(
    net: View, rules: Rules, params: Params, state: Mapping[str, Any], images_bhwc: jax.Array
) -> jax.Array:
    """`logits_of` as a program. `rules` are those in force: one program for each of them."""
    return logits_of(net, params, state, images_bhwc)


def error_log_odds(logits_bc: jax.Array, labels_b: jax.Array) -> jax.Array:
    """log((1 - p_y) / p_y) of the label y, [b]: `logsumexp_{j != y} z_j - z_y`.

    The cross-entropy is softplus of it, and so rises with it: both have one gradient up to a
    positive factor a row. But where a model is sure, p_y rounds to 1 in float32 and the
    cross-entropy and its gradient to 0; these do not.

    >>> log_odds = error_log_odds(jnp.array([[200.0, 0.0]]), jnp.array([0]))
    >>> float(log_odds[0])
    -200.0
    """
    label_bc = labels_b[:, None] == jnp.arange(logits_bc.shape[1])
    others_b = jax.nn.logsumexp(jnp.where(label_bc, -jnp.inf, logits_bc), axis=1)
    return others_b - jnp.where(label_bc, logits_bc, 0).sum(axis=1)


# View in evaluation mode with shapes only, by view. None of the values holds its key alive.
_nets: weakref.WeakKeyDictionary[View, View] = weakref.WeakKeyDictionary()


def _net(view: View) -> View:
    if view not in _nets:
        params, state = jax.eval_shape(lambda *arrays: arrays, view.params, view.state)
        _nets[view] = dataclasses.replace(view.evaluating(), params=params, state=state)
    return _nets[view]


def _mesh_of(params: Params) -> Mesh:
    shardings = [leaf.sharding for leaf in params.values() if isinstance(leaf, jax.Array)]
    for sharding in shardings:
        if isinstance(sharding, NamedSharding):
            return sharding.mesh
    devices = set().union(*(sharding.device_set for sharding in shardings))
    if len(devices) > 1:
        raise UsageError(f"the parameters lie on {len(devices)} devices of no mesh; pass mesh=")
    return make_mesh(devices=list(devices) or jax.local_devices()[:1])


def _placed(
    arrays: Mapping[str, Any], axes: Mapping[str, Any], mesh: Mesh, rules: Rules
) -> dict[str, Any]:
    """The arrays on the mesh; also on one device, so that a program sees them in one way."""

    def is_there(x: Any) -> bool:
        sharding = getattr(x, "sharding", None)
        return isinstance(sharding, NamedSharding) and sharding.mesh == mesh

    moved = {path: x for path, x in arrays.items() if not is_there(x)}
    shardings, _ = param_shardings(moved, axes, mesh, rules)
    return dict(arrays) | jax.device_put(moved, shardings)
