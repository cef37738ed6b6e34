"""The check of saved GPTQ and AWQ checkpoints: it accepts what a scheme declares, and names what differs from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.schemes import find_scheme
from hpcq.core.errors import WorkerError
from hpcq.core.work_records import Scheme
from hpcq.quantize.linear_layers import LinearLayers
from hpcq.quantize.packed_check import check_packed, scaled_to

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from hpcq.quantize.packed_weights import pack, unpack  # noqa: E402

NAMES = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")
OUTPUTS, INPUTS, GROUP = 64, 128, 64
LAYERS = LinearLayers(quantized=dict.fromkeys(NAMES, (OUTPUTS, INPUTS)), unquantized=("lm_head",))
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def scheme_of(name: str, **changes: Any) -> Scheme:
    """Return a scheme of the catalog."""
    found = find_scheme(name)
    assert found
    return replace(found, **changes)


GPTQ, AWQ = scheme_of("autogptq:gptq-w4a16-g64"), scheme_of("autoawq:awq-w4a16-g64")


def base_weights() -> dict[str, Any]:
    """Return random weights of the layers."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(OUTPUTS, INPUTS, generator=generator) for name in NAMES}


def rounded(weight: Any, bits: int, zero: int) -> tuple[Any, Any]:
    """Return integers [inputs, outputs] and scales [groups, outputs] of a weight, rounded to nearest."""
    grouped = weight.T.reshape(INPUTS // GROUP, GROUP, OUTPUTS)
    scales = grouped.abs().amax(1) / (2 ** (bits - 1) - 1)
    integers = (grouped / scales[:, None]).round().clamp(-zero, 2**bits - 1 - zero) + zero
    return integers.reshape(INPUTS, OUTPUTS).to(torch.int64), scales


def awq_pack(integers: Any) -> Any:
    """Pack eight integers of four bits per word, in AutoAWQ's order."""
    ordered = integers.reshape(integers.shape[0], -1, 8)[:, :, list(AWQ_ORDER)]
    return pack(ordered.reshape(integers.shape[0], -1), 4, 1)


def write(folder: Path, scheme: Scheme) -> Path:
    """Write a checkpoint of the random weights."""
    bits, is_awq = int(scheme.weights.removeprefix("int")), scheme.checkpoint_format == "awq"
    zero = 2 ** (bits - 1)
    tensors: dict[str, Any] = {"model.norm.weight": torch.ones(INPUTS)}
    for name, weight in base_weights().items():
        integers, scales = rounded(weight, bits, zero)
        zeros = torch.full_like(scales, zero, dtype=torch.int64)
        tensors |= {
            f"{name}.qweight": awq_pack(integers) if is_awq else pack(integers, bits, 0),
            f"{name}.qzeros": awq_pack(zeros) if is_awq else pack(zeros - 1, bits, 1),
            f"{name}.scales": scales.half(),
        }
        if not is_awq:
            tensors[f"{name}.g_idx"] = torch.arange(INPUTS, dtype=torch.int32) // GROUP
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"bits": bits, "group_size": GROUP}
    settings |= (
        {"quant_method": "awq", "zero_point": True, "version": "gemm"}
        if is_awq
        else {"quant_method": "gptq", "sym": True, "desc_act": False}
    )
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings}), encoding="utf-8")
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the tensors of a checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packing_is_the_inverse_of_unpacking(bits: int) -> None:
    """Integers of every size survive, along both dimensions, also those that continue in the next word."""
    integers = torch.randint(0, 2**bits, (64, 96), generator=torch.Generator().manual_seed(bits))
    for dim in (0, 1):
        assert torch.equal(unpack(pack(integers, bits, dim), bits, dim).to(torch.int64), integers)


@pytest.mark.parametrize("name", ["autogptq:gptq-w3a16-g64", "autogptq:gptq-w4a16-g64", "autoawq:awq-w4a16-g64"])
def test_a_checkpoint_that_is_as_declared_is_accepted(tmp_path: Path, name: str) -> None:
    """The facts count the layers and have the errors of the weights."""
    scheme, base = scheme_of(name), base_weights()
    coverage, errors = check_packed(write(tmp_path / "checkpoint", scheme), scheme, LAYERS, base.__getitem__)
    assert coverage["quantized_modules"] == {"model.layers.*.mlp.up_proj": 2}
    assert coverage["unquantized_linears"] == 1
    assert 0 < errors["median_error"] <= errors["largest_error"] < 0.4


