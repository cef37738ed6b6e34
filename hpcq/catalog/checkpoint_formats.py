"""Formats of checkpoints that others quantized: the scheme that a checkpoint's own configuration declares.

Nothing is guessed: a format, a key or a value that is not known here is refused, with the file and the key. Sources:
the configurations that transformers 5.17, compressed-tensors 0.19, gptqmodel 7.6, auto-round 0.15 and bitsandbytes
0.50 write, and NVIDIA's ModelOpt (hf_quant_config.json).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from hpcq.core.frozen import dataclass
from hpcq.core.work_records import Scheme

CONFIG_FILE = "config.json"

Settings = Mapping[str, Any]


class CheckpointFormat(StrEnum):
    """Format of the files of a checkpoint, named as `quant_method` in config.json."""

    COMPRESSED_TENSORS = "compressed-tensors"
    GPTQ = "gptq"
    AWQ = "awq"
    FP8 = "fp8"
    FBGEMM_FP8 = "fbgemm_fp8"
    BITSANDBYTES = "bitsandbytes"
    MXFP4 = "mxfp4"
    MODELOPT = "modelopt"


class CheckpointFormatError(Exception):
    """A checkpoint's quantization is unknown or cannot be read; the message has the file, the key and the value."""


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a checkpoint declares about its quantization.

    Attributes:
        file: Name of the file.
        key: Key of the settings in it; '' for the whole file.
        settings: The settings, with `quant_method`.
    """

    file: str
    key: str
    settings: Settings

    def value(self, key: str, allowed: Sequence[object], default: object = None) -> Any:
        """Return the value of `key`, which must be one of `allowed`.

        Raises:
            CheckpointFormatError: It is another one.
        """
        found = self.settings.get(key, default)
        if not any(found == one and isinstance(found, bool) == isinstance(one, bool) for one in allowed):
            known = ", ".join(_shown(one) for one in allowed if one is not None)
            raise self.error(key, f"{_shown(found)} is not supported; supported are {known}")
        return found

    def must_be_empty(self, key: str, what: str) -> None:
        """Check that `key` is missing or empty.

        Raises:
            CheckpointFormatError: It is not.
        """
        if self.settings.get(key):
            raise self.error(key, f"{what} cannot be evaluated")

    def names(self, *keys: str) -> tuple[str, ...]:
        """Return the module names that these keys list.

        Raises:
            CheckpointFormatError: A value is not a list of names.
        """
        found: list[str] = []
        for key in keys:
            listed = self.settings.get(key) or []
            if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
                raise self.error(key, "must be a list of module names")
            found += listed
        return tuple(dict.fromkeys(found))

    def error(self, key: str, phrase: str) -> CheckpointFormatError:
        """Return the error for one key."""
        return CheckpointFormatError(f"{'.'.join(filter(None, (self.key, key)))} in {self.file}: {phrase}.")


def find_declaration(folder: Path) -> Declaration | None:
    """Return what the checkpoint in `folder` declares about its quantization; None: it is not quantized.

    Raises:
        CheckpointFormatError: A file cannot be read.
    """
    config = _read(folder / CONFIG_FILE)
    text_config = config.get("text_config")
    nested = text_config.get("quantization_config") if isinstance(text_config, dict) else None
    for key, settings in (
        ("quantization_config", config.get("quantization_config")),
        ("text_config.quantization_config", nested),
        ("compression_config", _flattened(config.get("compression_config"))),
    ):
        if settings:
            return _declaration(CONFIG_FILE, key, settings)
    for name, read in OTHER_FILES.items():
        if (folder / name).is_file():
            return _declaration(name, *read(_read(folder / name)))
    return None


def check_other_files(folder: Path, declaration: Declaration) -> None:
    """Check that no other file of the folder declares another format: two loaders would compute different weights.

    Raises:
        CheckpointFormatError: One does; the message has both files.
    """
    for name, read in OTHER_FILES.items():
        if name == declaration.file or not (folder / name).is_file():
            continue
        try:
            other = _declaration(name, *read(_read(folder / name)))
        except CheckpointFormatError:
            continue  # not read: `declaration` has priority
        for key in _COMPARED_KEYS:
            own, found = declaration.settings.get(key), other.settings.get(key)
            if own is not None and found is not None and own != found:
                phrase = f"{_shown(own)}, but {name} declares {_shown(found)}: move the wrong file to another folder"
                raise declaration.error(key, phrase)


def checkpoint_scheme(declaration: Declaration, origin: str) -> Scheme:
    """Return the scheme that a checkpoint declares.

    Args:
        declaration: Its declaration.
        origin: Who published it, for the name of the scheme, such as 'RedHatAI'.

    Raises:
        CheckpointFormatError: The format is unknown, or one that no backend computes as declared.
    """
    method = declaration.settings.get("quant_method")
    describe = _DESCRIPTIONS.get(str(method))
    if method is None:
        raise declaration.error("quant_method", f"is missing; supported are {', '.join(_DESCRIPTIONS)}")
    if describe is None:
        what = "is a format that no backend loads" if method in _NOT_LOADABLE else "is an unknown format"
        raise declaration.error("quant_method", f"{_shown(method)} {what}; supported are {', '.join(_DESCRIPTIONS)}")
    fields = {"method": str(method), "tool": _tool(declaration) or str(method), **describe(declaration)}
    scheme = Scheme(name="", **fields)
    return Scheme(**{**vars(scheme), "name": f"{format_name(scheme)} ({origin})"})


def format_name(scheme: Scheme) -> str:
    """Return the short name of a scheme's formats, such as 'fp8-dynamic' or 'gptq-w4a16-g128'."""
    return _weights_name(scheme) + ("-kv8" if scheme.kv_cache else "")


