"""Quantize worker: creates the checkpoint of one unit, with a metadata file about its origin."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcq.catalog.checkpoint_formats import find_declaration
from hpcq.catalog.checkpoint_problems import has_tokenizer, is_equal_tensor
from hpcq.catalog.safetensors_headers import TensorHeader, headers_of
from hpcq.catalog.weight_files import weight_files
from hpcq.core.attempts import Attempt, utc_now
from hpcq.core.checkpoint_files import METADATA_FILE
from hpcq.core.digests import digest_of_model, rename_in_cache
from hpcq.core.environments import NAME_VARIABLE, PACKAGE_VARIABLE
from hpcq.core.errors import WorkerError
from hpcq.core.files import committed_folder, digest_of_file
from hpcq.core.versions import check_versions, installed_versions
from hpcq.core.work_records import SYNTHETIC, QuantizeWork, Variant
from hpcq.quantize.base_checkpoint import check_base
from hpcq.quantize.block_store import BLOCKS_SUFFIX, BlockStore
from hpcq.quantize.checkpoint_lock import LockOwner, lock_checkpoint
from hpcq.quantize.interface import QuantizeJob, make_quantizer

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


def quantize(work: QuantizeWork, attempt: Attempt) -> None:
    """Create the checkpoint of `work`. Return at once if it exists: a checkpoint folder that exists is complete.

    Raises:
        UserInputError: The scheme does not fit the model, or the tool does not support it.
        SetupError: The base checkpoint, the calibration text or the tools are not the planned ones.
        StorageError: The disk is full, or the folder is not writable.
        WorkerError: The tool returned without a complete checkpoint.
    """
    path = Path(work.checkpoint_path)
    if not path.is_dir():
        check_versions(work.variant.versions)
        if not _is_synthetic(work):
            check_base(work.variant)
    timer = PhaseTimer(lambda phase: attempt.update(phase=phase))
    with lock_checkpoint(path, LockOwner.from_attempt(attempt.record), timer.report) as has_lock:
        if has_lock:
            _create_checkpoint(work, attempt, timer)
        else:
            attempt.update(phase="checkpoint already exists", facts={"existed": True})
    shutil.rmtree(_blocks_folder(path), ignore_errors=True)


def _blocks_folder(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + BLOCKS_SUFFIX)


def _create_checkpoint(work: QuantizeWork, attempt: Attempt, timer: PhaseTimer) -> None:
    variant, path = work.variant, Path(work.checkpoint_path)
    blocks = BlockStore(
        _blocks_folder(path),
        {"address": variant.address, "versions": _versions(variant)},
        lambda store: attempt.update(
            committed=store.committed, facts={"blocks_committed": store.committed, "blocks_restored": store.restored}
        ),
    )
    with committed_folder(path) as folder:
        job = QuantizeJob(
            # A rehearsal needs no base: the path that it gets does not exist.
            base=Path(variant.model.path or path / "no-base-checkpoint"),
            output=folder,
            scheme=variant.scheme,
            calibration=variant.calibration,
            device=work.device,
            seed=variant.calibration.seed if variant.calibration else DEFAULT_SEED,
            trust_remote_code=variant.model.trust_remote_code,
            max_fallback_share=work.max_fallback_share,
            report=timer.report,
            blocks=blocks,
        )
        facts = make_quantizer(variant.scheme.tool).quantize(job)
        _check_result(folder, needs_tokenizer=not _is_synthetic(work))
        if not _is_synthetic(work):
            _check_changed(job.base, folder)
            timer.report("hashing")
            facts = {**facts, "digest": digest_of_model(folder, ignored=(METADATA_FILE,))}
        metadata = _metadata(work, job, facts, seconds=timer.seconds(), folder=folder)
        text = json.dumps(metadata, indent=1, sort_keys=True, ensure_ascii=False)
        (folder / METADATA_FILE).write_text(text + "\n", encoding="utf-8")
        _widen_permissions(folder)
    rename_in_cache(folder, path)
    reported = ("seconds", "peak_memory_bytes", "bytes_on_disk", "device", "versions")
    attempt.update(phase="done", facts={name: metadata[name] for name in reported})


def _is_synthetic(work: QuantizeWork) -> bool:
    return work.variant.scheme.tool == SYNTHETIC


def digest_of_checkpoint(folder: Path) -> str:
    """Return the SHA-256 over names and contents of a checkpoint's files, except the metadata file, which has times."""
    total = hashlib.sha256()
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        if path.name != METADATA_FILE:
            total.update(f"{path.relative_to(folder)}\0{digest_of_file(path)}\n".encode())
    return total.hexdigest()


