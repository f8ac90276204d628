"""Peers: short re-implementations of published methods, which learn the same stream as `wakesleep`.

All of them train the same model by the same [`Recipe`], see the same number of images, and have the bytes they keep of
the stream counted. They cover what a comparison needs, not every variant that the papers describe.
"""

from .frozen import RanPAC, RanPACInBudget, RanPACTuned, SimpleCIL, StreamingLDA
from .icarl import ICaRL
from .learner import Cumulative, Finetune, Learner, Recipe
from .rehearsal import DarkReplay, Replay
from .slca import SLCA
from .smc import SMC, SMCWithSGD
from .store import ImageStore

PEERS: dict[str, type[Learner]] = {
    "finetune": Finetune,
    "replay": Replay,
    "derpp": DarkReplay,
    "icarl": ICaRL,
    "simplecil": SimpleCIL,
    "slda": StreamingLDA,
    "ranpac": RanPAC,
    "ranpac_tuned": RanPACTuned,
    "ranpac_budget": RanPACInBudget,
    "slca": SLCA,
    "smc": SMC,
    "smc_sgd": SMCWithSGD,
    "cumulative": Cumulative,
    "joint": Finetune,
}

__all__ = ["PEERS", "ImageStore", "Learner", "Recipe"]