def _weights_name(scheme: Scheme) -> str:
    weights, is_weight_only = scheme.weights, scheme.activations in _UNQUANTIZED
    if scheme.checkpoint_format == CheckpointFormat.BITSANDBYTES:
        return "llm-int8" if weights == "int8" else weights
    short, bits = weights.removesuffix("_e4m3"), "".join(filter(str.isdecimal, weights))[:1]
    if not weights.startswith("int"):
        return f"{short}-w{bits}a16" if is_weight_only else short + _fp8_suffix(scheme)
    method = f"{scheme.method}-" if scheme.method in ("gptq", "awq") else ""
    computed = "16" if is_weight_only else "8-fp8" if scheme.activations == "fp8_e4m3" else "8"
    group = f"-g{scheme.group_size}" if scheme.granularity == "group" else ""
    static = "" if is_weight_only or scheme.dynamic else "-static"
    return f"{method}w{bits}a{computed}{group}{static}"


def _fp8_suffix(scheme: Scheme) -> str:
    """Return what distinguishes the FP8 formats: scales per block, or those of fp8 and fp8-dynamic in the catalog."""
    if scheme.weights != "fp8_e4m3":
        return ""
    if scheme.granularity == "block":
        return "-block"
    scales = "-tensor" if scheme.granularity == "tensor" and scheme.dynamic else ""
    return f"{scales}-dynamic" if scheme.dynamic else scales


_UNQUANTIZED = ("bf16",)
_NOT_LOADABLE = (
    "aqlm",
    "auto-round",
    "bitnet",
    "eetq",
    "exl3",
    "fp_quant",
    "gguf",
    "higgs",
    "hqq",
    "mxfp8",
    "quanto",
    "quark",
    "spqr",
    "torchao",
    "vptq",
)
_COMPARED_KEYS = ("quant_method", "bits", "group_size")
_HEAD = "lm_head"
_AUTOAWQ_DEFAULTS: Settings = {"version": "gemm", "zero_point": True}
_AUTOAWQ_NAMES = {"w_bit": "bits", "q_group_size": "group_size"}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not valid JSON"
        raise CheckpointFormatError(f"{path.name} cannot be read ({reason}).") from error
    if not isinstance(content, dict):
        raise CheckpointFormatError(f"{path.name} is not a JSON object.")
    return content


def _declaration(file: str, key: str, settings: object, method: str | None = None) -> Declaration:
    if not isinstance(settings, dict):
        raise CheckpointFormatError(f"{key or 'the content'} in {file}: must be a table.")
    is_bitsandbytes = settings.get("load_in_4bit") or settings.get("load_in_8bit")
    default = method or (CheckpointFormat.BITSANDBYTES.value if is_bitsandbytes else None)
    return Declaration(file=file, key=key, settings={"quant_method": default, **settings})


