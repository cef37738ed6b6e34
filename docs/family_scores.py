"""Table of unquantized evaluations of all families, recorded by `python -m tests.models.family_scores`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("family_scores.json")
UNQUANTIZED = "bf16"


def scores_table() -> str:
    """Return the table as Markdown: largest difference of a log-likelihood from lm-eval's, by model and backend."""
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    rows = [row for row in recorded if row["scheme"] == UNQUANTIZED]
    backends = sorted({row["backend"] for row in rows})
    found = {(row["model"], row["backend"]): row for row in rows}
    prompts = ", ".join(f"{_shortest(rows, backend)} with `{backend}`" for backend in backends)
    lines = [
        "Largest difference of a log-likelihood from lm-eval's in float32, in nats. Texts are equal, and planned bytes",
        f"equal stored bytes. Tokens of each model's longest prompt: at least {prompts}.",
        "",
        f"| model | {' | '.join(f'`{backend}`' for backend in backends)} | prefixes shared with `accelerate` |",
        "|---" * (len(backends) + 2) + "|",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = [_cell(found.get((model, backend))) for backend in backends]
        sharing = found.get((model, "accelerate"), {}).get("sharing", "")
        lines.append(f"| {model} | {' | '.join(cells)} | {'yes' if sharing == 'exact' else 'no: ' + sharing} |")
    return "\n".join(lines) + "\n"


def _shortest(rows: list[dict[str, Any]], backend: str) -> int:
    """Return the smallest number of tokens of a model's longest prompt."""
    return min(row["prompt_tokens"] for row in rows if row["backend"] == backend and row["prompt_tokens"])


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not measured"
    problem = row["refused"] or row["failed"]
    if problem:
        return f"– ({problem})"
    return f"{row['difference']:.0e}" if row["is_equal"] else f"differs by {row['difference']:.0e}"
