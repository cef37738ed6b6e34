"""The quantizing worker: one unit in, one whole checkpoint folder out, with a file that says how it came to be.

Knows units, attempts and the door to the tools; must not know plans, launchers or any tool's library.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from hpcq.core.attempts import Attempt, now
from hpcq.core.errors import SetupError, UserInputError, WorkFailed
from hpcq.core.files import committed_folder, digest_of_file
from hpcq.core.work import QuantizeWork, Variant, Versions
from hpcq.quantize.block_store import BLOCKS_SUFFIX, Blocks
from hpcq.quantize.checkpoint_lock import Owner, claimed
from hpcq.quantize.fit import check_divisibility
from hpcq.quantize.interface import QuantizeJob, quantizer

METADATA_FILE = "hpcq.json"
METADATA_SCHEMA = 1
DEFAULT_SEED = 1234
REPORT_INTERVAL_S = 2.0
RECORDED_VERSIONS = (
    "compressed-tensors",
    "llmcompressor",
    "numpy",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
TOKENIZER_MARKS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def quantize(work: QuantizeWork, attempt: Attempt) -> None:
    """Make the checkpoint of `work`, or return at once if it is there: a checkpoint folder that exists is whole.

    Raises:
        UserInputError: the scheme does not fit the model, or the tool cannot make it.
        SetupError: the base checkpoint, the calibration text or the tools are not those that were planned with.
        StorageError: no room, or no permission.
        WorkFailed: the tool returned, but left no complete checkpoint.
    """
    path = Path(work.checkpoint_path)
    if not path.is_dir():
        _check_versions(work.variant.versions)
        if not _is_rehearsal(work):
            _check_base(Path(work.variant.model.path or ""), work)
    clock = PhaseClock(lambda phase: attempt.update(phase=phase))
    with claimed(path, Owner.of(attempt.record), clock.report) as is_mine:
        if is_mine:
            _make(work, attempt, clock)
        else:
            attempt.update(phase="the checkpoint exists already", facts={"existed": True})
    shutil.rmtree(_blocks_folder(path), ignore_errors=True)


def _blocks_folder(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + BLOCKS_SUFFIX)


def _make(work: QuantizeWork, attempt: Attempt, clock: PhaseClock) -> None:
    variant, path = work.variant, Path(work.checkpoint_path)
    blocks = Blocks(
        _blocks_folder(path),
        {"address": variant.address, "versions": _versions(variant)},
        lambda known: attempt.update(
            added=known.committed, facts={"blocks_committed": known.committed, "blocks_restored": known.restored}
        ),
    )
    with committed_folder(path) as folder:
        job = QuantizeJob(
            base=Path(variant.model.path or ""),
            output=folder,
            scheme=variant.scheme,
            calibration=variant.calibration,
            device=work.device,
            seed=variant.calibration.seed if variant.calibration else DEFAULT_SEED,
            trust_remote_code=variant.model.trust_remote_code,
            report=clock.report,
            blocks=blocks,
        )
        facts = quantizer(variant.scheme.tool).quantize(job)
        _check_result(folder, rehearsal=_is_rehearsal(work))
        record = _metadata(work, job, facts, seconds=clock.seconds(), folder=folder)
        text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False)
        (folder / METADATA_FILE).write_text(text + "\n", encoding="utf-8")
        _share(folder)
    measured = ("seconds", "peak_memory_bytes", "bytes_on_disk", "device", "versions")
    attempt.update(phase="done", facts={name: record[name] for name in measured})


def _is_rehearsal(work: QuantizeWork) -> bool:
    return work.variant.scheme.tool == "synthetic"


def digest_of_checkpoint(folder: Path) -> str:
    """SHA-256 over names and contents of all that a checkpoint is: every file but the one with times in it."""
    total = hashlib.sha256()
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        if path.name != METADATA_FILE:
            total.update(f"{path.relative_to(folder)}\0{digest_of_file(path)}\n".encode())
    return total.hexdigest()


class PhaseClock:
    """Books time on phases, and passes on what it is told at most every two seconds and whenever the phase changes."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._booked: dict[str, float] = {}
        self._phase: str | None = None
        self._since = self._shown = time.monotonic()

    def report(self, text: str) -> None:
        """Note what is done now; the first word is the phase."""
        phase = text.partition(" ")[0]
        moment = time.monotonic()
        if phase != self._phase:
            self._book(moment)
            self._phase = phase
        elif moment - self._shown < REPORT_INTERVAL_S:
            return
        self._shown = moment
        self._show(text)

    def seconds(self) -> dict[str, float]:
        """Seconds by phase, until now."""
        self._book(time.monotonic())
        return {phase: round(seconds, 3) for phase, seconds in self._booked.items()}

    def _book(self, moment: float) -> None:
        if self._phase is not None:
            self._booked[self._phase] = self._booked.get(self._phase, 0.0) + moment - self._since
        self._since = moment


def _check_versions(planned: Versions) -> None:
    for name, version in planned:
        found = installed_versions([name]).get(name)
        if found != version.partition("+")[0]:
            raise SetupError(
                f"This environment has {name} {found or 'not at all'}, but the run was planned with {version}: "
                f"make the environment again, or submit the manifest again."
            )


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Versions of those of `distributions` that are installed, without local suffixes such as '+cpu'."""
    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return found


def _versions(variant: Variant) -> dict[str, str]:
    return installed_versions({*RECORDED_VERSIONS, *(name for name, _ in variant.versions)})


def _check_base(base: Path, work: QuantizeWork) -> None:
    model, scheme = work.variant.model, work.variant.scheme
    if not (base / "config.json").is_file():
        raise SetupError(f"{base}: no config.json of {model.id} is there: stage the manifest, or correct models.path.")
    if not any((base / name).is_file() for name in TOKENIZER_MARKS):
        raise SetupError(f"{base}: the checkpoint of {model.id} has no tokenizer: add its tokenizer files.")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise UserInputError(
            f"'{scheme.name}' cannot quantize {model.id}: {base} is quantized already: name an unquantized checkpoint."
        )
    refusal = check_divisibility(scheme, config, model.id.rsplit("/", 1)[-1])
    if refusal:
        raise UserInputError(refusal)


def _check_result(folder: Path, *, rehearsal: bool) -> None:
    """A tool's word is not enough: what it left must at least be all there."""
    lacks = [name for name in ("config.json", "*.safetensors") if not any(folder.glob(name))]
    if not rehearsal and not any((folder / name).is_file() for name in TOKENIZER_MARKS):
        lacks.append("tokenizer")
    if lacks:
        raise WorkFailed(f"The quantizing tool ended, but left no {' and no '.join(lacks)}: read the unit's log.")


def _metadata(
    work: QuantizeWork, job: QuantizeJob, facts: Mapping[str, Any], *, seconds: dict[str, float], folder: Path
) -> dict[str, Any]:
    variant = work.variant
    return {
        **facts,
        "schema": METADATA_SCHEMA,
        "address": variant.address,
        "id": variant.id,
        "variant": asdict(variant),
        "seed": job.seed,
        "versions": _versions(variant),
        "seconds": seconds,
        # ru_maxrss is in KiB on Linux, the one system that Slurm's nodes run.
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "bytes_on_disk": sum(item.stat().st_size for item in folder.rglob("*") if item.is_file()),
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "created": now(),
    }


def _share(folder: Path) -> None:
    """Give every file the permissions that a new file has: safetensors makes its own readable by their owner alone."""
    fresh = (folder / METADATA_FILE).stat().st_mode
    for item in folder.rglob("*"):
        if item.is_file():
            item.chmod(fresh)
