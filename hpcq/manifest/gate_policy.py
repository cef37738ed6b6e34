"""Policy of a gate: a TOML file with the largest losses that `hpcq report --gate` permits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from hpcq.catalog.task_index import index_file, indexed_names
from hpcq.catalog.tasks import find_suite, known_task, suite_names, task_names
from hpcq.core.errors import KeyedInputError, ManifestError
from hpcq.manifest.error_messages import did_you_mean, to_problems, unknown_name
from hpcq.manifest.field_types import Name, Names, PositiveFloat, Section, validation_error
from hpcq.manifest.toml_document import key_lines, read_document
from hpcq.manifest.value_origin import Source
from hpcq.report.gate import GatePolicy

_LARGEST = 100.0
"""Percentage points between the smallest and the largest score."""


def _at_most_all(points: float) -> float:
    if points > _LARGEST:
        raise validation_error(f"must be {_LARGEST:g} percentage points or less, not {points:g}.")
    return points


Points = Annotated[PositiveFloat, AfterValidator(_at_most_all)]
"""A loss in percentage points."""


class PolicySection(Section):
    """A policy as the user wrote it, with defaults."""

    variants: Names = Field(
        (),
        description="Which variants are checked: names of schemes, ids of variants, names of lines in the report, or"
        " shell patterns for them. Default: all quantized variants.",
    )
    margin_points: Points | None = Field(
        None,
        description="Largest loss of each task, percentage points. Default: only the tasks in `tasks` are checked.",
    )
    mean_margin_points: Points | None = Field(
        None, description="Largest loss of the mean of all tasks of a variant, percentage points."
    )
    require_power: bool = Field(
        True,
        description="The smallest difference that is found with a probability of 80 % must be at most the margin.",
    )
    tasks: dict[Name, Points] = Field({}, description="Largest loss by task, percentage points.")
    suites: dict[Name, Points] = Field(
        {}, description="Largest loss of the mean of the tasks of a suite, percentage points."
    )

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for task in self.tasks:
            is_index_missing = indexed_names(index_file()) is None
            if known_task(task) is None and (not is_index_missing or did_you_mean(task, task_names())):
                raise validation_error(unknown_name("task", task, task_names()), "tasks", task)
        for suite in self.suites:
            if find_suite(suite) is None:
                raise validation_error(unknown_name("suite", suite, suite_names()), "suites", suite)
        if self.margin_points is None and self.mean_margin_points is None and not (self.tasks or self.suites):
            raise validation_error("is missing: set the largest loss that passes, such as 1.0.", "margin_points")
        return self


class PolicyFile:
    """A policy, and the lines of its keys."""

    def __init__(self, path: Path) -> None:
        """Read and validate the file.

        Raises:
            ManifestError: The file is missing or invalid; one sentence per problem.
        """
        text, document = read_document(path)
        self._source = Source(path=path, lines=key_lines(text))
        try:
            section = PolicySection.model_validate(document)
        except ValidationError as error:
            raise ManifestError([self._source.message(*found) for found in to_problems(error, PolicySection)]) from None
        self.policy = GatePolicy(name=str(path), **section.model_dump())

    def error(self, problem: KeyedInputError) -> ManifestError:
        """Return the error with the line of its key."""
        return ManifestError([self._source.message((problem.key,), problem.sentence)])
