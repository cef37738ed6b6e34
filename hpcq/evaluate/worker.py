"""Evaluation worker: answers one shard of a variant's requests and commits the responses to the store.

It can be killed at any time and run again: responses in a committed segment are not computed twice. It scores nothing.
"""

from __future__ import annotations

import logging
import resource
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hpcq.core.attempts import Attempt
from hpcq.core.completion_marker import write_completion_marker
from hpcq.core.errors import UserInputError, WorkerError
from hpcq.core.node_context import NodeContext
from hpcq.core.paths import segment_folders
from hpcq.core.versions import check_versions
from hpcq.core.work_records import EvaluateWork
from hpcq.evaluate.backends.interface import Backend, DiagnosingBackend, MultiNodeBackend, SharingBackend, make_backend
from hpcq.evaluate.chat_templates import load_chat_template
from hpcq.evaluate.declared_quantization import check_declared_quantization
from hpcq.evaluate.panel_windows import reserved_passages
from hpcq.evaluate.prefix.check_sample import check_sample
from hpcq.evaluate.prefix.request_chunks import chunks_of_shard, partition
from hpcq.evaluate.prefix.tokenization import UnscorableError
from hpcq.evaluate.provenance import segment_provenance
from hpcq.evaluate.request_set import build_request_set
from hpcq.evaluate.requests import GENERATE, Request
from hpcq.evaluate.resharding import answered_snapshot
from hpcq.evaluate.variant_facts import checkpoint_metadata
from hpcq.store import RequestKey, Response, SegmentWriter, load_index
from hpcq.verify.checkpoint_files import check_files, check_stop_tokens, check_unchanged
from hpcq.verify.marks import share_text
from hpcq.verify.responses import not_finite_error, response_problem

_LOG = logging.getLogger(__name__)


def evaluate(work: EvaluateWork, attempt: Attempt) -> None:
    """Answer the shard's requests that have no response in the run, and commit the responses and the completion marker.

    Raises:
        HpcqError: the tools, the tasks, the checkpoint or the file system do not permit it; the message has the reason.
    """
    if not work.is_synthetic:
        check_versions(work.versions)
        if Path(work.checkpoint_path).is_dir():
            check_files(Path(work.checkpoint_path), trust_remote_code=work.variant.model.trust_remote_code)
        _check_planned_files(work)
    check_declared_quantization(work)
    attempt.update(phase="building requests")
    request_set = build_request_set(work.tasks, is_synthetic=work.is_synthetic, chat=load_chat_template(work))
    _check_stop_tokens(work, request_set.requests)
    _check_held_out(work)
    addresses = request_set.addresses(work)
    answered = _answered_requests(work, addresses)
    snapshot = answered_snapshot(work, (request.key for request in request_set.requests), answered)
    chunks = partition(request_set.requests, rows=work.batch_size, shares_prefixes=work.shares_prefixes)
    mine = [chunk.requests for chunk in chunks_of_shard(chunks, work.shard, snapshot)]
    total = sum(map(len, mine))
    missing = [chunk for chunk in mine if any(request.key not in answered for request in chunk)]
    restored = sum(request.key in answered for chunk in mine for request in chunk)
    attempt.update(phase="loading", total=total, restored=restored)
    if missing:
        _answer(work, attempt, missing, answered, addresses, check_sample(request_set.requests))
    write_completion_marker(
        Path(work.segments_path), address=work.address, requests=total, attempt=attempt.record.attempt
    )
    attempt.update(phase=None, facts={"peak_memory_bytes": _peak_memory_bytes()})


def join(work: EvaluateWork, node_context: NodeContext, batch_share: float) -> None:
    """Serve the rank-0 backend from this node until the process is terminated. Does not access the store.

    Args:
        work: The evaluation.
        node_context: Rank and addresses of this node.
        batch_share: Fraction of the usual batch, the same as on rank 0.

    Raises:
        HpcqError: the tools do not permit it, or a process of the backend on this node exited.
    """
    if not work.is_synthetic:
        check_versions(work.versions)
    backend = make_backend(replace(work, batch_share=batch_share, node_context=node_context))
    if not isinstance(backend, MultiNodeBackend):
        raise UserInputError(
            f"evaluate.backend: {work.backend!r} runs on one node only, but the unit has {node_context.nnodes} nodes."
        )
    backend.run_follower()


def _answered_requests(work: EvaluateWork, addresses: dict[str, str]) -> set[RequestKey]:
    """Return the requests that the run's segments answer, from any shard.

    A request with conflicting responses counts as answered: a third response would not settle the conflict.
    """
    index = load_index(segment_folders(Path(work.segments_path).parent, work.variant), expect=addresses)
    return {*index.responses, *(conflict.key for conflict in index.conflicts)}


