"""GPUs of this machine that a local run may use, and the environment variables that give each unit its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcq.core.frozen import dataclass

_CUDA, _HIP, _ROCR = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"
_PRECEDENCE = (_HIP, _CUDA, _ROCR)
"""HIP reads its own variable before CUDA's; both select from the devices that ROCR's leaves."""

_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
"""NVIDIA's driver has a folder here for each GPU."""

_DEVICE = re.compile(r"\d+|(?:GPU|MIG)-\S+")


@dataclass(frozen=True, kw_only=True)
class VisibleGpus:
    """GPUs that units may use.

    Attributes:
        names: Their names in the notation of `variable`: indices, GPU UUIDs or MIG UUIDs.
        variable: Environment variable that selects GPUs.
    """

    names: tuple[str, ...] = ()
    variable: str = _CUDA

    def absent(self, installed: int | None) -> list[str]:
        """Return the indices of GPUs that this machine does not have. Only CUDA's variable counts its physical GPUs.

        Args:
            installed: Number of its GPUs; None: not known.
        """
        if installed is None or self.variable != _CUDA:
            return []
        return [name for name in self.names if name.isdecimal() and int(name) >= installed]

    def variables(self, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Return the environment variables of a unit that uses only the GPUs `names`; none if it is empty."""
        chosen = (self.variable, ",".join(names))
        if self.variable == _HIP:
            return (chosen, (_CUDA, chosen[1]))
        # ROCR renumbers the devices that it leaves.
        return (chosen, (_CUDA, ",".join(map(str, range(len(names)))))) if self.variable == _ROCR else (chosen,)


def installed_gpus(folder: Path = _NVIDIA_GPUS) -> int | None:
    """Return the number of NVIDIA GPUs of this machine; None: there is no list of them."""
    try:
        return len(list(folder.iterdir()))
    except OSError:
        return None


def visible_gpus(variables: Mapping[str, str], count: int) -> VisibleGpus:
    """Return up to `count` GPUs: those that these environment variables select, or the first of the machine.

    As in CUDA, an empty value selects none, and names after an invalid one (-1, NoDevFiles) are ignored.
    """
    variable = next((name for name in _PRECEDENCE if name in variables), None)
    if variable is None:
        return VisibleGpus(names=tuple(map(str, range(count))))
    names: list[str] = []
    for name in map(str.strip, variables[variable].split(",")):
        if not _DEVICE.fullmatch(name):
            break
        if name not in names:
            names.append(name)
    return VisibleGpus(names=tuple(names[:count]), variable=variable)
