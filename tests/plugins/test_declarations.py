"""Declarations of plugins: what a manifest can name, and one sentence about each declaration that cannot be used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpcq.catalog.kernels import backend_title, find_kernel, has_kernels
from hpcq.catalog.plugins import Group
from hpcq.catalog.schemes import find_scheme, scheme_names
from hpcq.catalog.tools import backends, loadable_names, quantizers
from hpcq.cli import main
from hpcq.core.errors import SetupError
from tests.plugins.conftest import DECLARATION, ENTRY_POINTS, Install

BACKEND = '[backends.scorer]\nenvironment = "transformers"\ndistributions = []\n'
ONLY_BACKEND = "[hpcq.backends]\nscorer = their_package.tool:Scorer\n"


def test_a_declaration_extends_every_registry(install: Install) -> None:
    """Quantizer, backend, scheme and kernel of a plugin are found by name, after those of hpcq."""
    install()
    assert (list(quantizers())[-1], list(backends())[-1], scheme_names()[-1]) == ("theirs", "scorer", "theirs-w8a16")
    quantizer, scheme = quantizers()["theirs"], find_scheme("theirs-w8a16")
    assert (quantizer.distributions, quantizer.origin) == (("numpy",), "their-plugin 1.5")
    assert scheme
    assert (scheme.needs_calibration, scheme.ignore) == (True, ("lm_head",))
    kernel = find_kernel("scorer", scheme, None)
    assert kernel
    assert (kernel.name, has_kernels("scorer"), find_kernel("scorer", scheme, (9, 0))) == ("scoring", True, None)
    assert backend_title("scorer") == "scorer (their-plugin 1.5)"


def test_schemes_alone_are_a_plug_in(install: Install) -> None:
    """A distribution may declare schemes of hpcq's own tools; its entry point only locates the declaration."""
    row = '[schemes.w8a16-g32]\ntool = "llmcompressor"\nmethod = "rtn"\nweights = "int8"\nactivations = "bf16"\n'
    install("schema = 1\n" + row, entry_points="[hpcq.schemes]\nany = their_package\n")
    scheme = find_scheme("w8a16-g32")
    assert scheme
    assert (scheme.tool, scheme.needs_calibration) == ("llmcompressor", False)


def test_hpcqs_own_tools_are_complete() -> None:
    """Each of hpcq's own tools names a module that exists, and a fallback that is registered."""
    assert all(info.fallback in (None, *backends()) for info in backends().values())
    assert loadable_names(Group.BACKENDS) == sorted(backends())
    assert loadable_names(Group.QUANTIZERS) == sorted(quantizers())


