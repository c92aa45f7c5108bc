"""A model as evaluations run it: in evaluation mode, on the devices of a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from jaxlab.core import (
    Rules,
    UsageError,
    View,
    as_view,
    batch_sharding,
    local_rows,
    mesh_of,
    place_rows,
    rules_in_force,
    use_mesh,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Placed:
    """A view in evaluation mode with its arrays on the devices of a mesh.

    Attributes:
      view: the model.
      mesh, rules: the devices, and how arrays are sharded over them.
    """

    view: View
    mesh: Mesh
    rules: Rules

    @classmethod
    def of(cls, model: View | nnx.Module, mesh: Mesh | None = None) -> Placed:
        """Places a model, by default on the devices of its parameters, by the rules in force.

        Raises:
          UsageError: not a model, or a view without arrays.
        """
        view = as_view(model)
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(view)):
            raise UsageError(
                "the view has shapes in place of arrays; give it arrays with view.at(params, state)"
            )
        mesh = mesh_of(view.params.values()) if mesh is None else mesh
        rules = rules_in_force()
        return cls(view.evaluating().on(mesh, rules), mesh, rules)

    def run(self, jitted: Callable[..., Any], *args: Any) -> Any:
        """`jitted(rules, view, *args)` on the mesh.

        `rules` must be a static argument: tracing reads those in force, so that each table needs a
        program of its own.
        """
        with use_mesh(self.mesh, self.rules):
            return jitted(self.rules, self.view, *args)

    def place(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The rows of this process as a batch of all processes, on the devices."""
        return place_rows(dict(batch), batch_sharding(self.mesh, self.rules))

    def rows(self, batch_size: int) -> tuple[int, ...]:
        """The rows of a batch that belong to this process.

        Raises:
          UsageError: a batch size below 1, or one that does not divide over the devices.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size}; expected 1 or more")
        return local_rows(batch_size, self.mesh, self.rules)
