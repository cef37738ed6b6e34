"""What is to be placed, where it was placed, and why it could not be: the words of placing.

Knows shapes, needs and kernels; places nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcq.catalog.kernels import Kernel
from hpcq.catalog.models import ModelShape
from hpcq.core.work import Scheme
from hpcq.plan.memory.gpu_memory import Demand, Need
from hpcq.plan.memory.offload import Offloaded
from hpcq.plan.units import Shape


class CannotPlace(Exception):
    """No class of the profile can hold the unit; the message has the numbers, `cure` the nearest thing that can.

    is_backend: the back end has no code for it on any class, whatever the memory.
    """

    def __init__(self, reason: str, cure: str, *, is_backend: bool = False) -> None:
        super().__init__(reason)
        self.cure = cure
        self.is_backend = is_backend


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is to be placed. model None: its sizes are not known, so one GPU is taken and nothing is checked.

    tensor: GPUs that share each matrix; stages: groups of them that share the layers. None: as many as are needed.
    offload: where weights may lie that the GPUs have no room for: none, cpu or disk.
    """

    model: ModelShape | None
    scheme: Scheme
    backend: str
    demand: Demand
    tensor: int | None = None
    stages: int | None = None
    offload: str = "none"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where, and what with. need: of an evaluation; gpu_bytes: what the fullest GPU will hold, whatever it does there.

    None: there is no GPU, or the model's sizes are not known. offloaded: weights that the GPUs have no room for.
    """

    shape: Shape
    need: Need | None = None
    kernel: Kernel | None = None
    gpu_bytes: int | None = None
    offloaded: Offloaded | None = None


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """Why a class cannot take it. usable: its share of what the fullest GPU, or the node, needs; 0: no memory helps.

    is_backend: the back end has no kernel for it there.
    """

    sentence: str
    usable: float = 0.0
    is_backend: bool = False
