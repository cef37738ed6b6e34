"""Labels of the models in a report: the last part of the id, with what distinguishes models that would look alike."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations

from hpcq.core.frozen import dataclass

MIN_DIGITS = 7
"""Hexadecimal digits of a shortened commit or digest; more if these are the same."""

_HEXADECIMAL = re.compile(r"[0-9a-f]{40,64}")


@dataclass(frozen=True, kw_only=True, order=True)
class ModelIdentity:
    """What identifies a model in results. Scores are compared only within one identity.

    Attributes:
        id: Name on the hub, or a path.
        revision: Commit, branch or tag on the hub; '' if none was named.
        digest: SHA-256 of its files; '' if it is unknown.
    """

    id: str
    revision: str = ""
    digest: str = ""


def model_labels(models: Iterable[ModelIdentity]) -> dict[ModelIdentity, str]:
    """Return a label for each model, different from those of all others.

    The label is the last part of the id. Models with the same last part get the shortest addition that tells them
    apart: their organization (or parent folder), '@' and the revision, '#' and the first digits of the digest, or
    several of these.
    """
    alike: dict[str, list[ModelIdentity]] = defaultdict(list)
    for model in dict.fromkeys(models):
        alike[_last_parts(model, 1).lower()].append(model)
    return {
        model: label for group in alike.values() for model, label in zip(group, _distinct_labels(group), strict=True)
    }


def _distinct_labels(group: Sequence[ModelIdentity]) -> list[str]:
    if len(group) == 1:
        return [_last_parts(group[0], 1)]
    revisions = _shortened([model.revision for model in group])
    digests = _shortened([model.digest for model in group])
    names = [[_last_parts(model, count) for model in group] for count in (1, 2)] + [[model.id for model in group]]
    additions = [
        [f"@{revision}" if revision else "" for revision in revisions],
        [f"#{digest}" if digest else "" for digest in digests],
    ]
    candidates = [
        ["".join(parts) for parts in zip(base, *chosen, strict=True)]
        for base in names
        for count in range(len(additions) + 1)
        for chosen in combinations(additions, count)
    ]
    distinct = [labels for labels in candidates if len({label.lower() for label in labels}) == len(group)]
    # Ids that differ only in upper and lower case are still different.
    return min(distinct or [candidates[-1]], key=lambda labels: sum(map(len, labels)))


def _last_parts(model: ModelIdentity, count: int) -> str:
    return "/".join(model.id.rstrip("/").split("/")[-count:])


def _shortened(names: Sequence[str]) -> list[str]:
    """Shorten commits and digests to the same number of digits, enough to distinguish those that differ."""
    hashes = {name for name in names if _HEXADECIMAL.fullmatch(name)}
    digits = MIN_DIGITS
    while len({name[:digits] for name in hashes}) < len(hashes):
        digits += 1
    return [name[:digits] if name in hashes else name for name in names]
