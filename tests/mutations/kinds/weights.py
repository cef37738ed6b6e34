"""Mutations of weight files and their index."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from tests.mutations.checkpoint_edit import (
    INDEX,
    SINGLE,
    Tensor,
    as_float32,
    edit_json,
    from_float32,
    read_tensors,
    weight_files,
    write_tensors,
)
from tests.mutations.kinds.registry import KINDS, Apply, Case, Effect, Kind, Target, kind


def _edit_one_file(case: Case, random: Random, change: Callable[[dict[str, Tensor]], str | None]) -> str | None:
    path = random.choice(weight_files(case.model))
    tensors = read_tensors(path)
    done = change(tensors)
    if done is not None:
        write_tensors(path, tensors)
    return done


def _edit_index(case: Case, change: Callable[[dict[str, Any]], object]) -> bool:
    if not (case.model / INDEX).is_file():
        return False
    edit_json(case.model / INDEX, lambda content: change(content) and None)
    return True


@kind(Target.WEIGHTS)
def drop_tensor(case: Case, random: Random) -> str | None:
    """Remove a tensor, from its file and from the index."""

    def change(tensors: dict[str, Tensor]) -> str:
        name = random.choice(list(tensors))
        del tensors[name]
        _edit_index(case, lambda index: index["weight_map"].pop(name))
        return name

    return _edit_one_file(case, random, change)


@kind(Target.WEIGHTS)
def rename_tensor(case: Case, random: Random) -> str | None:
    """Give a tensor another name, in its file and in the index."""

    def change(tensors: dict[str, Tensor]) -> str:
        name = random.choice(list(tensors))
        new = random.choice([f"{name}_old", f"x.{name}", name.replace("0", "7", 1), name.upper()])
        if new == name:
            new += "0"
        tensors[new] = tensors.pop(name)
        _edit_index(case, lambda index: index["weight_map"].update({new: index["weight_map"].pop(name)}))
        return f"{name} -> {new}"

    return _edit_one_file(case, random, change)


@kind(Target.WEIGHTS, Effect.OTHER_INPUT)
def replace_layer_number(case: Case, random: Random) -> str | None:
    """Exchange the names of the first two layers in a file."""

    def change(tensors: dict[str, Tensor]) -> str | None:
        mark = next((one for one in (".layers.", ".h.", "h.") if any(f"{one}0." in name for name in tensors)), None)
        if mark is None or weight_files(case.model)[1:]:
            return None
        swapped = {}
        for name, tensor in tensors.items():
            new = (
                name.replace(f"{mark}0.", f"{mark}_.")
                .replace(f"{mark}1.", f"{mark}0.")
                .replace(f"{mark}_.", f"{mark}1.")
            )
            swapped[new] = tensor
        tensors.clear()
        tensors.update(swapped)
        return "layers 0 and 1"

    return _edit_one_file(case, random, change)


@kind(Target.WEIGHTS)
def duplicate_tensor(case: Case, random: Random) -> str | None:
    """Add a copy of a tensor under a name that the model does not have."""

    def change(tensors: dict[str, Tensor]) -> str:
        name = random.choice(list(tensors))
        copy = f"{name.rpartition('.')[0]}.copy.weight"
        tensors[copy] = tensors[name]
        _edit_index(case, lambda index: index["weight_map"].update({copy: index["weight_map"][name]}))
        return name

    return _edit_one_file(case, random, change)


@kind(Target.WEIGHTS)
def add_layer(case: Case, random: Random) -> str | None:
    """Add the tensors of a layer that the configuration does not count."""

    def change(tensors: dict[str, Tensor]) -> str | None:
        layer = re.compile(r"^(\D*\.)1\.")  # the first number of a name is the layer's
        new = {layer.sub(r"\g<1>2.", name): tensor for name, tensor in tensors.items() if layer.match(name)}
        if not new:
            return None
        tensors |= new
        return f"{len(new)} tensors"

    return _edit_one_file(case, random, change)


@kind(Target.WEIGHTS)
def cut_weights(case: Case, random: Random) -> str | None:
    """Cut a weight file."""
    path = random.choice(weight_files(case.model))
    size = random.choice([0, 4, 8, 100, random.randrange(path.stat().st_size), path.stat().st_size - 1])
    path.write_bytes(path.read_bytes()[:size])
    return f"{path.name} to {size} bytes"


@kind(Target.WEIGHTS)
def append_bytes(case: Case, random: Random) -> str | None:
    """Append bytes to a weight file."""
    path = random.choice(weight_files(case.model))
    path.write_bytes(path.read_bytes() + b"\0" * random.choice([1, 8, 4096]))
    return path.name


@kind(Target.WEIGHTS)
def remove_weight_file(case: Case, random: Random) -> str | None:
    """Remove a weight file."""
    path = random.choice(weight_files(case.model))
    path.unlink()
    return path.name


@kind(Target.WEIGHTS)
def rename_weight_file(case: Case, random: Random) -> str | None:
    """Rename a weight file."""
    path = random.choice(weight_files(case.model))
    path.rename(path.with_name(random.choice(["weights.safetensors", "adapter_model.safetensors", "model.safetensor"])))
    return path.name


def _poison(values: list[float]) -> Apply:
    def apply(case: Case, random: Random) -> str | None:
        def change(tensors: dict[str, Tensor]) -> str:
            name = random.choice(list(tensors))
            tensor, value = tensors[name], random.choice(values)
            numbers = as_float32(tensor)
            begin = random.randrange(numbers.size)
            numbers[begin : begin + random.choice([1, 1, numbers.size])] = value
            tensors[name] = replace(tensor, data=from_float32(numbers, tensor.dtype))
            return f"{value} in {name} from {begin}"

        return _edit_one_file(case, random, change)

    return apply


def _not_a_number(case: Case, random: Random) -> str | None:
    return _poison([math.nan, math.inf, -math.inf])(case, random)


KINDS["not_a_number"] = Kind(name="not_a_number", target=Target.WEIGHTS, effect=Effect.OTHER_INPUT, apply=_not_a_number)
"""A NaN in an embedding that no request uses changes nothing, so lm-eval decides; its own NaN is never equal."""
KINDS["other_number"] = Kind(
    name="other_number", target=Target.WEIGHTS, effect=Effect.OTHER_INPUT, apply=_poison([0.0, 1.0, -3.0, 1e4, 1e38])
)


@kind(Target.WEIGHTS, Effect.OTHER_INPUT)
def scale_tensor(case: Case, random: Random) -> str | None:
    """Multiply a tensor, up to where half precision overflows."""

    def change(tensors: dict[str, Tensor]) -> str:
        name = random.choice(list(tensors))
        factor = random.choice([0.0, -1.0, 2.0, 1e-4, 1e3, 1e6])
        tensor = tensors[name]
        tensors[name] = replace(tensor, data=from_float32(as_float32(tensor) * factor, tensor.dtype))
        return f"{name} x {factor}"

    return _edit_one_file(case, random, change)


@kind(Target.WEIGHTS, Effect.OTHER_INPUT)
def flip_byte(case: Case, random: Random) -> str | None:
    """Change one byte of a tensor."""
    path = random.choice(weight_files(case.model))
    content = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    position = random.randrange(begin, len(content))
    content[position] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    return f"byte {position} of {path.name}"


@kind(Target.WEIGHTS, Effect.OTHER_INPUT)
def flip_header_byte(case: Case, random: Random) -> str | None:
    """Change one byte of a header."""
    path = random.choice(weight_files(case.model))
    content = bytearray(path.read_bytes())
    position = random.randrange(8 + int.from_bytes(content[:8], "little"))
    content[position] ^= 1 << random.randrange(7)
    path.write_bytes(content)
    return f"byte {position} of {path.name}"


@kind(Target.WEIGHTS)
def widen_weights(case: Case, random: Random) -> str | None:
    """Store all or some tensors in float32, which has the same values."""
    share = random.choice([0.3, 1.0, 1.0])
    for path in weight_files(case.model):
        tensors = read_tensors(path)
        for name, tensor in tensors.items():
            if random.random() < share:
                tensors[name] = Tensor(dtype="F32", shape=tensor.shape, data=from_float32(as_float32(tensor), "F32"))
        write_tensors(path, tensors)
    return f"{share:.0%}"


@kind(Target.WEIGHTS, Effect.OTHER_INPUT)
def convert_to_fp16(case: Case, _random: Random) -> str | None:
    """Store the tensors in float16."""
    for path in weight_files(case.model):
        tensors = {
            name: Tensor(dtype="F16", shape=tensor.shape, data=from_float32(as_float32(tensor), "F16"))
            for name, tensor in read_tensors(path).items()
        }
        write_tensors(path, tensors)
    return "all tensors"


@kind(Target.WEIGHTS, Effect.OTHER_INPUT)
def relabel_dtype(case: Case, random: Random) -> str | None:
    """Name another type of the same width in the header: other values."""

    def change(tensors: dict[str, Tensor]) -> str:
        name, dtype = random.choice(list(tensors)), random.choice(["F16", "I16", "U16"])
        tensors[name] = replace(tensors[name], dtype=dtype)
        return f"{name} as {dtype}"

    return _edit_one_file(case, random, change)


@kind(Target.WEIGHTS)
def change_shape(case: Case, random: Random) -> str | None:
    """Give a tensor another shape with the same number of elements, or fewer rows."""

    def change(tensors: dict[str, Tensor]) -> str | None:
        matrices = [name for name, tensor in tensors.items() if len(tensor.shape) > 1]
        if not matrices:
            return None
        name = random.choice(matrices)
        tensor = tensors[name]
        rows, size = tensor.shape[0], math.prod(tensor.shape)
        how = random.choice(["flat", "halved", "fewer rows", "leading 1"])
        data = tensor.data[: len(tensor.data) // rows * (rows - 1)] if how == "fewer rows" else tensor.data
        shape = {
            "flat": (size,),
            "halved": (rows * 2, size // rows // 2),
            "fewer rows": (rows - 1, *tensor.shape[1:]),
            "leading 1": (1, *tensor.shape),
        }[how]
        tensors[name] = Tensor(dtype=tensor.dtype, shape=shape, data=data)
        return f"{name} {how}"

    return _edit_one_file(case, random, change)


@kind(Target.WEIGHTS, Effect.OTHER_INPUT)
def swap_tensors(case: Case, random: Random) -> str | None:
    """Exchange two tensors of the same shape."""

    def change(tensors: dict[str, Tensor]) -> str | None:
        first = random.choice(list(tensors))
        same = [name for name, one in tensors.items() if one.shape == tensors[first].shape and name != first]
        if not same:
            return None
        second = random.choice(same)
        tensors[first], tensors[second] = tensors[second], tensors[first]
        return f"{first}, {second}"

    return _edit_one_file(case, random, change)


@kind(Target.WEIGHTS)
def add_consolidated(case: Case, random: Random) -> str | None:
    """Add a second copy of the weights, as some publishers do, possibly of another model."""
    name = random.choice(
        ["consolidated.safetensors", "consolidated.00.pth", "pytorch_model.bin", "original/model.safetensors"]
    )
    source = random.choice([weight_files(case.model)[0], next((case.spare / "other").glob("*.safetensors"))])
    target = case.model / name
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)
    return f"{name} from {source.parent.name}"


@kind(Target.WEIGHTS)
def add_adapter(case: Case, random: Random) -> str | None:
    """Add an adapter next to the weights, with or without its own weights."""
    content = {"peft_type": "LORA", "base_model_name_or_path": "other/model", "r": 4, "target_modules": ["q_proj"]}
    (case.model / "adapter_config.json").write_text(json.dumps(content))
    if random.random() < 0.5:
        shutil.copyfile(weight_files(case.model)[0], case.model / "adapter_model.safetensors")
    return "adapter_config.json"


@kind(Target.WEIGHTS)
def git_lfs_pointer(case: Case, random: Random) -> str | None:
    """Replace a file by what git stores for it without its large-file extension."""
    path = random.choice([*weight_files(case.model), case.model / "tokenizer.json"])
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {path.stat().st_size}\n"
    path.write_text(text)
    return path.name


@kind(Target.WEIGHTS)
def weights_of_another_model(case: Case, random: Random) -> str | None:
    """Take a weight file from another model."""
    path = random.choice(weight_files(case.model))
    shutil.copyfile(next((case.spare / "other").glob("*.safetensors")), path)
    return path.name


@kind(Target.WEIGHTS, Effect.OTHER_INPUT)
def weights_of_another_revision(case: Case, random: Random) -> str | None:
    """Negate all matrices of one file: the file of another revision."""
    path = random.choice(weight_files(case.model))
    tensors = read_tensors(path)
    for name, tensor in tensors.items():
        tensors[name] = replace(tensor, data=from_float32(-as_float32(tensor), tensor.dtype))
    write_tensors(path, tensors)
    return path.name


@kind(Target.WEIGHTS)
def index_disagrees(case: Case, random: Random) -> str | None:
    """Let the index disagree with the files."""
    files = [path.name for path in weight_files(case.model)]
    how = random.choice(["other file", "no entry", "extra entry", "extra file", "no map", "all one file", "not JSON"])

    def change(index: dict[str, Any]) -> None:
        weight_map = index["weight_map"]
        name = random.choice(list(weight_map))
        if how == "other file":
            weight_map[name] = next(file for file in files if file != weight_map[name])
        elif how == "no entry":
            del weight_map[name]
        elif how == "extra entry":
            weight_map["model.extra.weight"] = files[0]
        elif how == "extra file":
            weight_map[name] = "model-00003-of-00003.safetensors"
        elif how == "no map":
            del index["weight_map"]
        elif how == "all one file":
            index["weight_map"] = dict.fromkeys(weight_map, files[0])

    if not _edit_index(case, change):
        return None
    if how == "not JSON":
        (case.model / INDEX).write_text("{")
    return how


@kind(Target.WEIGHTS)
def index_total(case: Case, random: Random) -> str | None:
    """Let the index state another total size, which is only informative."""
    total = random.choice([0, 1, 10**15, -5, "many", None])
    return f"{total!r}" if _edit_index(case, lambda index: index["metadata"].update(total_size=total)) else None


@kind(Target.WEIGHTS, Effect.OTHER_INPUT)
def single_file_beside_index(case: Case, random: Random) -> str | None:
    """Add `model.safetensors` with other values to a checkpoint in several files."""
    files = weight_files(case.model)
    if len(files) == 1:
        return None
    tensors = {name: tensor for path in files for name, tensor in read_tensors(path).items()}
    name = random.choice(list(tensors))
    tensors[name] = replace(tensors[name], data=from_float32(-as_float32(tensors[name]), tensors[name].dtype))
    write_tensors(case.model / SINGLE, tensors)
    return f"other {name}"
