"""The user documentation agrees with the schema and the catalog."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from hpcq.catalog.gpus import gpu_names
from hpcq.catalog.packages import packaged_tasks
from hpcq.catalog.schemes import scheme_names
from hpcq.catalog.tasks import suite_names, task_names
from hpcq.manifest import Manifest, Profile, load, resolve
from hpcq.manifest.profiles import load_profile
from hpcq.manifest.schema_docs import reference

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.mark.parametrize(("document", "schema"), [("manifest.md", Manifest), ("cluster.md", Profile)])
def test_every_key_is_documented_as_the_schema_states_it(document: str, schema: type[BaseModel]) -> None:
    """The document ends with the generated reference; `make docs` updates it."""
    assert (DOCS / document).read_text(encoding="utf-8").endswith(reference(schema).rstrip() + "\n")


def test_every_name_of_the_catalog_is_documented() -> None:
    """The documents contain all schemes, tasks, suites, packaged datasets and GPUs."""
    manifest, cluster = ((DOCS / name).read_text(encoding="utf-8") for name in ("manifest.md", "cluster.md"))
    for name in (*scheme_names(), *task_names(), *packaged_tasks()):
        assert f"`{name}`" in manifest
    assert all(name in manifest for name in suite_names())
    assert all(f"`{name}`" in cluster for name in gpu_names())


def test_the_documented_examples_are_valid(tmp_path: Path) -> None:
    """The first example manifest resolves with the first example profile."""
    (tmp_path / "clusters").mkdir()
    for document, path in (("manifest.md", "m.toml"), ("cluster.md", "clusters/ours.toml")):
        example = re.search(r"```toml\n(.*?)```", (DOCS / document).read_text(encoding="utf-8"), re.DOTALL)
        assert example
        Path(path).write_text(example[1], encoding="utf-8")
    resolved = resolve(load(Path("m.toml")))
    assert resolved.profile == load_profile("clusters/ours.toml", tmp_path)
    assert len(resolved.pairs) == 4
    assert len(resolved.tasks) == 7


def test_the_documented_overrides_and_definitions_work() -> None:
    """The documented -O overrides and custom scheme are accepted."""
    Path("m.toml").write_text(
        '[run]\nname = "x"\n[[models]]\nid = "google/gemma-2b"\n[tasks]\nuse = ["gsm8k"]\n'
        '[schemes]\nuse = ["bf16", "careful", "careful-g64"]\n'
        '[[schemes.define]]\nname = "careful"\nbase = "gptq-w4a16"\ndamping = 0.05\n'
    )
    options = ["tasks.limit=10", "models.0.id=HuggingFaceTB/SmolLM2-360M-Instruct", "tasks.data=hub"]
    assert load(Path("m.toml"), [*options, 'schemes.use=["bf16"]']).manifest.tasks.limit == 10
    assert [scheme.damping for _, scheme in resolve(load(Path("m.toml"))).pairs] == [None, 0.05, 0.05]
