"""Check that a checkpoint is quantized as its variant declares, before a backend loads it.

An unquantized variant with a quantized checkpoint would be reported as the baseline, and the other way round.
"""

from __future__ import annotations

from pathlib import Path

from hpcq.catalog.checkpoint_formats import CheckpointFormatError, checkpoint_scheme, find_declaration
from hpcq.core.addressing import canonical
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.work_records import EvaluateWork


def check_declared_quantization(work: EvaluateWork) -> None:
    """Compare the variant's scheme with what the checkpoint's files declare.

    Raises:
        SetupError: A configuration file cannot be read, or has changed since the plan.
        UserInputError: The checkpoint is quantized and its variant is not, or the other way round.
    """
    folder, variant = Path(work.checkpoint_path), work.variant
    if work.is_synthetic or not (folder / "config.json").is_file():
        return
    try:
        declaration = find_declaration(folder)
        declared = checkpoint_scheme(declaration, "") if declaration and variant.checkpoint else None
    except CheckpointFormatError as error:
        raise SetupError(f"{folder}: {error}") from error
    if declaration is not None and not variant.scheme.is_quantized:
        raise UserInputError(
            f"{folder} is a quantized checkpoint ({declaration.settings['quant_method']}), but '{variant.scheme.name}'"
            " is unquantized: name it in models.checkpoints of its base model."
        )
    if variant.checkpoint is None:
        return
    if declared is None:
        raise UserInputError(
            f"{folder} is not quantized, but '{variant.scheme.name}' is: remove it from models.checkpoints."
        )
    if canonical(declared) != canonical(variant.scheme):
        raise SetupError(f"{folder}: its quantization_config has changed since the plan: submit the manifest again.")