def _flattened(settings: object) -> object:
    """Return the settings of `compression_config`, which early versions of compressed-tensors nest once more."""
    if not isinstance(settings, dict):
        return settings
    inner = settings.get("quantization_config")
    flat = {**settings, **inner} if isinstance(inner, dict) else settings
    return {"quant_method": CheckpointFormat.COMPRESSED_TENSORS.value, **flat}


def _modelopt_file(content: Settings) -> tuple[str, object, str]:
    settings = content.get("quantization")
    if isinstance(settings, dict):
        settings = {**settings, "producer": content.get("producer")}
    return "quantization", settings, CheckpointFormat.MODELOPT.value


OTHER_FILES: dict[str, Callable[[Settings], tuple[str, object, str]]] = {
    "hf_quant_config.json": _modelopt_file,
    "quantize_config.json": lambda content: ("", content, CheckpointFormat.GPTQ.value),
    "quant_config.json": lambda content: ("", {**_AUTOAWQ_DEFAULTS, **_renamed(content)}, CheckpointFormat.AWQ.value),
}
"""Files of tools that did not write `quantization_config`: ModelOpt, AutoGPTQ and AutoAWQ."""


def _renamed(content: Settings) -> dict[str, Any]:
    return {_AUTOAWQ_NAMES.get(key, key): value for key, value in content.items()}


def _tool(declaration: Declaration) -> str | None:
    """Return the name of the tool that made the checkpoint, if the declaration records it."""
    settings = declaration.settings
    if settings.get("autoround_version") or settings.get("provider") == "auto-round":
        return "auto-round"
    meta, producer = settings.get("meta"), settings.get("producer")
    makers = meta.get("quantizer") if isinstance(meta, dict) else None
    if isinstance(makers, list) and makers and isinstance(makers[0], str):
        return makers[0].partition(":")[0]
    name = producer.get("name") if isinstance(producer, dict) else None
    return name if isinstance(name, str) and name else None


def _groups(declaration: Declaration) -> dict[str, Any]:
    """Return granularity and group size of scales per group of inputs, or per channel (-1)."""
    size = declaration.settings.get("group_size", -1)
    if not isinstance(size, int) or isinstance(size, bool) or size == 0 or size < -1:
        raise declaration.error("group_size", f"{_shown(size)} is not a group size")
    return {"granularity": "channel"} if size == -1 else {"granularity": "group", "group_size": size}


def _gptq(declaration: Declaration) -> dict[str, Any]:
    bits = declaration.value("bits", (2, 3, 4, 8))
    layout = "checkpoint_format" if "checkpoint_format" in declaration.settings else "format"
    declaration.value(layout, ("gptq", "gptq_v2"), "gptq")
    declaration.value("pack_dtype", ("int32",), "int32")
    declaration.value("data_type", ("int",), "int")
    for key in ("extra_config", "layer_config"):
        declaration.must_be_empty(key, "other formats for some modules")
    head = () if declaration.value("lm_head", (True, False), default=False) else (_HEAD,)
    return {
        "checkpoint_format": CheckpointFormat.GPTQ.value,
        "weights": f"int{bits}",
        "activations": "bf16",
        **_groups(declaration),
        "symmetric": declaration.value("sym", (True, False), default=True),
        "activation_order": declaration.value("desc_act", (True, False), default=False),
        "ignore": _unique(head, declaration.names("modules_to_not_convert"), _skipped(declaration)),
    }


def _skipped(declaration: Declaration) -> tuple[str, ...]:
    """Return the patterns of modules that gptqmodel skips; a pattern with another format is refused."""
    rules = declaration.settings.get("dynamic") or {}
    if not isinstance(rules, dict) or not all(rule.startswith("-:") for rule in rules):
        raise declaration.error("dynamic", "other formats for some modules cannot be evaluated")
    return tuple(f"re:{rule.removeprefix('-:')}" for rule in rules)


def _awq(declaration: Declaration) -> dict[str, Any]:
    bits = declaration.value("bits", (4,))
    version = str(declaration.settings.get("version") or "gemm").lower()
    if version != "gemm":
        raise declaration.error("version", f"{_shown(version)} is not supported; supported is 'gemm'")
    declaration.must_be_empty("extra_config", "other formats for some modules")
    return {
        "checkpoint_format": CheckpointFormat.AWQ.value,
        "weights": f"int{bits}",
        "activations": "bf16",
        **_groups(declaration),
        "symmetric": not declaration.value("zero_point", (True, False), default=True),
        "ignore": _unique((_HEAD,), declaration.names("modules_to_not_convert")),
    }


