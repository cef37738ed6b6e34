"""Where a variant's evaluation lies in a run's folder, whatever the number of its shards. Knows names alone."""

from __future__ import annotations

import re
from pathlib import Path

from hpcq.core.files import listed
from hpcq.core.work import Kind, Variant


def unit_folders(segments: Path, variant: Variant) -> list[Path]:
    """The folder of every unit `evaluate.<variant>[.<i>of<n>]`, of this plan or an earlier one."""
    name = re.compile(rf"{Kind.EVALUATE}\.{re.escape(variant.id)}(\.\d+of\d+)?")
    return [folder for folder in listed(segments) if name.fullmatch(folder.name)]