INVALID = {
    "no declaration": (
        {"declaration": None},
        "Plugin their-plugin 1.5: the package 'their_package' has no hpcq-plugin.toml, which must be in the folder",
    ),
    "not installed": (
        {"entry_points": "[hpcq.backends]\nscorer = absent_package.tool:Scorer\n"},
        "Plugin their-plugin 1.5: the package 'absent_package' is not installed",
    ),
    "not TOML": ({"declaration": "schema = \n"}, "FILE: it cannot be read (Invalid value"),
    "later format": (
        {"declaration": "schema = 2\n"},
        "FILE: schema = 2 is not supported; this version of hpcq reads schema = 1. Correct the file",
    ),
    "unknown table": ({"declaration": DECLARATION + "[gpus]\n"}, "FILE: unknown table 'gpus'; allowed are"),
    "no table": (
        {"declaration": "schema = 1\n" + BACKEND},
        "FILE: [quantizers.theirs] is missing, but the distribution has an entry point 'theirs'",
    ),
    "no entry point": (
        {"entry_points": ONLY_BACKEND},
        "FILE: [quantizers.theirs] has no entry point in 'hpcq.quantizers'",
    ),
    "unknown key": (
        {"declaration": DECLARATION.replace("methods =", "method =")},
        "FILE: [quantizers.theirs]: unknown key 'method'; allowed are",
    ),
    "missing key": (
        {"declaration": DECLARATION.replace('distributions = ["lm-eval"]', "")},
        "FILE: [backends.scorer]: 'distributions' is missing",
    ),
    "wrong type": (
        {"declaration": DECLARATION.replace('["lm-eval"]', '"lm-eval"')},
        "FILE: [backends.scorer]: 'distributions' must be a list of strings",
    ),
    "wrong value": (
        {"declaration": DECLARATION.replace('["lm-eval"]', '["lm-eval"]\nsplitting = "experts"')},
        "FILE: [backends.scorer]: 'splitting' must be one of none, layers, tensor",
    ),
    "calibrated method": (
        {"declaration": DECLARATION.replace('methods = ["rtn", "clever"]', 'methods = ["rtn"]')},
        "FILE: [quantizers.theirs]: 'clever' is not in its methods",
    ),
    "nodes without tensor parallelism": (
        {"declaration": DECLARATION.replace('["lm-eval"]', '["lm-eval"]\nspans_nodes = true')},
        "FILE: [backends.scorer]: spans_nodes requires splitting = 'tensor'",
    ),
    "fallback": (
        {"declaration": DECLARATION.replace('["lm-eval"]', '["lm-eval"]\nfallback = "hflm"')},
        "FILE: [backends.scorer]: fallback 'hflm' is none of accelerate, vllm, synthetic, scorer",
    ),
    "scheme": (
        {"declaration": DECLARATION.replace('method = "clever"', 'method = "gptq"')},
        "FILE: [schemes.theirs-w8a16]: 'method' must be one of rtn, clever, not 'gptq'",
    ),
    "number format": (
        {"declaration": DECLARATION.replace('weights = "int8"', 'weights = "nf4"')},
        "FILE: [schemes.theirs-w8a16]: 'weights' must be one of fp32, bf16, fp16, fp8_e4m3,",
    ),
    "kernel": (
        {"declaration": DECLARATION.replace('backend = "scorer"', 'backend = "vllm"')},
        "FILE: [[kernels]] number 1: it has no backend 'vllm'",
    ),
    "name of hpcq's quantizer": (
        {
            "declaration": DECLARATION.replace("quantizers.theirs", "quantizers.llmcompressor"),
            "entry_points": ENTRY_POINTS.replace("theirs =", "llmcompressor ="),
        },
        "FILE: [quantizers.llmcompressor]: hpcq has one of that name: rename it",
    ),
    "name of hpcq's scheme": (
        {"declaration": DECLARATION.replace("schemes.theirs-w8a16", "schemes.fp8")},
        "FILE: [schemes.fp8]: hpcq has one of that name: rename it",
    ),
}


@pytest.mark.parametrize(("fields", "expected"), INVALID.values(), ids=INVALID)
def test_an_invalid_declaration_is_reported_in_one_sentence(
    fields: dict[str, str | None], expected: str, install: Install, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`hpcq plan` exits with 3 and one line: the distribution, the file, the problem and the fix; no traceback."""
    package = install(**fields)
    (tmp_path / "m.toml").write_text(
        '[run]\nname = "x"\n[[models]]\nid = "google/gemma-2b"\n[tasks]\nuse = ["gsm8k"]\n'
        '[schemes]\nuse = ["bf16"]\n[cluster]\nprofile = "local"\n'
    )
    assert main(["plan", str(tmp_path / "m.toml")]) == 3
    message = capsys.readouterr().err
    file = f"Plugin their-plugin 1.5: {package / 'hpcq-plugin.toml'}"
    assert expected.replace("FILE", file) in message
    assert re.search(r"(Correct the file|Correct or uninstall|Correct it)", message)
    assert "Traceback" not in message


def test_two_plug_ins_with_one_name_are_refused(install: Install) -> None:
    """Of two distributions that declare the same backend, the message names both."""
    install("schema = 1\n" + BACKEND, entry_points=ONLY_BACKEND)
    install("schema = 1\n" + BACKEND, entry_points=ONLY_BACKEND, name="another", version="2.0", package="other_package")
    with pytest.raises(SetupError, match=r"Plugin their-plugin 1\.5: .*scorer\]: another 2\.0 has one of that name"):
        backends()
