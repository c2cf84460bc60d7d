"""Mixtures of experts in place of a transformer's MLP: router -> dispatch -> experts -> combine.

    x [B, T, D] -> groups [G, S, D] -> router: who goes where, with which weight
                                    -> dispatch to [G, E, C, D] -> experts, each device its own
                                    (all-to-all) -> combine to [B, T, D]

Axes beside those of `nn`: G groups, S tokens of a group, E experts, C capacity (places of an expert
in one group), K choices of a token, M modalities.

A layer gives `MoeOutput(y, losses, health)`. Losses are plain values, not weighted: that is the
objective's part.
"""

from jaxvl.nn.moe.layer import Moe as Moe
from jaxvl.nn.moe.layer import MoeConfig as MoeConfig
from jaxvl.nn.moe.layer import MoeInputs as MoeInputs
from jaxvl.nn.moe.layer import MoeOutput as MoeOutput
from jaxvl.nn.moe.layer import SkillMoe as SkillMoe
from jaxvl.nn.moe.router import ROUTERS as ROUTERS
from jaxvl.nn.moe.router import ExpertChoice as ExpertChoice
from jaxvl.nn.moe.router import Skills as Skills
from jaxvl.nn.moe.router import Soft as Soft
from jaxvl.nn.moe.router import TokenChoice as TokenChoice
