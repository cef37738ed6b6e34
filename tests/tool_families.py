"""Families of models that each tool has a class for, asked from the installed tools.

    python -m tests.tool_families [--write]

compares hpcq/catalog/tool_families.toml with the tools' own tables, and writes it with --write. It needs the
environments 'legacy' and 'gptqmodel'. Families that the environment's transformers does not know are left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from hpcq.core import environments

FILE = Path(__file__).parents[1] / "hpcq" / "catalog" / "tool_families.toml"
HEADER = """\
# Model types (config.json) that each tool has a class for, and that transformers in the tool's environment knows. A
# tool without a list quantizes every linear layer that it finds. `instead`: schemes with about as many bits.
# Written by `python -m tests.tool_families --write`.
"""
_QUERY = """
import json
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES as known
{table}
print("TABLE" + json.dumps(sorted(set(table) & set(known))))
"""
TOOLS = {
    "autogptq": (
        "legacy",
        "from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP as table",
        ("gptqmodel:gptq-w4a16", "gptq-w4a16"),
    ),
    "autoawq": (
        "legacy",
        "from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP as table",
        ("gptqmodel:awq-w4a16", "awq-w4a16"),
    ),
    "gptqmodel": (
        "gptqmodel",
        "from gptqmodel.models.auto import MODEL_MAP as table",
        ("gptq-w4a16", "autoround:w4a16"),
    ),
}


def supported(environment: str, table: str) -> list[str]:
    """Return the model types in a tool's table."""
    command = [str(environments.create(environment)), "-c", _QUERY.format(table=table)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("TABLE"))
    found: list[str] = json.loads(line.removeprefix("TABLE"))
    return found


def render() -> str:
    """Return the content of the file."""
    parts = [HEADER]
    for tool, (environment, table, instead) in TOOLS.items():
        types = "".join(f'    "{name}",\n' for name in supported(environment, table))
        names = ", ".join(f'"{name}"' for name in instead)
        parts.append(f"\n[{tool}]\ninstead = [{names}]\nmodel_types = [\n{types}]\n")
    return "".join(parts)


def main() -> int:
    """Compare the file with the tools, or write it."""
    parser = argparse.ArgumentParser(prog="python -m tests.tool_families")
    parser.add_argument("--write", action="store_true", help="write the file")
    options = parser.parse_args()
    content = render()
    if options.write:
        FILE.write_text(content, encoding="utf-8")
    is_equal = FILE.read_text(encoding="utf-8") == content
    sys.stdout.write("equal\n" if is_equal else f"{FILE} differs from the tools: run it with --write\n")
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
