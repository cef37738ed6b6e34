"""Quantized mixtures of experts compute exactly the numbers in their files, in the type that was asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpcq.core.work_records import Calibration, EvaluateWork, Model, Variant
from tests.dequantized import round_inputs, write_dequantized
from tests.families import write_family
from tests.models.test_checkpoints_of_others import PAIRS, loglikelihoods
from tests.models.test_checkpoints_of_others import work_of as work_of_others
from tests.quantize_matrix import named_scheme, run_pair, tokenizer_folder
from tests.staged import staged_model
from tests.tiny_llama import write_calibration

TOLERANCE = 1e-4
"""Of a log-likelihood in float32, in nats. Measured: 4e-6. Experts in bfloat16 gave 0.004 to 0.05, and one scale for
all tokens of a shared expert's input 0.2."""
GROUP = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of models and checkpoints."""
    staged_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def calibration(folder: Path) -> Calibration:
    """A small calibration set."""
    return write_calibration(folder / "text.jsonl")


def work_of(folder: Path, family: str, scheme: str) -> EvaluateWork:
    """The evaluation of a family's quantized checkpoint in float32."""
    model = Model(id=f"tests/{family}", path=str(folder / "models" / family))
    return EvaluateWork(
        variant=Variant(model=model, scheme=named_scheme(scheme)),
        tasks=(),
        backend="accelerate",
        dtype="float32",
        checkpoint_path=str(folder / "checkpoints" / family / scheme),
        segments_path="",
        device="cpu",
    )


def reference(model: torch.nn.Module, folder: Path) -> list[float]:
    """The log-likelihoods of `PAIRS` by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for context, choice in PAIRS:
        before = tokenizer(context)["input_ids"] or [tokenizer.bos_token_id]
        tokens = torch.tensor([before + tokenizer(choice)["input_ids"]])
        with torch.no_grad():
            rows = model(tokens).logits[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
        found.append(float(rows[len(before) - 1 :].sum()))
    return found


@pytest.mark.parametrize(
    ("family", "scheme"),
    [
        ("mixtral", "fp8-dynamic"),
        ("mixtral", "gptq-w4a16-g32"),
        ("qwen3_moe", "gptq-w8a16"),
        ("ernie4_5_moe", "fp8-dynamic"),
    ],
)
def test_quantized_experts_equal_a_plain_model_with_their_numbers(
    family: str, scheme: str, folder: Path, calibration: Calibration, tmp_path: Path
) -> None:
    """In float32, neither experts nor routers are in the 16 bits of the files, and each token has its own scale.

    Observed: Mixtral failed with "expected m1 and m2 to have the same dtype"; the others were computed in bfloat16.
    """
    assert run_pair(family, scheme, folder, calibration).facts
    work = work_of(folder, family, scheme)
    plain = write_dequantized(Path(work.checkpoint_path), tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    assert bool(round_inputs(model, Path(work.checkpoint_path))) == (scheme == "fp8-dynamic")
    found, expected = loglikelihoods(work), reference(model, plain)
    assert found == pytest.approx(expected, abs=TOLERANCE)


def test_renamed_tensors_have_the_asked_type_in_formats_of_others(folder: Path, tmp_path: Path) -> None:
    """The routers of Mixtral, which transformers renames, are in float32 if a GPTQ checkpoint has them in bfloat16."""
    base = folder / "models" / "mixtral"
    if not base.is_dir():
        write_family("mixtral", base, tokenizer_folder())
    for name in ("gptq", "plain"):
        shutil.copytree(base, tmp_path / name)
    packed, plain = {}, {}
    for name, tensor in load_file(base / "model.safetensors").items():
        packed[name] = plain[name] = tensor
        if ".experts." in name or "_proj." in name:
            layer = name.removesuffix(".weight")
            del packed[name]
            plain[name], parts = gptq_parts(tensor)
            packed |= {f"{layer}.{part}": found for part, found in parts.items()}
    settings = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "gptq" / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    for name, tensors in (("gptq", packed), ("plain", plain)):
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()
    found = loglikelihoods(work_of_others(tmp_path / "gptq", base))

    assert found == pytest.approx(reference(model, base), abs=TOLERANCE)


def gptq_parts(weight: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The weight rounded to four bits, in float32, and the tensors in which AutoGPTQ would store it."""
    groups = weight.float().T.unflatten(0, (-1, GROUP))  # [groups, GROUP, outputs]
    scales = (groups.abs().amax(1) / 7).half()
    steps = (groups / scales.float()[:, None]).round().to(torch.int32)
    rounded = (steps * scales.float()[:, None]).flatten(0, 1).T.contiguous()
    words = (steps + 8).flatten(0, 1).unflatten(0, (-1, 8))
    places = torch.arange(0, 32, 4, dtype=torch.int32)
    zeros = torch.full((scales.shape[0], scales.shape[1] // 8), 0x77777777, dtype=torch.int32)
    stored = {"qweight": (words << places[:, None]).sum(1).to(torch.int32), "qzeros": zeros, "scales": scales}
    return rounded, stored
