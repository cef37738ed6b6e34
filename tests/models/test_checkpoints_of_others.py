"""Checkpoints that other tools quantized, evaluated with transformers with their baseline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from lm_eval.api.instance import Instance
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hpcq.catalog.checkpoint_formats import checkpoint_scheme, find_declaration
from hpcq.core.attempts import Attempt, AttemptRecord, next_attempt_number, utc_now
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.work_records import Checkpoint, EvaluateWork, MergeWork, Model, Scheme, Task, Variant
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend
from hpcq.evaluate.merge import merge
from hpcq.evaluate.requests import LOGLIKELIHOOD, Request
from hpcq.evaluate.worker import evaluate
from hpcq.report.rows import make_rows
from hpcq.store import RequestKey, digest_of_arguments, read_results
from tests.quantized_by_others import GROUP, make_checkpoint, write_gpt_oss
from tests.tiny_llama import write_base

BASE = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16", ignore=())
PAIRS = [("the river rises in", choice) for choice in (" spring", " May", " spring and falls")] + [("", "a b c")]
MakeCheckpoint = Callable[[str], Path]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base checkpoint: a random Llama in bfloat16."""
    return write_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """Make a checkpoint of each format once."""
    folder, found = tmp_path_factory.mktemp("quantized"), dict[str, Path]()

    def make(name: str) -> Path:
        if name not in found:
            found[name] = make_checkpoint(name, base, folder / name)
        return found[name]

    return make


def work_of(folder: Path, base: Path, **fields: Any) -> EvaluateWork:
    """The evaluation of a checkpoint, or of the base checkpoint itself."""
    declaration = find_declaration(folder)
    scheme = checkpoint_scheme(declaration, folder.name) if declaration else BASE
    checkpoint = Checkpoint(id=folder.name, digest="0" * 64, path=str(folder)) if declaration else None
    variant = Variant(model=Model(id="org/Tiny", path=str(base)), scheme=scheme, checkpoint=checkpoint)
    defaults = {"tasks": (), "backend": "accelerate", "dtype": "float32", "device": "cpu", "segments_path": ""}
    return EvaluateWork(variant=variant, checkpoint_path=str(folder), **{**defaults, **fields})


def loglikelihoods(work: EvaluateWork) -> list[float]:
    """The log-likelihoods of `PAIRS`, each computed alone: rounded activations differ with shared prefixes."""
    backend = AccelerateBackend(replace(work, options=(*work.options, ("prefix_sharing", False))))
    backend.load()
    requests = [
        Request(
            key=RequestKey("pairs", "1", number, 0, 0, digest_of_arguments(LOGLIKELIHOOD, pair)),
            kind=LOGLIKELIHOOD,
            arguments=pair,
            instance=Instance(request_type=LOGLIKELIHOOD, doc={}, arguments=pair, idx=0),
        )
        for number, pair in enumerate(PAIRS)
    ]
    found = dict(backend.stream([requests], ()))
    return [float(found[request].loglikelihood or 0.0) for request in requests]


