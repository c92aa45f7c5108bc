"""The shared nouns of the house: View, flat params, Batch, Loss, keys, meshes, configs."""

from __future__ import annotations

from jaxlab.core.config import differences as differences
from jaxlab.core.config import from_dict as from_dict
from jaxlab.core.config import override as override
from jaxlab.core.config import to_dict as to_dict
from jaxlab.core.errors import FULL as FULL
from jaxlab.core.errors import UsageError as UsageError
from jaxlab.core.errors import WriteError as WriteError
from jaxlab.core.errors import nearest as nearest
from jaxlab.core.hosts import MainHostError as MainHostError
from jaxlab.core.hosts import gather as gather
from jaxlab.core.hosts import host_rows as host_rows
from jaxlab.core.hosts import is_main_host as is_main_host
from jaxlab.core.hosts import num_hosts as num_hosts
from jaxlab.core.hosts import num_row_shards as num_row_shards
from jaxlab.core.hosts import on_main_host as on_main_host
from jaxlab.core.hosts import owned_rows as owned_rows
from jaxlab.core.hosts import place_rows as place_rows
from jaxlab.core.hosts import rows_on_host as rows_on_host
from jaxlab.core.hosts import whole as whole
from jaxlab.core.keys import named as named
from jaxlab.core.loss import Batch as Batch
from jaxlab.core.loss import Loss as Loss
from jaxlab.core.loss import Metrics as Metrics
from jaxlab.core.loss import Objective as Objective
from jaxlab.core.loss import add_metrics as add_metrics
from jaxlab.core.loss import masked_mean as masked_mean
from jaxlab.core.mesh import MESH_AXES as MESH_AXES
from jaxlab.core.mesh import RULES as RULES
from jaxlab.core.mesh import MeshConfig as MeshConfig
from jaxlab.core.mesh import Rules as Rules
from jaxlab.core.mesh import batch_sharding as batch_sharding
from jaxlab.core.mesh import constrain as constrain
from jaxlab.core.mesh import make_mesh as make_mesh
from jaxlab.core.mesh import param_shardings as param_shardings
from jaxlab.core.mesh import partition as partition
from jaxlab.core.mesh import use_mesh as use_mesh
from jaxlab.core.paths import flatten as flatten
from jaxlab.core.paths import matches as matches
from jaxlab.core.paths import natural_key as natural_key
from jaxlab.core.paths import natural_sort as natural_sort
from jaxlab.core.paths import select as select
from jaxlab.core.paths import unflatten as unflatten
from jaxlab.core.view import Params as Params
from jaxlab.core.view import View as View
