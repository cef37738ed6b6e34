"""Measure for which families llmcompressor's SmoothQuant and AWQ are correct, and write hpcq/catalog/transforms.toml.

    python -m tests.transform_table [--families a,b] [--write]

llmcompressor decides by a table of architectures which norm feeds which layers, with a default for those that it lacks.
So each transform runs on tiny random models of every family in hpcq's table, with and without its options
(tests/models/family_configs.py), and their log-likelihoods are compared. It needs the environment 'transformers', and
about a second per model.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import sys
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hpcq.catalog.schemes import find_scheme
from hpcq.catalog.unquantized_modules import Transform, quantization_problem
from hpcq.core.errors import UserInputError
from tests.families import randomize
from tests.models.family_configs import CONFIGS

CATALOG = Path(__file__).parents[1] / "hpcq" / "catalog" / "transforms.toml"
SCHEMES = {"smoothquant": "smoothquant-w8a8", "awq": "awq-w4a16-g32"}
TOKENS, SEQUENCES = 64, 4
GROUP_SIZE = 8
"""It divides the inputs of all layers of the tiny models."""
SMALLEST_VOCABULARY = 256


class _TransformedError(Exception):
    """The transform is complete; rounding is not needed."""


def measure(name: str, method: str, folder: Path) -> tuple[Transform | None, str]:
    """Return whether a transform is correct for a configuration of `CONFIGS`, and the difference or the reason.

    None: nothing of it can be quantized.

    Args:
        name: Name of the configuration.
        method: smoothquant or awq.
        folder: Empty folder for the model.
    """
    import torch
    from llmcompressor import active_session, oneshot
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    from hpcq.quantize import llmcompressor
    from hpcq.quantize.coverage import declare, use_plain_linears
    from hpcq.quantize.experts import RoutedTokens, unpack_experts
    from hpcq.quantize.recipes import make_recipe
    from hpcq.quantize.resumable_pipeline import PIPELINE, resumable
    from hpcq.quantize.self_check import LogLikelihoods
    from hpcq.quantize.transform_check import TransformCheck

    model = _tiny_model(name, folder)
    generator = torch.Generator().manual_seed(2)
    rows = torch.randint(3, SMALLEST_VOCABULARY, (SEQUENCES, TOKENS), generator=generator)
    likelihoods = LogLikelihoods(model, lambda _: {"input_ids": rows[0].tolist()}, dtype="float32")
    scheme = find_scheme(SCHEMES[method])
    assert scheme
    scheme = replace(scheme, group_size=scheme.group_size and GROUP_SIZE)
    try:
        unpack_experts(model, scheme)
        declaration = declare(model, scheme)
    except UserInputError as error:
        return None, str(error)
    use_plain_linears(model, declaration)
    modifiers = llmcompressor._modifiers(make_recipe(scheme, declaration.ignore), "float32")
    check = TransformCheck(likelihoods, model)

    def check_pass(modifier: Any) -> None:
        if check.check_pass(modifier):
            raise _TransformedError

    blocks = SimpleNamespace(restore=lambda _: None, commit=lambda *_: None)
    loader = torch.utils.data.DataLoader([{"input_ids": row} for row in rows], batch_size=SEQUENCES)
    try:
        check.check_layers(modifiers)
    except UserInputError as error:
        return Transform.MISSING, str(error)
    try:
        with (
            llmcompressor._without_pinning(),
            resumable(
                blocks,  # type: ignore[arg-type]
                lambda _: None,
                [],
                routed=RoutedTokens(),
                check_block=lambda _: None,
                check_pass=check_pass,
            ),
        ):
            oneshot(
                model=model,
                recipe=modifiers,
                dataset=loader,
                processor=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE())),  # required, and not used
                pipeline=PIPELINE,
                moe_calibrate_all_experts=True,
            )
    except _TransformedError:
        return Transform.CORRECT, str(check.facts)
    except UserInputError as error:
        return Transform.WRONG, str(error)
    finally:
        active_session().reset()
    raise AssertionError(name)


def _tiny_model(name: str, folder: Path) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    model_type, settings = CONFIGS[name]
    torch.manual_seed(1)
    config = AutoConfig.for_model(model_type, **{"pad_token_id": 0, **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomize(model, seed=zlib.crc32(name.encode()))
    model.generation_config = GenerationConfig()
    model.save_pretrained(folder)  # oneshot reads files of the model's folder
    model.config._name_or_path = str(folder)
    model.config.dtype = torch.float32
    return model.eval()


def covered_families() -> set[str]:
    """Return the families of which at least one configuration can be quantized."""
    return {CONFIGS[name][0] for name in CONFIGS if _is_quantizable(name)}


def _is_quantizable(name: str) -> bool:
    model_type, settings = CONFIGS[name]
    scheme = find_scheme("fp8-dynamic")
    return scheme is not None and not quantization_problem({"model_type": model_type, **settings}, scheme)


def text(verdicts: Mapping[str, Mapping[str, Collection[Transform]]]) -> str:
    """Return the catalog file, from the verdicts by method and family."""
    lines = [
        "# Families for which llmcompressor's transforms move scales between the right layers (correct), between wrong",
        "# ones (wrong), or do not find the layers (missing); for others it depends on options of the family, so that",
        "# the quantizer decides (depends). Written by `python -m tests.transform_table --write`.",
        "",
        "[measured_with]",
        *(f'{name} = "{version(name)}"' for name in ("llmcompressor", "transformers")),
    ]
    for method, families in verdicts.items():
        lists = {
            verdict.value: [family for family, found in families.items() if set(found) == {verdict}]
            for verdict in Transform
        }
        lists["depends"] = [family for family, found in families.items() if len(set(found)) != 1]
        lines += ["", f"[{method}]"]
        for key, names in lists.items():
            lines += [f"{key} = [", *(f'    "{name}",' for name in sorted(names)), "]"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print all families; write the file with `--write`."""
    parser = argparse.ArgumentParser(description="Measure llmcompressor's transforms on tiny models of all families.")
    parser.add_argument("--families", default="", help="only these names of tests/models/family_configs.py")
    parser.add_argument("--write", action="store_true", help="write hpcq/catalog/transforms.toml")
    arguments = parser.parse_args()
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    names = arguments.families.split(",") if arguments.families else list(CONFIGS)
    verdicts: dict[str, dict[str, set[Transform]]] = {method: defaultdict(set) for method in SCHEMES}
    has_failed = False
    for name, method in itertools.product(filter(_is_quantizable, names), SCHEMES):
        try:
            with _quiet(), tempfile.TemporaryDirectory() as folder:
                verdict, detail = measure(name, method, Path(folder))
        except Exception as error:  # noqa: BLE001  one family that fails must not stop the others
            has_failed, result, detail = True, "failed", f"{type(error).__name__}: {error}"
        else:
            verdicts[method][CONFIGS[name][0]] |= {verdict} if verdict else set()
            result = verdict.value if verdict else "refused"
        sys.stdout.write(f"{name:28} {method:12} {result:8} {detail[:200]}\n")
        sys.stdout.flush()
    if arguments.write and not has_failed:
        CATALOG.write_text(text(verdicts), encoding="utf-8")
    sys.exit(has_failed)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


if __name__ == "__main__":
    main()
