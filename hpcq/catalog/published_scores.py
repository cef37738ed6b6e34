"""Published score of a model, scheme and task of ours, for comparison in reports."""

from __future__ import annotations

from functools import lru_cache

from hpcq.catalog.models import find_model_shape
from hpcq.catalog.published_tables import STUDY, STUDY_TASKS, Misprint, PublishedCell, StudyTask, published_cells
from hpcq.core.frozen import dataclass

_STUDIES = (STUDY,)

# Scheme -> method and bits in the study; '*' is its AutoGPTQ, '**' its llmcompressor.
_METHODS = {
    "fp16": ("FP16", "16/16"),
    "bf16": ("FP16", "16/16"),
    "fp8": ("FP8", "8/8"),
    "awq-w4a16": ("AWQ", "4/16"),
    "gptq-w4a16": ("GPTQ**", "4/16"),
    "gptq-w8a16": ("GPTQ**", "8/16"),
    "smoothquant-w8a8": ("SmoothQuant", "8/8"),
}


@dataclass(frozen=True, kw_only=True)
class PublishedScore:
    """A published score.

    Attributes:
        study: Name of the study.
        task: Protocol of the task in the study.
        cell: The score, on the scale of the study, with its method, tool and size.
    """

    study: str
    task: StudyTask
    cell: PublishedCell

    @property
    def value(self) -> float:
        """The score in percent, on the scale of the study."""
        return self.cell.value

    @property
    def misprint(self) -> Misprint | None:
        """What was printed instead; None: the same."""
        return self.cell.misprint


def study_names() -> tuple[str, ...]:
    """Return the names of all studies in the catalog."""
    return _STUDIES


def find_published_score(study: str, model_id: str, scheme: str, task: str) -> PublishedScore | None:
    """Return the score of `study` for a model, scheme and task; None: it has none.

    Studies name models without their organization, so only ids in the catalog are compared: another organization's
    model of the same name is another model.
    """
    protocol, method = STUDY_TASKS.get(task), _METHODS.get(scheme)
    if protocol is None or method is None or find_model_shape(model_id) is None:
        return None
    cell = _cells().get((study_name(model_id), *method, task))
    return PublishedScore(study=study, task=protocol, cell=cell) if cell else None


def study_name(model_id: str) -> str:
    """Return the study's name of a model in lower case: 'llama-3.1-8b-it' for 'meta-llama/Llama-3.1-8B-Instruct'."""
    name = model_id.rsplit("/", 1)[-1].lower()
    return name.replace("-instruct", "-it").replace("-hf", "").replace("meta-", "")


@lru_cache
def _cells() -> dict[tuple[str, str, str, str], PublishedCell]:
    return {(cell.model.lower(), cell.label, cell.bits, cell.task): cell for cell in published_cells()}