def drop(part: str) -> Callable[[dict[str, Any]], object]:
    """Return a change that removes tensors of the first layer."""
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(f"{NAMES[0]}.{part}")]


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "not quantized": (
        lambda tensors: (drop("")(tensors), tensors.update({f"{NAMES[0]}.weight": torch.ones(OUTPUTS, INPUTS)})),
        r"1 of 2 declared linear layers are quantized, not model.layers.\*.mlp.up_proj",
    ),
    "too much": (
        lambda tensors: tensors.update({"lm_head.qweight": torch.ones(2, 2, dtype=torch.int32)}),
        "2 of 2 declared linear layers are quantized, but also lm_head",
    ),
    "twice": (
        lambda tensors: tensors.update({f"{NAMES[0]}.weight": torch.ones(OUTPUTS, INPUTS)}),
        "also have unquantized weights",
    ),
    "no scales": (drop("scales"), f"{NAMES[0]}: scales is missing"),
    "scale of zero": (lambda tensors: tensors[f"{NAMES[0]}.scales"][0].fill_(0), "a scale is not a positive number"),
    "infinite scale": (
        lambda tensors: tensors[f"{NAMES[1]}.scales"][0].fill_(float("inf")),
        f"{NAMES[1]}: a scale is not a positive number",
    ),
    "other groups": (
        lambda tensors: tensors.update({f"{NAMES[0]}.scales": tensors[f"{NAMES[0]}.scales"].repeat(2, 1)}),
        "it has 4 groups of scales, not 2 for 128 inputs",
    ),
    "other order": (lambda tensors: tensors.update({f"{NAMES[0]}.g_idx": tensors[f"{NAMES[0]}.g_idx"].flip(0)}),
        "g_idx orders inputs by activation, which the scheme does not declare"),
    "uneven groups": (lambda tensors: tensors[f"{NAMES[0]}.g_idx"].fill_(0), "g_idx does not have groups of 64 inputs"),
    "zero points": (lambda tensors: tensors[f"{NAMES[0]}.qzeros"].fill_(0), "zero points are not symmetric"),
    "other weights": (
        lambda tensors: tensors.update({f"{NAMES[0]}.qweight": tensors[f"{NAMES[0]}.qweight"].flip(1).contiguous()}),
        f"{NAMES[0]} is not that of the base model: it differs by",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_checkpoint_that_is_not_as_declared_is_refused(tmp_path: Path, name: str) -> None:
    """The message has the layer, or the numbers of layers."""
    change, message = DAMAGED[name]
    folder = edit(write(tmp_path / "checkpoint", GPTQ), change)
    with pytest.raises(WorkerError, match=message):
        check_packed(folder, GPTQ, LAYERS, base_weights().__getitem__)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "int8"}, "declares weights 'int4', but 'autogptq:gptq-w4a16-g64' has 'int8'"),
        ({"group_size": 128}, "declares group_size '64', but 'autogptq:gptq-w4a16-g64' has '128'"),
        ({"symmetric": False}, "declares symmetric 'True', but"),
        ({"activation_order": True}, "declares activation_order 'False', but"),
    ],
)
def test_a_declaration_of_another_scheme_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """A tool that wrote other bits, groups or zero points than asked for is found before a tensor is read."""
    folder = write(tmp_path / "checkpoint", GPTQ)
    with pytest.raises(WorkerError, match=message):
        check_packed(folder, replace(GPTQ, **changes), LAYERS, base_weights().__getitem__)


def test_negative_scales_are_those_of_autoround(tmp_path: Path) -> None:
    """AutoRound (0.15) writes negative scales for the range from -8 to 7; the other tools must not."""
    scheme = scheme_of("autoround:w4a16-g64")
    folder = write(tmp_path / "checkpoint", GPTQ)

    def negate(tensors: dict[str, Any]) -> None:
        scales, words = tensors[f"{NAMES[0]}.scales"], tensors[f"{NAMES[0]}.qweight"]
        tensors[f"{NAMES[0]}.scales"] = -scales
        tensors[f"{NAMES[0]}.qweight"] = pack((16 - unpack(words, 4, 0)).clamp(0, 15), 4, 0)

    edit(folder, negate)
    check_packed(folder, scheme, LAYERS, base_weights().__getitem__)
    with pytest.raises(WorkerError, match="a scale is not a positive number"):
        check_packed(folder, GPTQ, LAYERS, base_weights().__getitem__)


def test_scaled_rows_and_columns_are_found(tmp_path: Path) -> None:
    """AWQ's scaling of the base is fitted, so that only rounding remains; other weights are refused."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator)
    target = (
        weight
        * (0.5 + torch.rand(OUTPUTS, 1, generator=generator))
        * (0.5 + torch.rand(1, INPUTS, generator=generator))
    )
    assert float((scaled_to(weight, target) - target).norm() / target.norm()) < 1e-3
    folder = write(tmp_path / "checkpoint", AWQ)
    others = {name: torch.randn(OUTPUTS, INPUTS, generator=generator) for name in NAMES}
    with pytest.raises(WorkerError, match="is not that of the base model"):
        check_packed(folder, AWQ, LAYERS, others.__getitem__)
