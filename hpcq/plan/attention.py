"""Attention implementation that a model requires of a tool: part of content addresses where it is not the default."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcq.catalog.attention_softcap import caps_attention
from hpcq.catalog.tools import ToolInfo
from hpcq.core.work_records import Model
from hpcq.manifest import ResolvedManifest


def softcap_attention(tool: ToolInfo, resolved: ResolvedManifest, model: Model) -> str | None:
    """Return the attention implementation for a model that caps attention logits; None: the default one is correct."""
    needed = tool.softcap_attention
    return needed if needed and caps_attention(_config(resolved, model)) else None


def _config(resolved: ResolvedManifest, model: Model) -> Mapping[str, Any]:
    """Return the model's configuration; of an unknown family, that of its folder; empty if it is not here."""
    shape = resolved.shapes.get(model)
    if shape is not None:
        return shape.config
    try:
        content = json.loads((Path(model.path or "") / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
