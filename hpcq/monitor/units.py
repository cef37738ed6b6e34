"""Interface of the units that the monitor reads (planned units satisfy it too), and records of rows of plan.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from hpcq.core.frozen import dataclass
from hpcq.core.work_records import UnitKind


class Unit(Protocol):
    """A unit of a plan.

    Attributes:
        id: Name of the unit, unique in its run.
        kind: Kind of work.
        variant_id: Id of the variant; None for the merge.
        address: Content address of what the unit stages, or of the variant's responses; None for other units.
        checkpoint: The checkpoint folder that the unit writes; None unless it quantizes.
        depends_on: Ids of the units that must finish first.
        gpu_class: Name of the node class; None: unknown.
    """

    @property
    def id(self) -> str: ...  # noqa: D102 (described above)
    @property
    def kind(self) -> UnitKind: ...  # noqa: D102
    @property
    def variant_id(self) -> str | None: ...  # noqa: D102
    @property
    def address(self) -> str | None: ...  # noqa: D102
    @property
    def checkpoint(self) -> str | None: ...  # noqa: D102
    @property
    def depends_on(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def gpu_class(self) -> str | None: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """A unit as recorded in plan.json; see `Unit`."""

    id: str
    kind: UnitKind
    variant_id: str | None = None
    address: str | None = None
    checkpoint: str | None = None
    depends_on: tuple[str, ...] = ()
    gpu_class: str | None = None


def read_unit(row: Mapping[str, Any]) -> UnitRecord:
    """Return the unit in a row of the plan document.

    Raises:
        KeyError: A field is missing.
        ValueError: The kind is unknown.
    """
    return UnitRecord(
        id=row["id"],
        kind=UnitKind(row["kind"]),
        variant_id=row["variant"],
        address=row["address"],
        checkpoint=row["checkpoint"],
        depends_on=tuple(row["depends_on"]),
        gpu_class=row.get("gpu_class"),
    )