def _fp8(declaration: Declaration) -> dict[str, Any]:
    declaration.value("fmt", ("e4m3", None))
    is_dynamic = declaration.value("activation_scheme", ("dynamic", "static"), "dynamic") == "dynamic"
    block = declaration.settings.get("weight_block_size")
    if block is not None and not (
        isinstance(block, list) and block and block == block[:1] * len(block) and isinstance(block[0], int)
    ):
        raise declaration.error("weight_block_size", f"{_shown(block)} is not supported; supported are square blocks")
    if block is not None and not is_dynamic:
        raise declaration.error("activation_scheme", "'static' is not supported with weight_block_size")
    return {
        "checkpoint_format": CheckpointFormat.FP8.value,
        "weights": "fp8_e4m3",
        "activations": "fp8_e4m3",
        **({"granularity": "block", "group_size": block[0]} if block else {"granularity": "tensor"}),
        "dynamic": is_dynamic,
        "ignore": _unique((_HEAD,), declaration.names("modules_to_not_convert", "ignored_layers")),
    }


def _fbgemm_fp8(declaration: Declaration) -> dict[str, Any]:
    return {
        "checkpoint_format": CheckpointFormat.FBGEMM_FP8.value,
        "weights": "fp8_e4m3",
        "activations": "fp8_e4m3",
        "granularity": "channel",
        "dynamic": True,
        "ignore": _unique((_HEAD,), declaration.names("modules_to_not_convert")),
    }


def _bitsandbytes(declaration: Declaration) -> dict[str, Any]:
    skipped = _unique((_HEAD,), declaration.names("llm_int8_skip_modules"))
    shared = {"checkpoint_format": CheckpointFormat.BITSANDBYTES.value, "ignore": skipped}
    if declaration.value("load_in_8bit", (True, False), default=False):
        return {**shared, "weights": "int8", "activations": "int8", "dynamic": True}
    declaration.value("load_in_4bit", (True,), default=False)
    weights = declaration.value("bnb_4bit_quant_type", ("nf4", "fp4"), "fp4")
    return {**shared, "weights": weights, "activations": "bf16", "granularity": "group", "group_size": 64}


def _mxfp4(declaration: Declaration) -> dict[str, Any]:
    return {
        "checkpoint_format": CheckpointFormat.MXFP4.value,
        "weights": "mxfp4",
        "activations": "bf16",
        "granularity": "group",
        "group_size": 32,
        "ignore": declaration.names("modules_to_not_convert"),
    }


def _modelopt(declaration: Declaration) -> dict[str, Any]:
    algorithm = declaration.value("quant_algo", ("FP8", "NVFP4"))
    for key in ("kv_cache_quant_algo", "kv_cache_scheme"):
        declaration.must_be_empty(key, "a quantized KV cache")
    formats: dict[str, dict[str, Any]] = {
        "FP8": {"weights": "fp8_e4m3", "activations": "fp8_e4m3", "granularity": "tensor"},
        "NVFP4": {"weights": "nvfp4", "activations": "nvfp4", "granularity": "group", "group_size": 16}
        | {"dynamic": True},
    }
    return {
        "checkpoint_format": CheckpointFormat.MODELOPT.value,
        **formats[algorithm],
        "ignore": declaration.names("exclude_modules", "ignore"),
    }


_TENSOR_FORMATS = {
    ("int", 4, None): "int4",
    ("int", 8, None): "int8",
    ("float", 8, None): "fp8_e4m3",
    ("float", 4, "tensor_group"): "nvfp4",
    ("float", 4, "group"): "mxfp4",
    ("float", 8, "torch.uint8"): "mxfp8",
}
"""Formats by `type`, `num_bits` and, for four-bit floats, `strategy` of compressed-tensors; for MXFP8 `scale_dtype`."""
_GRANULARITIES = {
    "tensor": "tensor",
    "channel": "channel",
    "group": "group",
    "tensor_group": "group",
    "block": "block",
}
_FILE_FORMATS = (
    "float-quantized",
    "int-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "pack-quantized",
)