def integers(words: torch.Tensor, bits: int) -> np.ndarray[Any, Any]:
    """The integers in the columns of `words`, read as one binary number per column."""
    columns = []
    for column in words.numpy().view(np.uint32).T:
        number = sum(int(word) << (32 * position) for position, word in enumerate(column))
        columns.append([(number >> (bits * index)) & (2**bits - 1) for index in range(len(column) * 32 // bits)])
    return np.array(columns).T


def gptq_reference(tensors: dict[str, torch.Tensor], layer: str, bits: int) -> torch.Tensor:
    """The weight of a GPTQ layer, one input after the other."""
    weights = integers(tensors[f"{layer}.qweight"], bits)
    zeros = integers(tensors[f"{layer}.qzeros"].T.contiguous(), bits).T + 1
    scales = tensors[f"{layer}.scales"].float().numpy()
    rows = [scales[index // GROUP] * (row - zeros[index // GROUP]) for index, row in enumerate(weights)]
    return torch.tensor(np.array(rows), dtype=torch.float32).T.contiguous()


def awq_reference(tensors: dict[str, torch.Tensor], layer: str, bits: int) -> torch.Tensor:
    """The weight of an AWQ layer, one output after the other."""
    assert bits == 4
    scales = tensors[f"{layer}.scales"].float()
    words, zeros = (tensors[f"{layer}.{part}"].to(torch.int64) & (2**32 - 1) for part in ("qweight", "qzeros"))
    rows = []
    for output in range(scales.shape[1]):
        shift = 4 * (0, 4, 1, 5, 2, 6, 3, 7)[output % 8]
        row = (words[:, output // 8] >> shift) & 15
        zero = ((zeros[:, output // 8] >> shift) & 15).repeat_interleave(GROUP)
        rows.append((row - zero) * scales[:, output].repeat_interleave(GROUP))
    return torch.stack(rows)


def write_reference(folder: Path, base: Path, target: Path) -> Path:
    """Write the base model with the weights of the packed checkpoint in `folder`, dequantized by the references."""
    tensors, method = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    bits = int(method["quantization_config"]["bits"])
    reference = awq_reference if method["quantization_config"]["quant_method"] == "awq" else gptq_reference
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    layers = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    assert len(layers) == 2 * 7
    for layer in layers:
        model.get_submodule(layer).weight.data = reference(tensors, layer, bits)
    model.save_pretrained(target)
    for path in base.glob("tokenizer*"):
        shutil.copy(path, target)
    return target


@pytest.mark.parametrize("name", ["gptq", "gptq-asymmetric", "gptq-8bit", "gptq-3bit", "awq"])
def test_packed_integers_are_dequantized_exactly(made: MakeCheckpoint, base: Path, tmp_path: Path, name: str) -> None:
    """GPTQ and AWQ checkpoints of auto-round give the log-likelihoods of their dequantized weights."""
    folder = made(name)
    reference = write_reference(folder, base, tmp_path / "reference")
    expected = loglikelihoods(replace(work_of(base, base), checkpoint_path=str(reference)))
    assert loglikelihoods(work_of(folder, base)) == pytest.approx(expected, abs=1e-5)
    assert expected != pytest.approx(loglikelihoods(work_of(base, base)), abs=1e-3)


@pytest.mark.parametrize(
    ("name", "same"), [("fp8-block", "ct-fp8-block"), ("fp8-static", "ct-fp8-static"), ("fbgemm", "ct-fp8")]
)
def test_fp8_rounds_weights_and_activations(made: MakeCheckpoint, base: Path, name: str, same: str) -> None:
    """FP8 formats give the log-likelihoods of the same numbers in compressed-tensors, with rounded activations."""
    found, expected = (loglikelihoods(work_of(made(each), base)) for each in (name, same))
    assert found == pytest.approx(expected, abs=1e-5)


def test_nf4_equals_its_dequantized_model(made: MakeCheckpoint, base: Path, tmp_path: Path) -> None:
    """A bitsandbytes checkpoint gives the log-likelihoods of its dequantized weights, within its kernels' 16 bits."""
    folder = made("nf4")
    quantized = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for name, layer in quantized.named_modules():
        if isinstance(layer, Linear4bit):
            layer.weight.quant_state.dtype = torch.float32  # as the layer computes
            weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            model.get_submodule(name).weight.data = weight.reshape(layer.out_features, layer.in_features)
    model.save_pretrained(tmp_path / "reference")
    for path in base.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "reference")
    expected = loglikelihoods(replace(work_of(base, base), checkpoint_path=str(tmp_path / "reference")))
    assert loglikelihoods(work_of(folder, base)) == pytest.approx(expected, rel=2e-3)
    assert expected != pytest.approx(loglikelihoods(work_of(base, base)), rel=2e-3)


def test_mxfp4_is_dequantized_exactly(base: Path, tmp_path: Path) -> None:
    """Experts of gpt-oss in MXFP4 give the log-likelihoods of the same numbers in bfloat16."""
    write_gpt_oss(base, tmp_path / "reference", tmp_path / "mxfp4")
    works = [work_of(tmp_path / name, base, dtype="bfloat16") for name in ("mxfp4", "reference")]
    found, expected = map(loglikelihoods, works)
    assert found == expected


def test_variants_are_reported_with_their_baseline(made: MakeCheckpoint, base: Path, tmp_path: Path) -> None:
    """Checkpoints of five tools' formats are evaluated, merged and reported with the difference from the baseline."""
    items = tmp_path / "items"
    items.mkdir()
    rows = [
        {
            "id": str(number),
            "question": f"What is {number} plus one?",
            "choices": {"text": [str(number), str(number + 1)], "label": ["A", "B"]},
            "answerKey": "B",
        }
        for number in range(4)
    ]
    for split in ("train", "test"):
        (items / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(name="arc_challenge", num_fewshot=0, data_path=str(items))
    works = []
    for folder in (base, *map(made, ("ct-fp8", "ct-w8a8", "gptq", "awq", "nf4", "fp8-block"))):
        work = work_of(folder, base, tasks=(task,))
        segments = tmp_path / "segments" / f"evaluate.{work.variant.id}"
        works.append(replace(work, segments_path=str(segments)))
        evaluate(works[-1], attempt_of(tmp_path, f"evaluate.{work.variant.id}"))
    results = tmp_path / "results.h5"
    merging = MergeWork(
        run="run", evaluations=tuple(works), segments_path=str(tmp_path / "segments"), results_path=str(results)
    )
    merge(merging, attempt_of(tmp_path, "merge.run"))
    found = {row.scheme: row for row in make_rows(read_results(results)) if row.metric == "acc"}
    assert set(found) == {
        "bf16",
        "fp8-dynamic (ct-fp8)",
        "w8a8 (ct-w8a8)",
        f"gptq-w4a16-g{GROUP} (gptq)",
        f"awq-w4a16-g{GROUP} (awq)",
        "nf4 (nf4)",
        "fp8-block (fp8-block)",
    }
    assert found["bf16"].checkpoint is None
    for scheme, row in found.items():
        assert row.n == 4
        if scheme != "bf16":
            assert row.baseline_value == found["bf16"].value
            assert row.checkpoint == scheme.partition("(")[2].removesuffix(")")
            assert (row.checkpoint_bytes or 0) < (found["bf16"].checkpoint_bytes or 0)


def attempt_of(run: Path, unit: str) -> Attempt:
    """The next attempt of a unit."""
    folder = run / "attempts"
    number = next_attempt_number(folder, unit)
    return Attempt(folder, AttemptRecord(unit=unit, attempt=number, job_id="1", node="here", pid=1, start=utc_now()))


def test_a_quantized_checkpoint_is_never_the_baseline(made: MakeCheckpoint, base: Path, tmp_path: Path) -> None:
    """A worker refuses a quantized checkpoint for an unquantized variant, and the other way round."""
    unquantized = replace(work_of(base, base), checkpoint_path=str(made("gptq")))
    with pytest.raises(UserInputError, match=r"is a quantized checkpoint \(gptq\), but 'bf16' is unquantized"):
        evaluate(unquantized, attempt_of(tmp_path, "evaluate.x"))
    quantized = replace(work_of(made("gptq"), base), checkpoint_path=str(base))
    with pytest.raises(UserInputError, match=r"is not quantized, but 'gptq-w4a16-g64 \(gptq\)' is"):
        evaluate(quantized, attempt_of(tmp_path, "evaluate.y"))
    changed = replace(quantized, checkpoint_path=str(made("gptq-asymmetric")))
    with pytest.raises(SetupError, match="its quantization_config has changed since the plan"):
        evaluate(changed, attempt_of(tmp_path, "evaluate.z"))


def edited(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a checkpoint whose tensors `change` has edited."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


LAYER = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gptq", lambda found: found.pop(f"{LAYER}.scales"), f"{LAYER}.weight: scales is missing"),
        ("gptq", lambda found: found[f"{LAYER}.qzeros"].fill_(0), "zero points are not symmetric"),
        ("gptq-asymmetric", lambda found: found[f"{LAYER}.qzeros"].fill_(-1), "a stored zero point is ambiguous"),
        ("awq", lambda found: found.update({f"{LAYER}.qzeros": found[f"{LAYER}.qzeros"][:1].clone()}), "do not match"),
        (
            "awq",
            lambda found: [found.pop(f"{LAYER}.{part}") for part in ("qweight", "qzeros", "scales")],
            "is missing in its files",
        ),
        ("awq", lambda found: found.update({f"{LAYER}.bias": torch.ones(256)}), f"the weight {LAYER}.bias"),
        (
            "fp8-block",
            lambda found: found.pop(f"{LAYER}.weight_scale_inv"),
            "13 of its 14 quantized weights have all their scales",
        ),
    ],
)
def test_damaged_weights_are_refused(
    made: MakeCheckpoint,
    base: Path,
    tmp_path: Path,
    name: str,
    change: Callable[[dict[str, torch.Tensor]], object],
    message: str,
) -> None:
    """A checkpoint whose tensors are missing, ambiguous or not used is refused with the name of one."""
    folder = edited(made(name), tmp_path / name, change)
    with pytest.raises(UserInputError, match=message):
        AccelerateBackend(work_of(folder, base)).load()


def test_biases_of_zeros_are_ignored(made: MakeCheckpoint, base: Path, tmp_path: Path) -> None:
    """AutoGPTQ adds a bias of zeros to layers without a bias, which changes nothing."""
    folder = edited(made("gptq"), tmp_path / "gptq", lambda found: found.update({f"{LAYER}.bias": torch.zeros(256)}))
    assert loglikelihoods(work_of(folder, base)) == loglikelihoods(work_of(made("gptq"), base))
