"""Layers in the files of a checkpoint, computed by the definition of their format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.errors import WorkerError
from hpcq.quantize.stored_formats import E2M1, dequantize, layout_of
from hpcq.quantize.stored_layers import check_stored_layers
from hpcq.quantize.weight_check import Projection, projected
from tests.unit.quantize.conftest import SCHEMES

torch = pytest.importorskip("torch")

CheckpointOf = Callable[[str], Path]
Damage = Callable[[MutableMapping[str, Any]], None]
LAYER = "model.layers.1.mlp.down_proj"
OUTPUTS, INPUTS = 128, 256


def stored(folder: Path) -> dict[str, Any]:
    """All tensors of a checkpoint."""
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def expected(folder: Path, name: str) -> dict[str, Projection]:
    """Projections of the layers of a checkpoint, as of the model in memory."""
    tensors, found = stored(folder), {}
    for key in [key for key in tensors if key.endswith(".weight_scale")]:
        layer = key.removesuffix(".weight_scale")
        parts = {part.rpartition(".")[2]: one for part, one in tensors.items() if part.startswith(f"{layer}.")}
        outputs, inputs = {"q": (128, 128), "o": (128, 128), "d": (128, 256)}.get(
            layer.rpartition(".")[2][0], (64, 128) if "attn" in layer else (256, 128)
        )
        product = projected(dequantize(SCHEMES[name], parts, outputs, inputs))
        found[f"{layer}.weight"] = Projection(product=product, explained=0.1, columns=inputs)
    return found


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "mxfp8", "fp8-block", "w4a8-fp8", "awq-w4a16-g64", "fp8"])
def test_all_layers_are_compared_by_the_definition_of_their_format(name: str, checkpoint_of: CheckpointOf) -> None:
    """The stored numbers of all 14 layers are those of the quantized model in memory, to the last bit of its scales."""
    facts = json.loads((checkpoint_of(name) / "hpcq.json").read_text(encoding="utf-8"))
    assert facts["self_check"]["reloaded"]["by_definition"] == {"layers": 14, "largest_difference": 0.0}


def test_numbers_of_four_bits_are_those_of_the_specification() -> None:
    """E2M1 has 1 bit after the binary point and an exponent bias of 1: 0, 0.5 (subnormal), 1, 1.5, 2, 3, 4, 6."""
    values = [(mantissa / 2 if not exponent else (1 + mantissa / 2) * 2 ** (exponent - 1))
              for exponent in range(4) for mantissa in range(2)]  # fmt: skip
    assert list(E2M1) == values


def test_nvfp4_is_number_times_scale_divided_by_the_global_scale() -> None:
    """Two numbers per byte, the first in the lower half; 16 inputs share a scale in E4M3."""
    scheme = SCHEMES["nvfp4-w4a16"]
    packed = torch.tensor([[0x72] + [0] * 7 + [0x0F] + [0] * 7], dtype=torch.uint8)  # 1, 6 … and -6 …
    scale = torch.tensor([[2.0, 0.5]]).to(torch.float8_e4m3fn)
    tensors = {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": torch.tensor([4.0])}
    weights = dequantize(scheme, tensors, 1, 32)
    assert (weights[0, 0], weights[0, 1], weights[0, 16]) == (1 * 2 / 4, 6 * 2 / 4, -6 * 0.5 / 4)
    assert int((weights != 0).sum()) == 3


def test_mx_scales_are_powers_of_two_with_a_bias_of_127() -> None:
    """The byte 127 is a scale of 1, 130 of 8."""
    tensors = {
        "weight": torch.ones(1, 64).to(torch.float8_e4m3fn),
        "weight_scale": torch.tensor([[127, 130]], dtype=torch.uint8),
    }
    assert dequantize(SCHEMES["mxfp8"], tensors, 1, 64)[0].tolist() == [1.0] * 32 + [8.0] * 32


def _swap_halves(tensors: MutableMapping[str, Any]) -> None:
    packed = tensors[f"{LAYER}.weight_packed"]
    tensors[f"{LAYER}.weight_packed"] = (packed >> 4) | (packed << 4)


def _change_global_scale(tensors: MutableMapping[str, Any]) -> None:
    tensors[f"{LAYER}.weight_global_scale"] *= 1.1


def _remove_input_scale(tensors: MutableMapping[str, Any]) -> None:
    del tensors[f"{LAYER}.input_global_scale"]


def _unquantize(tensors: MutableMapping[str, Any]) -> None:
    for part in layout_of(SCHEMES["nvfp4"], OUTPUTS, INPUTS):
        del tensors[f"{LAYER}.{part}"]
    tensors[f"{LAYER}.weight"] = torch.zeros(OUTPUTS, INPUTS)


def _nan_scale(tensors: MutableMapping[str, Any]) -> None:
    tensors[f"{LAYER}.input_global_scale"][0] = torch.nan


def _other_type(tensors: MutableMapping[str, Any]) -> None:
    tensors[f"{LAYER}.weight_global_scale"] = tensors[f"{LAYER}.weight_global_scale"].to(torch.bfloat16)


def _regroup(tensors: MutableMapping[str, Any]) -> None:
    tensors[f"{LAYER}.weight_scale"] = tensors[f"{LAYER}.weight_scale"][:, ::2].contiguous()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_swap_halves, r"by the definition of nvfp4, model\.layers\.1\.mlp\.down_proj differs by"),
        (_change_global_scale, r"by the definition of nvfp4, model\.layers\.1\.mlp\.down_proj differs by 0\.091"),
        (_remove_input_scale, r"down_proj\.input_global_scale is missing"),
        (_unquantize, "has 13 quantized layers, not 14"),
        (_nan_scale, "input_global_scale is not a positive finite number"),
        (_other_type, r"weight_global_scale is BF16 \[1\], not F32 \[1\]"),
        (_regroup, r"weight_scale is F8_E4M3 \[128, 8\], not F8_E4M3 \[128, 16\]"),
    ],
)
def test_a_layer_that_is_stored_otherwise_is_found(
    damage: Damage, message: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    """Another packing, type, granularity, number of layers, or scale: no checkpoint is committed."""
    from safetensors.torch import save_file

    right, folder = checkpoint_of("nvfp4"), tmp_path / "damaged"
    shutil.copytree(right, folder)
    tensors = stored(right)
    damage(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    check_stored_layers(right, SCHEMES["nvfp4"], expected(right, "nvfp4"))
    with pytest.raises(WorkerError, match=message):
        check_stored_layers(folder, SCHEMES["nvfp4"], expected(right, "nvfp4"))


def test_the_size_of_groups_is_part_of_the_format(checkpoint_of: CheckpointOf) -> None:
    """A checkpoint with groups of 64 is not one with groups of 32."""
    folder, scheme = checkpoint_of("gptq-w4a16-g64"), SCHEMES["gptq-w4a16-g64"]
    with pytest.raises(WorkerError, match=r"is not in the format of .*weight_scale is BF16 \[\d+, \d\], not"):
        check_stored_layers(folder, replace(scheme, group_size=32), expected(folder, "gptq-w4a16-g64"))