def _compressed_tensors(declaration: Declaration) -> dict[str, Any]:
    declaration.value("format", _FILE_FORMATS)
    declaration.must_be_empty("transform_config", "a rotation of the activations")
    sparsity = declaration.settings.get("sparsity_config") or {}
    if sparsity.get("format", "dense") != "dense":
        raise declaration.error("sparsity_config.format", f"{_shown(sparsity['format'])} cannot be evaluated")
    groups = declaration.settings.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(one, dict) for one in groups.values()):
        raise declaration.error("config_groups", "must be a table with at least one group")
    described = [_group(declaration, name, group) for name, group in groups.items()]
    if any(one != described[0] for one in described):
        raise declaration.error("config_groups", "several groups with different formats cannot be evaluated")
    ignore = declaration.names("ignore")
    return {
        "checkpoint_format": CheckpointFormat.COMPRESSED_TENSORS.value,
        **described[0],
        "ignore": ignore,
        "kv_cache": _kv_cache(declaration),
    }


def _kv_cache(declaration: Declaration) -> str | None:
    """Return the number format of the KV cache; None: it is not quantized."""
    settings = declaration.settings.get("kv_cache_scheme")
    if not settings:
        return None
    is_known = isinstance(settings, dict) and all(
        settings.get(key, default) == value
        for key, value, default in (
            ("type", "float", None),
            ("num_bits", 8, None),
            ("strategy", "tensor", None),
            ("dynamic", False, False),
            ("symmetric", True, True),
        )
    )
    if not is_known:
        raise declaration.error("kv_cache_scheme", "only static FP8 with one scale per layer can be evaluated")
    return "fp8_e4m3"


def _group(declaration: Declaration, name: str, group: Settings) -> dict[str, Any]:
    key = f"config_groups.{name}"
    weights, inputs = group.get("weights"), group.get("input_activations")
    if group.get("output_activations"):
        raise declaration.error(f"{key}.output_activations", "quantized outputs cannot be evaluated")
    if not isinstance(weights, dict) or not isinstance(inputs, dict | None):
        raise declaration.error(f"{key}.weights", "must be a table")
    granularity = _GRANULARITIES.get(str(weights.get("strategy")))
    if granularity is None:
        raise declaration.error(f"{key}.weights.strategy", f"{_shown(weights.get('strategy'))} is not supported")
    block = weights.get("block_structure")
    if granularity == "block" and not (isinstance(block, list) and block and block == block[:1] * len(block)):
        raise declaration.error(f"{key}.weights.block_structure", f"{_shown(block)} is not supported")
    size = block[0] if granularity == "block" and isinstance(block, list) else weights.get("group_size")
    return {
        "weights": _tensor_format(declaration, f"{key}.weights", weights),
        "activations": _tensor_format(declaration, f"{key}.input_activations", inputs) if inputs else "bf16",
        "granularity": granularity,
        "group_size": size if granularity in ("group", "block") else None,
        "symmetric": bool(weights.get("symmetric", True)),
        "activation_order": bool(weights["actorder"]) if weights.get("actorder") else None,
        "dynamic": bool(inputs and inputs.get("dynamic")),
    }


def _tensor_format(declaration: Declaration, key: str, settings: Settings) -> str:
    kind, bits, strategy = settings.get("type"), settings.get("num_bits"), settings.get("strategy")
    is_small_float = (kind, bits) == ("float", 4)
    size = bits if isinstance(bits, int) else 0
    scale_dtype = settings.get("scale_dtype") if kind == "float" and not is_small_float else None
    third = str(strategy) if is_small_float else scale_dtype if scale_dtype == "torch.uint8" else None
    found = _TENSOR_FORMATS.get((str(kind), size, third))
    if found == "mxfp8" and (strategy, settings.get("group_size")) != ("group", 32):
        found = None
    if found is None:
        raise declaration.error(key, f"{bits}-bit {kind} with scales per {strategy} is not supported")
    return found


def _unique(*names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in names for name in group))


def _shown(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else json.dumps(value)


_DESCRIPTIONS: dict[str, Callable[[Declaration], dict[str, Any]]] = {
    CheckpointFormat.COMPRESSED_TENSORS.value: _compressed_tensors,
    CheckpointFormat.GPTQ.value: _gptq,
    CheckpointFormat.AWQ.value: _awq,
    CheckpointFormat.FP8.value: _fp8,
    CheckpointFormat.FBGEMM_FP8.value: _fbgemm_fp8,
    CheckpointFormat.BITSANDBYTES.value: _bitsandbytes,
    CheckpointFormat.MXFP4.value: _mxfp4,
    CheckpointFormat.MODELOPT.value: _modelopt,
}