def _answer(
    work: EvaluateWork,
    attempt: Attempt,
    chunks: Sequence[Sequence[Request]],
    answered: set[RequestKey],
    addresses: dict[str, str],
    sample: Sequence[Request],
) -> None:
    backend = make_backend(replace(work, batch_share=attempt.batch_share, node_context=attempt.start_followers()))
    began_s = time.monotonic()
    backend.load()
    _check_planned_files(work)  # they may have been replaced while they were read
    if isinstance(backend, SharingBackend):
        backend.check(sample)
    loaded_s = time.monotonic()
    description = backend.describe()
    attempt.update(phase="answering", facts={"load_seconds": round(loaded_s - began_s, 3), **description})
    writer = SegmentWriter(
        Path(work.segments_path),
        attempt=attempt.record.attempt,
        addresses=addresses,
        provenance=segment_provenance(work, attempt, description),
        counts=backend.token_counts,
        flush_interval_s=work.flush_interval_s,
    )
    attempt.on_termination_notice(writer.flush)
    written, cut = Counter[str](), Counter[str]()
    with writer:
        for request, response in _stream(backend, chunks, answered):
            if request.key not in answered:
                _check_response(work, backend, request, response)
                writer.add(request.key, response)
                written[request.key.task] += 1
                cut[request.key.task] += bool(response.cut_tokens)
    for task, count in cut.items():
        if count:
            prompts = share_text(count, written[task], "prompts")
            _LOG.warning("%s: %s were cut from the left to fit the model's maximum length.", task, prompts)
    seconds = time.monotonic() - loaded_s
    attempt.update(
        facts={
            "answered": written.total(),
            "cut_prompts": cut.total(),
            "answer_seconds": round(seconds, 3),
            "requests_per_second": written.total() / seconds,
            **backend.token_counts(),
        }
    )


def _stream(
    backend: Backend, chunks: Sequence[Sequence[Request]], answered: set[RequestKey]
) -> Iterator[tuple[Request, Response]]:
    """Yield what the backend yields; name the request that it cannot score."""
    try:
        yield from backend.stream(chunks, answered)
    except UnscorableError as error:
        keys = [one.key for chunk in chunks for one in chunk if one.arguments == error.texts]
        if not keys:
            raise
        key = keys[0]
        raise WorkerError(f"{key.task} document {key.doc_id} request {key.request_index}: {error}") from error


def _check_planned_files(work: EvaluateWork) -> None:
    """Check that the model's files are those that the address of the responses stands for.

    They are those of the plan, or those of the checkpoint that hpcq made.

    Raises:
        SetupError: They are not.
    """
    folder = Path(work.checkpoint_path)
    if work.is_synthetic or not folder.is_dir():
        return
    source = work.variant.checkpoint or work.variant.model
    if source.path == work.checkpoint_path:
        check_unchanged(folder, name=source.id, digest=source.digest)
    else:
        check_unchanged(folder, name=work.variant.id, digest=checkpoint_metadata(folder).get("digest"), is_made=True)


def _check_stop_tokens(work: EvaluateWork, requests: Sequence[Request]) -> None:
    """Check the checkpoint's stop tokens if texts are generated.

    Raises:
        SetupError: They cannot be read.
    """
    folder = Path(work.checkpoint_path)
    if not work.is_synthetic and folder.is_dir() and any(request.kind == GENERATE for request in requests):
        check_stop_tokens(folder)


def _check_held_out(work: EvaluateWork) -> None:
    """Check that the calibration of the checkpoint read no more passages than the fidelity panel leaves out.

    Raises:
        UserInputError: It read more, because its tokens are longer than `WINDOW_CHARACTERS_PER_TOKEN` on average.
    """
    for panel in (task.panel for task in work.tasks if task.panel and not work.is_synthetic):
        used = checkpoint_metadata(Path(work.checkpoint_path)).get("calibration", {}).get("passages_used", 0)
        if used and panel.reserved and used > (left_out := len(reserved_passages(panel.reserved))):
            raise UserInputError(
                f"{work.checkpoint_path}: its calibration read {used} passages, more than the {left_out} that the"
                " fidelity panel leaves out: set fidelity.dataset to another text than calibration.dataset."
            )


def _check_response(work: EvaluateWork, backend: Backend, request: Request, response: Response) -> None:
    """Check that `response` can come from a working model. It is called for all responses of all backends.

    Raises:
        NotFiniteError: It cannot.
    """
    problem = response_problem(response)
    if problem is not None:
        origin = backend.not_finite_origin(request) if isinstance(backend, DiagnosingBackend) else None
        raise not_finite_error(request.key, problem, model=work.checkpoint_path, dtype=work.dtype, origin=origin)


def _peak_memory_bytes() -> int:
    """Return the peak resident memory of this process (Linux reports it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
