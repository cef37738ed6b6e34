"""Checkpoints of AutoGPTQ, AutoAWQ, gptqmodel, AutoRound and bitsandbytes, each made in its environment.

Their tensors are dequantized by the documentation of the formats, one integer after the other, and compared with the
weights that the accelerate backend computes with.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcq.catalog.hf_config import read_checkpoint_shape
from hpcq.catalog.safetensors_headers import read_headers
from hpcq.catalog.schemes import find_scheme
from hpcq.catalog.tools import quantizers
from hpcq.core import environments
from hpcq.core.digests import digest_of_model
from hpcq.core.work_records import EvaluateWork, Model, Scheme, Variant
from hpcq.plan.memory.weights import checkpoint_bytes
from tests.tiny_llama import write_base, write_calibration

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

CHECKOUT = Path(__file__).resolve().parents[3]
LAYERS = 14
AWQ_SHIFTS = (0, 4, 1, 5, 2, 6, 3, 7)
NF4 = (
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip
"""The code of NF4 (arXiv 2305.14314, appendix E)."""
PACKED = (
    "autogptq:gptq-w3a16-g64",
    "study-autogptq-w4a16",  # desc_act
    "autoawq:awq-w4a16-g64",
    "gptqmodel:gptq-w4a16-g64",
    "autoround:w4a16-g64",
)
Checkpoint = Callable[[str], Path]


def scheme_of(name: str) -> Scheme:
    """Return a scheme of the catalog."""
    found = find_scheme(name)
    assert found
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base checkpoint: a random Llama in bfloat16."""
    return write_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def checkpoint_of(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The checkpoint of a scheme, made once."""
    folder = tmp_path_factory.mktemp("tools")
    calibration = write_calibration(folder / "text.jsonl")

    def make(name: str) -> Path:
        target = folder / scheme_of(name).slug
        if not target.exists():
            environment = quantizers()[scheme_of(name).tool].environment
            if not environments.exists(environment):
                reason = f"the environment '{environment}' does not exist: run make environments-quantizers"
                pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
            program = str(CHECKOUT / "tests" / "quantizer_tools.py")
            # By its path: the environment 'legacy' has a package 'tests' of another distribution.
            code = f"import runpy, sys; runpy.run_path({program!r})['quantize'](*sys.argv[1:])"
            words = [str(base), name, str(calibration.path), str(target), "8", "64"]
            variables = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
            command = [str(environments.interpreter(environment)), "-c", code, *words]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables, cwd=folder)
            assert done.returncode == 0, done.stderr[-2000:]
        return target

    return make


def load(name: str, base: Path, folder: Path) -> Any:
    """Return the model that the accelerate backend loads."""
    from hpcq.evaluate.backends.transformers.backend import AccelerateBackend

    work = EvaluateWork(
        variant=Variant(model=Model(id="org/Tiny", path=str(base)), scheme=scheme_of(name)),
        tasks=(),
        backend="accelerate",
        dtype="float32",
        device="cpu",
        segments_path="",
        checkpoint_path=str(folder),
        options=(("prefix_sharing", False),),
    )
    backend = AccelerateBackend(work)
    backend.load()
    return backend._lm.model


def stream(words: Any, bits: int) -> np.ndarray[Any, Any]:
    """Return the integers in the columns of `words`, read as one binary number per column, the lowest bit first."""
    columns = []
    for column in words.numpy().view(np.uint32).T:
        number = sum(int(word) << (32 * position) for position, word in enumerate(column))
        columns.append([(number >> (bits * index)) & (2**bits - 1) for index in range(len(column) * 32 // bits)])
    return np.array(columns).T


def reference(tensors: dict[str, Any], layer: str, settings: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return the weight [outputs, inputs] of a layer, one input after the other."""
    scales = tensors[f"{layer}.scales"].float().numpy()
    if settings["quant_method"] == "awq":
        words, packed = tensors[f"{layer}.qweight"], tensors[f"{layer}.qzeros"]
        columns = range(scales.shape[1])
        weights, zeros = (
            np.stack([(each[:, one // 8] >> (4 * AWQ_SHIFTS[one % 8])) & 15 for one in columns], 1)
            for each in (words.numpy().view(np.uint32), packed.numpy().view(np.uint32))
        )
        groups = np.arange(weights.shape[0]) // (weights.shape[0] // scales.shape[0])
    else:
        weights = stream(tensors[f"{layer}.qweight"], settings["bits"])
        zeros = stream(tensors[f"{layer}.qzeros"].T.contiguous(), settings["bits"]).T + 1
        groups = tensors[f"{layer}.g_idx"].numpy()
    return np.array([scales[g] * (row.astype(int) - zeros[g]) for g, row in zip(groups, weights, strict=True)]).T


@pytest.mark.parametrize("name", PACKED)
def test_a_checkpoint_is_complete_and_computed_as_documented(base: Path, checkpoint_of: Checkpoint, name: str) -> None:
    """All layers have the declared format, and the weights that accelerate uses are those of the stored integers."""
    folder, scheme = checkpoint_of(name), scheme_of(name)
    metadata = json.loads((folder / "hpcq.json").read_text(encoding="utf-8"))
    assert metadata["coverage"]["quantized_linears"] == LAYERS
    assert metadata["self_check"]["reloaded"]["difference"] < 0.05
    assert sorted(path.name for path in folder.glob("*.safetensors")) == ["model.safetensors"]
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / file).read_bytes() == (base / file).read_bytes()
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    tensors, model = load_file(folder / "model.safetensors"), load(name, base, folder)
    layers = [key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight")]
    assert len(layers) == LAYERS
    for layer in layers:
        np.testing.assert_allclose(
            model.get_submodule(layer).weight.detach().numpy(),
            reference(tensors, layer, settings),
            rtol=1e-6,
            atol=1e-7,
        )
    shape = read_checkpoint_shape(base)
    assert checkpoint_bytes(shape, scheme) == sum(header.bytes for header in read_headers(folder))


def test_every_tool_gets_the_same_tokens(checkpoint_of: Checkpoint) -> None:
    """Three environments, with two versions of transformers, have the same token ids and compute the same base."""
    found = [json.loads((checkpoint_of(name) / "hpcq.json").read_text(encoding="utf-8")) for name in PACKED]
    assert len({one["calibration"]["tokens_sha256"] for one in found}) == 1
    assert {one["calibration"]["tokens"] for one in found} == {8 * 64}
    unquantized = [one["self_check"]["unquantized"] for one in found]
    assert unquantized == pytest.approx([unquantized[0]] * len(found), abs=1e-4)


def test_desc_act_orders_the_groups(checkpoint_of: Checkpoint) -> None:
    """AutoGPTQ's desc_act gives groups of inputs that do not follow each other."""
    tensors = load_file(checkpoint_of("study-autogptq-w4a16") / "model.safetensors")
    index = tensors["model.layers.0.mlp.down_proj.g_idx"]
    assert sorted(index.bincount().tolist()) == [128, 128]
    assert not torch.equal(index, index.sort().values)


@pytest.mark.parametrize("name", ["bitsandbytes:nf4", "bitsandbytes:int8"])
def test_bitsandbytes_quantizes_the_weights_of_the_base(base: Path, checkpoint_of: Checkpoint, name: str) -> None:
    """The checkpoint links to the base, and what is loaded is the base rounded as the papers describe."""
    mode = (base / "model.safetensors").stat().st_mode
    folder, weights = checkpoint_of(name), load_file(base / "model.safetensors")
    assert (folder / "model.safetensors").resolve() == base / "model.safetensors"
    assert (base / "model.safetensors").stat().st_mode == mode
    layer = "model.layers.0.mlp.down_proj"
    module, weight = load(name, base, folder).get_submodule(layer), weights[f"{layer}.weight"].float()
    if name.endswith("nf4"):
        with torch.no_grad():
            found = module(torch.eye(weight.shape[1])).T  # on a CPU the stored weight is packed in another order
        blocks = weight.reshape(-1, 64)
        largest = blocks.abs().amax(1, keepdim=True)
        code = torch.tensor(NF4)
        nearest = code[((blocks / largest)[..., None] - code).abs().argmin(-1)] * largest
        # The largest values are stored in 8 bits (double quantization).
        assert float((found - nearest.reshape(weight.shape)).norm() / nearest.norm()) < 0.01
    else:
        largest = weight.abs().amax(1, keepdim=True)
        torch.testing.assert_close(module.weight.data.float(), (weight * 127 / largest).round(), atol=1, rtol=0)


def test_the_digest_of_a_link_binds_its_target(base: Path, checkpoint_of: Checkpoint, tmp_path: Path) -> None:
    """If the weights of the base change, the digest of bitsandbytes' checkpoint is another one."""
    folder = checkpoint_of("bitsandbytes:nf4")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, symlinks=True)
    recorded = json.loads((folder / "hpcq.json").read_text(encoding="utf-8"))["digest"]
    assert digest_of_model(copy, ignored=("hpcq.json",)) == recorded
    changed = bytearray((base / "model.safetensors").read_bytes())
    changed[-1] ^= 1
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").write_bytes(changed)
    assert digest_of_model(copy, ignored=("hpcq.json",)) != recorded
