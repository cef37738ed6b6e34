"""Checks of the fidelity panel of a manifest: its text, its windows, and the backend that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hpcq.catalog.tools import backends
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.work_records import Calibration, FidelityPanel
from hpcq.evaluate.panel_windows import panel_windows
from hpcq.manifest.calibration_checks import location_problems, needs_calibration, staged_path
from hpcq.manifest.context import Context
from hpcq.manifest.error_messages import Problem
from hpcq.manifest.fs_access import is_file, unreadable_part
from hpcq.quantize.calibration_text import DEFAULT_COLUMN, TEXT_SUFFIXES


def check_location(context: Context) -> Iterator[Problem]:
    """Find a text that is neither a readable file nor in a package nor on the hub."""
    if context.manifest.fidelity:
        yield from location_problems("fidelity", context.manifest.fidelity, context.fidelity_path, context)


def check_backend(context: Context) -> Iterator[Problem]:
    """Find a backend that cannot read the panel, such as that of a plugin."""
    info = backends()[context.manifest.evaluate.backend]
    if context.manifest.fidelity and not info.reads_fidelity_panel:
        able = " or ".join(f"'{name}'" for name, one in backends().items() if one.reads_fidelity_panel)
        sentence = (
            f"the backend '{info.name}' cannot read a fidelity panel: its declaration has no reads_fidelity_panel ="
            f" true. Remove the table, or use {able}."
        )
        yield ("fidelity",), sentence


def check_window(context: Context) -> Iterator[Problem]:
    """Find windows that are longer than the context of a model, or than `evaluate.max_length`, permits."""
    section, evaluate = context.manifest.fidelity, context.manifest.evaluate
    if section is None:
        return
    # vLLM generates a token after the window.
    needed = section.window + 1
    if evaluate.max_length is not None and needed > evaluate.max_length:
        limit, owner = evaluate.max_length, "evaluate.max_length"
    else:
        lengths = {model.id: model.shape.context_length for model in context.models if model.shape}
        short = {name: length for name, length in lengths.items() if length and needed > length}
        if not short:
            return
        owner, limit = min(short.items(), key=lambda item: item[1])
    sentence = f"{section.window} tokens and the one after them exceed the {limit} of {owner}."
    yield ("fidelity", "window"), f"{sentence} Use {limit - 1} or less."


def check_text(context: Context) -> Iterator[Problem]:
    """Find a text on this file system that is malformed, has chats, or is too short."""
    section = context.manifest.fidelity
    if section is None or context.manifest.is_synthetic:
        return
    path, reserved = _readable(context.fidelity_path or staged_path(section, context)), None
    if path is None:
        return
    if any(needs_calibration(model) for model in context.models):
        calibration = context.manifest.calibration
        calibrated = _readable(context.calibration_path or staged_path(calibration, context))
        if calibrated is None:
            return  # it is staged later; the evaluation checks the panel again
        reserved = Calibration(
            digest=None,
            samples=calibration.samples,
            sequence_length=calibration.sequence_length,
            seed=calibration.seed,
            column=calibration.column if calibrated == context.calibration_path else DEFAULT_COLUMN,
            path=str(calibrated),
        )
    panel = FidelityPanel(
        digest=None,
        windows=section.windows,
        window_tokens=section.window,
        seed=section.seed,
        column=section.column if path == context.fidelity_path else DEFAULT_COLUMN,
        reserved=reserved,
        path=str(path),
    )
    try:
        panel_windows(panel)
    except (UserInputError, SetupError) as error:
        yield ("fidelity", "dataset"), str(error)


def _readable(path: Path | None) -> Path | None:
    is_readable = path and path.suffix in TEXT_SUFFIXES and is_file(path) and not unreadable_part(path)
    return path if is_readable else None
