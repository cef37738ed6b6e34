"""Mutate checkpoints, tokenizers, configurations, items and calibration files, and check that no score is wrong.

    python -m tests.mutations --count 1000 --seed 1 [--families llama gpt2] [--kinds drop_tensor] [--log FILE]
    python -m tests.mutations --only llama:drop_tensor:17

Exit code 1 if a case ends in a score that differs from the undamaged one's without an error or a mark, in a traceback,
or in a hang. Run it in the environment `core`, with the staged inputs of tests/staged.toml.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from random import Random

from hpcq.core import environments
from tests.mutations.kinds.table import KINDS
from tests.mutations.oracle import Class
from tests.mutations.processes import preload
from tests.mutations.trial import FAMILIES, Laboratory, Verdict
from tests.mutations.warm_workers import WarmWorkers


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--count", type=int, default=30, help="number of mutations (default: %(default)d)")
    parser.add_argument("--seed", type=int, default=1, help="seed of all random choices (default: %(default)d)")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--only", metavar="FAMILY:KIND:SEED", help="repeat one mutation")
    parser.add_argument(
        "--log", type=Path, help="file that gets one JSON object per mutation; those in it are not repeated"
    )
    parser.add_argument("--keep", type=Path, help="folder of the files; by default a temporary one")
    arguments = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    preload()
    cases = [_parse(arguments.only)] if arguments.only else None
    with tempfile.TemporaryDirectory(prefix="hpcq-mutations-") as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        with WarmWorkers(python=environments.interpreter("transformers")) as workers:
            laboratory = Laboratory(folder=folder, workers=workers)
            chosen = cases or choose(arguments.count, arguments.seed, arguments.families, arguments.kinds)
            verdicts = run(laboratory, chosen, arguments.log)
    counts = Counter(verdict.outcome for verdict in verdicts)
    sys.stdout.write(f"\nseed {arguments.seed}: {len(verdicts)} mutations\n")
    for outcome, count in counts.most_common():
        sys.stdout.write(f"{count:6}  {outcome}\n")
    return 1 if any(outcome.is_finding for outcome in counts) else 0


def _parse(text: str) -> tuple[str, str, int]:
    family, kind, seed = text.split(":")
    return family, kind, int(seed)


def choose(count: int, seed: int, families: list[str], kinds: list[str]) -> list[tuple[str, str, int]]:
    """Return `count` cases."""
    random = Random(seed)  # noqa: S311 (not for cryptography)
    return [(random.choice(families), random.choice(kinds), random.randrange(10**6)) for _ in range(count)]


def run(laboratory: Laboratory, cases: list[tuple[str, str, int]], log: Path | None) -> list[Verdict]:
    """Run the cases that are not in the log, print the findings, write all to the log, and return those of both."""
    logged = _read_log(log) if log and log.is_file() else {}
    verdicts = []
    for family, kind, seed in cases:
        if (family, kind, seed) in logged:
            verdicts.append(logged[family, kind, seed])
            continue
        verdict = laboratory.run_trial(family, KINDS[kind], seed)
        if verdict is None:
            continue
        verdicts.append(verdict)
        if log:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**asdict(verdict), "outcome": verdict.outcome}) + "\n")
        if verdict.outcome.is_finding or len(cases) == 1:
            sys.stdout.write(
                f"{verdict.outcome}\n    {verdict.reproduction}   {verdict.seconds:.1f} s"
                f"\n    {verdict.done}; {', '.join(verdict.schemes)}\n    {verdict.text}\n"
            )
            sys.stdout.flush()
    return verdicts


def _read_log(log: Path) -> dict[tuple[str, str, int], Verdict]:
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    found = [Verdict(**{**row, "outcome": Class(row["outcome"]), "schemes": tuple(row["schemes"])}) for row in rows]
    return {(verdict.family, verdict.kind, verdict.seed): verdict for verdict in found}


if __name__ == "__main__":
    sys.exit(main())
