"""Mesh, logical-axis rules, multi-host helpers."""

from jaxvl.sharding.mesh import BATCH_AXES as BATCH_AXES
from jaxvl.sharding.mesh import MeshConfig as MeshConfig
from jaxvl.sharding.mesh import make_mesh as make_mesh
from jaxvl.sharding.rules import RULES as RULES
from jaxvl.sharding.rules import constrain as constrain
from jaxvl.sharding.rules import gathered as gathered
from jaxvl.sharding.rules import param_shardings as param_shardings
