"""Contrastive losses that never build the B x B matrix. Import from here or from `api`."""

from jaxvl.kernels.contrastive.api import contrastive_logsumexp as contrastive_logsumexp
from jaxvl.kernels.contrastive.api import contrastive_loss as contrastive_loss
from jaxvl.kernels.contrastive.api import plan as plan
from jaxvl.kernels.contrastive.chunked import Chunked as Chunked
from jaxvl.kernels.contrastive.dispatch import Plan as Plan
from jaxvl.kernels.contrastive.drawing import draw_negatives as draw_negatives
from jaxvl.kernels.contrastive.generic import Reduced as Reduced
from jaxvl.kernels.contrastive.generic import streamed_scores as streamed_scores
from jaxvl.kernels.contrastive.masks import PairMask as PairMask
from jaxvl.kernels.contrastive.masks import Unpaired as Unpaired
from jaxvl.kernels.contrastive.pallas_hopper import PallasHopper as PallasHopper
from jaxvl.kernels.contrastive.pallas_tpu import PallasTpu as PallasTpu
from jaxvl.kernels.contrastive.pallas_triton import PallasTriton as PallasTriton
from jaxvl.kernels.contrastive.targets import Diagonal as Diagonal
from jaxvl.kernels.contrastive.targets import KPerRow as KPerRow
from jaxvl.kernels.contrastive.targets import Mixup as Mixup
from jaxvl.kernels.contrastive.targets import SameId as SameId
from jaxvl.kernels.contrastive.targets import SoftTargets as SoftTargets
from jaxvl.kernels.contrastive.targets import Targets as Targets
from jaxvl.kernels.contrastive.weighted import Weighted as Weighted
