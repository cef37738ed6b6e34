"""Ids of units, and the names by which a user selects units. The only module that knows the grammar of an id.

    <kind>.<variant>[.<index>of<count>]    quantize.llama-2-7b--gptq-w4a16-g64--0a1b2c3d4e5f
                                           evaluate.llama-2-7b--gptq-w4a16-g64--0a1b2c3d4e5f.0of2
    stage.<run>                            stage.rehearsal
    merge.<run>                            merge.rehearsal

A variant's id is `<model>--<scheme>--<digest>` (`hpcq.core.work_records.Variant.id`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from types import MappingProxyType

from hpcq.core.addressing import VARIANT_SEPARATOR
from hpcq.core.errors import UserInputError
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import Shard, UnitKind

MIN_DIGEST_CHARACTERS = 6
"""Shortest prefix of a digest that is a name: a shorter one could match by chance."""

_SHARDED = re.compile(r"(?P<variant>.+)\.(?P<index>\d+)of(?P<count>\d+)")
_DIGEST = re.compile(rf"[0-9a-f]{{{MIN_DIGEST_CHARACTERS},}}")
_MAX_NEAREST = 3


@dataclass(frozen=True, kw_only=True)
class UnitId:
    """Id of a unit, taken apart; `str` puts it together.

    Attributes:
        kind: Kind of the unit.
        subject: Id of its variant; of a staging or a merge, the name of the run.
        shard: Part of the requests; only evaluations have more than one.
    """

    kind: UnitKind
    subject: str
    shard: Shard = Shard()

    def __str__(self) -> str:
        whole = f"{self.kind}.{self.subject}"
        return whole if self.shard.count == 1 else f"{whole}.{self.shard}"

    @classmethod
    def parse(cls, text: str) -> UnitId | None:
        """Return the parts of an id; None if `text` is not the id of a unit."""
        kind, _, subject = text.partition(".")
        if kind not in list(UnitKind) or not subject:
            return None
        found = _SHARDED.fullmatch(subject) if kind == UnitKind.EVALUATE else None
        if found is None:
            return cls(kind=UnitKind(kind), subject=subject)
        shard = Shard(index=int(found["index"]), count=int(found["count"]))
        return cls(kind=UnitKind.EVALUATE, subject=found["variant"], shard=shard)

    @cached_property
    def components(self) -> frozenset[str]:
        """Names of the unit that are not unique to it, in lower case, without the digest."""
        model, scheme, _ = self.variant_parts
        shard = str(self.shard) if self.shard.count > 1 else ""
        names = (self.kind, self.subject, f"{self.kind}.{self.subject}", model, scheme, shard)
        return frozenset(name.lower() for name in names if name)

    def has_component(self, name: str) -> bool:
        """Whether `name` is a whole component of the id, or begins its digest, in any case."""
        lower = name.lower().replace(":", "-")  # the id of 'autogptq:gptq-w4a16' has a hyphen
        digest = self.variant_parts[2]
        return lower in self.components or (_DIGEST.fullmatch(lower) is not None and digest.startswith(lower))

    @property
    def variant_parts(self) -> tuple[str, str, str]:
        """Model, scheme and digest; empty for a unit of the whole run."""
        parts = self.subject.rsplit(VARIANT_SEPARATOR, 2)
        if len(parts) != 3 or self.kind in (UnitKind.STAGE, UnitKind.MERGE):  # noqa: PLR2004
            return ("", "", "")
        return (parts[0], parts[1], parts[2])


def is_kind(unit_id: str, kind: UnitKind) -> bool:
    """Return whether `unit_id` is the id of a unit of this kind."""
    parsed = UnitId.parse(unit_id)
    return parsed is not None and parsed.kind is kind


def select_units(
    known: Sequence[str], names: Sequence[str], aliases: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> dict[str, tuple[str, ...]]:
    """Return the ids that each name selects, in the order of `known`.

    A name is an id, or a whole component of ids (kind, model, scheme, variant, shard, at least 6 digits of the digest),
    or one of `aliases`, or a shell pattern for whole ids, in this order of precedence.

    Args:
        known: Ids of all units.
        names: The names.
        aliases: Other names, in lower case, and the ids that each selects.

    Raises:
        UserInputError: A name selects nothing (the message has the nearest ids), or is a kind of unit and also the
            name of a model or scheme.
    """
    for name in names:
        _refuse_ambiguous(known, name)
    selected = {name: tuple(_matches(known, name, aliases)) for name in names}
    for name, found in selected.items():
        if not found:
            raise UserInputError(
                f"{name}: no unit of this run has this id, kind, model, scheme, shard or digest (at least"
                f" {MIN_DIGEST_CHARACTERS} digits). Nearest: {', '.join(_nearest(known, name))}."
                " A pattern such as '*fp8*' is matched with whole ids."
            )
    return selected


def _refuse_ambiguous(known: Sequence[str], name: str) -> None:
    """Refuse a kind of unit that is also the name of a model: all units of the kind would be selected."""
    lower = name.lower()
    if lower in list(UnitKind) and any(lower in parts.variant_parts for one in known if (parts := UnitId.parse(one))):
        raise UserInputError(
            f"{name}: this is a kind of unit, and a model or a scheme of this run has the same name. Use a pattern:"
            f" '{lower}.*' for the kind, '*.{lower}--*' for the model, '*--{lower}--*' for the scheme."
        )


def _matches(known: Sequence[str], name: str, aliases: Mapping[str, Sequence[str]]) -> Sequence[str]:
    if name in known:
        return [name]
    parsed = {unit_id: UnitId.parse(unit_id) for unit_id in known}
    found = [unit_id for unit_id, parts in parsed.items() if parts and parts.has_component(name)]
    found = found or [*aliases.get(name.lower(), ())]
    return found or [unit_id for unit_id in known if fnmatchcase(unit_id.lower(), name.lower())]


def _nearest(known: Sequence[str], name: str) -> list[str]:
    """Return up to `_MAX_NEAREST` ids: those that contain the name, else those with the most similar component."""
    lower = name.lower()

    def similarity(unit_id: str) -> float:
        parts = UnitId.parse(unit_id)
        words = sorted(parts.components) if parts else [unit_id]
        return max(difflib.SequenceMatcher(None, lower, word).ratio() for word in words)

    containing = [unit_id for unit_id in known if lower in unit_id.lower()]
    return (containing or sorted(known, key=similarity, reverse=True))[:_MAX_NEAREST]
