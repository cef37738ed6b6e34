"""The quickstart's quantized checkpoints, created from the real model with a small calibration set."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.schemes import find_scheme
from hpcq.core.attempts import Attempt, AttemptRecord, utc_now
from hpcq.core.files import digest_of_file
from hpcq.core.work import Calibration, Model, QuantizeWork, Variant
from hpcq.quantize.worker import quantize
from tests.staged import staged_calibration, staged_model

torch = pytest.importorskip("torch")

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CALIBRATION = "boolq-passages"
TEXT = Path(__file__).resolve().parents[2] / "LICENSE"
EIGHT_BITS = ("fp8-dynamic", "smoothquant-w8a8")

# Quantizes in a separate process; the arguments are the scheme, the base, the calibration text and the checkpoint.
PROGRAM = (
    "import sys; from pathlib import Path; sys.path.insert(0, {here!r}); import {name} as t; t.make(*sys.argv[1:])"
)


def make(scheme_name: str, base: str, text: str, checkpoint: str) -> None:
    """Quantize `base` with eight sequences of 128 tokens of `text`."""
    scheme = find_scheme(scheme_name)
    if scheme is None:
        raise LookupError(scheme_name)
    calibration = Calibration(digest=digest_of_file(Path(text)), samples=8, sequence_length=128, path=text)
    variant = Variant(
        model=Model(id=MODEL, path=base),
        scheme=scheme,
        calibration=calibration if scheme.needs_calibration else None,
    )
    record = AttemptRecord(unit=f"quantize.{variant.id}", attempt=1, job_id="1", node="here", pid=1, start=utc_now())
    work = QuantizeWork(variant=variant, checkpoint_path=checkpoint, device="cpu")
    quantize(work, Attempt(Path(checkpoint).parent / "attempts", record))


@pytest.fixture(scope="module")
def base() -> Path:
    """The real base checkpoint."""
    return staged_model(MODEL)


@pytest.fixture(scope="module")
def text() -> Path:
    """The real calibration text."""
    return staged_calibration(CALIBRATION)


@pytest.fixture(scope="module")
def checkpoint_of(base: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a scheme, created once; 'bf16' is the base."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def get(name: str) -> Path:
        if name == "bf16":
            return base
        if not (folder / name).exists():
            make(name, str(base), str(text), str(folder / name))
        return folder / name

    return get


def load_checkpoint(folder: Path) -> tuple[Any, Any]:
    """Load the model, in float32, and the tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def perplexity(folder: Path) -> float:
    """The perplexity of the first 512 tokens of the Apache licence."""
    model, tokenizer = load_checkpoint(folder)
    ids = tokenizer(TEXT.read_text(encoding="utf-8"), return_tensors="pt").input_ids[:, :512]
    with torch.no_grad():
        return float(model(ids, labels=ids).loss.exp())


def bytes_in(folder: Path) -> int:
    """The size of all files in a folder."""
    return sum(item.stat().st_size for item in folder.iterdir())


@pytest.mark.parametrize("name", ["bf16", *EIGHT_BITS])
def test_eight_bit_checkpoints_generate_the_right_answer(name: str, checkpoint_of: Callable[[str], Path]) -> None:
    """FP8 and W8A8 checkpoints load in transformers and generate, like the base, that the capital is Paris."""
    model, tokenizer = load_checkpoint(checkpoint_of(name))
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])


@pytest.mark.parametrize(
    ("name", "max_ratio"), [("fp8-dynamic", 0.65), ("smoothquant-w8a8", 0.65), ("gptq-w4a16-g64", 0.45)]
)
def test_quantized_checkpoints_are_smaller(name: str, max_ratio: float, checkpoint_of: Callable[[str], Path]) -> None:
    """Eight bits take under 65 % and four bits under 45 % of the base's bytes (its embeddings stay in 16 bits)."""
    assert bytes_in(checkpoint_of(name)) < max_ratio * bytes_in(checkpoint_of("bf16"))


def test_fewer_bits_have_a_higher_perplexity(checkpoint_of: Callable[[str], Path]) -> None:
    """Perplexity increases by less than 10 % with eight bits, and by more with four bits, but to less than 3x."""
    base = perplexity(checkpoint_of("bf16"))
    eight = [perplexity(checkpoint_of(name)) for name in EIGHT_BITS]
    four = perplexity(checkpoint_of("gptq-w4a16-g64"))
    assert all(base * 0.99 < value < base * 1.1 for value in eight)
    assert max(eight) < four < base * 3


def test_two_processes_give_the_same_bits(base: Path, text: Path, tmp_path: Path) -> None:
    """GPTQ of the model's first two layers gives equal weight files in two processes, byte for byte."""
    from transformers import AutoModelForCausalLM

    cut = tmp_path / "cut"
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    model.config.layer_types = None
    model.save_pretrained(cut)
    for item in base.glob("tokenizer*"):
        shutil.copy(item, cut / item.name)
    here = Path(__file__)
    code = PROGRAM.format(here=str(here.parent), name=here.stem)
    digests = []
    for target in (tmp_path / "first", tmp_path / "second"):
        subprocess.run([sys.executable, "-c", code, "gptq-w4a16-g64", str(cut), str(text), str(target)], check=True)
        digests.append(digest_of_file(target / "model.safetensors"))
    assert digests[0] == digests[1]