class PhaseTimer:
    """Measures the time of each phase, and forwards reports: on a change of phase, else every two seconds at most."""

    def __init__(self, forward: Callable[[str], None]) -> None:
        self._forward = forward
        self._seconds: dict[str, float] = {}
        self._phase: str | None = None
        self._measured_s = self._forwarded_s = time.monotonic()

    def report(self, text: str) -> None:
        """Report the current step; its first word is the phase."""
        phase = text.partition(" ")[0]
        now_s = time.monotonic()
        if phase != self._phase:
            self._add(now_s)
            self._phase = phase
        elif now_s - self._forwarded_s < REPORT_INTERVAL_S:
            return
        self._forwarded_s = now_s
        self._forward(text)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase so far."""
        self._add(time.monotonic())
        return {phase: round(seconds, 3) for phase, seconds in self._seconds.items()}

    def _add(self, now_s: float) -> None:
        if self._phase is not None:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now_s - self._measured_s
        self._measured_s = now_s


def _versions(variant: Variant) -> dict[str, str]:
    return installed_versions({*RECORDED_VERSIONS, *(name for name, _ in variant.versions)})


def _check_result(folder: Path, *, needs_tokenizer: bool) -> None:
    """Check that the tool left a complete checkpoint: that it returned is not sufficient."""
    missing = [name for name in ("config.json", "*.safetensors") if not any(folder.glob(name))]
    if needs_tokenizer and not has_tokenizer(folder):
        missing.append("tokenizer")
    if missing:
        raise WorkerError(f"The quantization tool returned without {' and '.join(missing)}: see the unit's log.")


def _check_changed(base: Path, folder: Path) -> None:
    """Check that the tool has changed a weight, or at least declares how to quantize while the model is loaded."""
    if find_declaration(folder) is not None or not (stored := _tensors(base)):
        return
    made = _tensors(folder)
    if all(name in made and is_equal_tensor(one, made[name]) for name, one in stored.items()):
        raise WorkerError(
            "The quantization tool returned the weights of the base model unchanged, and declares no quantization in"
            " config.json: nothing was quantized."
        )


def _tensors(folder: Path) -> dict[str, tuple[Path, TensorHeader]]:
    """Return file and header of each tensor in the safetensors files that are loaded."""
    files = [path for path in weight_files(folder) if path.suffix == ".safetensors"]
    return {header.name: (path, header) for path in files for header in headers_of(path)}


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
        "environment": os.environ.get(NAME_VARIABLE, ""),
        "package": os.environ.get(PACKAGE_VARIABLE, ""),
        "seconds": seconds,
        # ru_maxrss is in KiB on Linux.
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        # A link has its own size: bitsandbytes' checkpoints link to the weights of the base.
        "bytes_on_disk": sum(item.lstat().st_size for item in folder.rglob("*") if item.is_file()),
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "created": utc_now(),
    }


def _widen_permissions(folder: Path) -> None:
    """Give every file the mode of a new file, according to the umask: safetensors creates files with mode 0600."""
    mode = (folder / METADATA_FILE).stat().st_mode
    for item in folder.rglob("*"):
        if item.is_file() and not item.is_symlink():  # a link's target belongs to the base
            item.chmod(mode)
