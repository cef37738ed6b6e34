"""The vLLM back end: lm-eval's requests through vLLM's engine (0.32), with every shared prefix computed once.

Knows the work, and how requests become jobs for the engine. Must not know tasks, shards or files other than the
checkpoint.

vLLM batches whatever there is to do, and how a number is rounded depends on its batch: the same request may be answered
with other last bits beside other requests.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hpcq.errors import EnvironmentFault, UserInputError
from hpcq.evaluate import vllm_engine
from hpcq.evaluate.requests import GENERATE, Request
from hpcq.evaluate.vllm_engine import Flow, Job
from hpcq.evaluate.vllm_jobs import Answers, Sharing, generate_job, score_jobs
from hpcq.evaluate.vllm_probe import QUANTIZED_TOLERANCE, TEXT, TOLERANCES, probe, shapes
from hpcq.evaluate.vllm_tokens import Encoder
from hpcq.store import Response
from hpcq.units import EvaluateWork

ENGINE_OPTIONS = (
    "block_size",
    "enforce_eager",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "max_num_batched_tokens",
    "max_num_seqs",
    "tensor_parallel_size",
)
OPTIONS = ("add_bos_token", "max_length", "prefix_sharing", *ENGINE_OPTIONS)
"""What `EvaluateWork.options` may set: vLLM's engine arguments of these names, lm-eval's add_bos_token and max_length
(tokens of prompt and answer), and whether prefixes are shared."""

_LOG = logging.getLogger(__name__)
# The CPU's kernels take multiples of 32 (vLLM 0.32), whose default of 128 would compute up to 127 shared tokens again.
_CPU_BLOCK_SIZE = 32


class VllmBackend:
    """A checkpoint on the GPUs of this node, or on its CPU."""

    def __init__(self, work: EvaluateWork) -> None:
        unknown = [name for name, _ in work.options if name not in OPTIONS]
        if unknown:
            raise UserInputError(
                f"evaluate.options: the vllm back end has no {unknown[0]!r}; it has {', '.join(OPTIONS)}."
            )
        self._work = work
        self._options = dict(work.options)
        self._engine: Any = None
        self._encoder: Encoder
        self._flow: Flow
        self._sharing: Sharing
        self._difference = 0.0

    def load(self) -> None:
        """Start the engine, and find out whether prefixes can be shared exactly."""
        from vllm.tokenizers import get_tokenizer

        work, on_gpu = self._work, vllm_engine.has_gpu()
        if work.device == ("cpu" if on_gpu else "cuda"):
            there = "are GPUs" if on_gpu else "is no GPU"
            raise EnvironmentFault(
                f"evaluate.device: {work.device!r} is asked for, and there {there} here."
                " Use 'auto': vLLM computes on what it was built for."
            )
        source: dict[str, Any] = {"trust_remote_code": work.variant.model.trust_remote_code}
        if not Path(work.checkpoint_path).is_dir():
            source["revision"] = work.variant.model.revision or "main"
        settings = {name: value for name, value in self._options.items() if name in ENGINE_OPTIONS}
        if not on_gpu:
            settings.setdefault("block_size", _CPU_BLOCK_SIZE)
        add_bos = self._options.get("add_bos_token")
        bos = {} if add_bos is None else {"add_bos_token": bool(add_bos)}
        try:
            self._engine = vllm_engine.start(
                on_gpu=on_gpu,
                model=work.checkpoint_path,
                dtype=work.dtype,
                seed=work.seed,
                max_model_len=self._options.get("max_length"),
                **source,
                **settings,
            )
            tokenizer = get_tokenizer(work.checkpoint_path, **source, **bos)
        except OSError as error:
            first = (str(error).splitlines() or [""])[0].rstrip(".")
            raise EnvironmentFault(f"{work.checkpoint_path}: vLLM cannot load it ({first}).") from error
        self._flow = Flow(self._engine)
        self._encoder = Encoder(
            tokenizer,
            max_length=int(self._engine.vllm_config.model_config.max_model_len),
            add_bos_token=bos.get("add_bos_token"),
        )
        self._sharing = self._find_sharing()

    def stream(self, pieces: Sequence[Sequence[Request]]) -> Iterator[tuple[Request, Response]]:
        """Every request of every piece with its response, as they are finished.

        A piece's requests are of one task, kind and generation arguments. Pieces whose requests begin alike should
        stand side by side. The engine goes on from one to the next without a pause.
        """
        for answers in self._flow.run(self._scoring(pieces), self._generating(pieces)):
            yield from answers

    def answer(self, batch: Sequence[Request]) -> list[Response]:
        """One response a request, in order."""
        found = dict(self.stream([batch]))
        return [found[request] for request in batch]

    def describe(self) -> dict[str, str | int | float]:
        """The device, how the engine was set up, and whether prefixes are shared; where they are not, why."""
        return {
            "prefix_sharing": self._sharing.why_not or "exact",
            "prefix_sharing_difference": self._difference,
            **vllm_engine.describe(self._engine),
        }

    def counts(self) -> dict[str, int]:
        """Tokens of all prompts so far, and how many of them came from the cache."""
        return {"prompt_tokens": self._flow.asked_tokens, "cached_tokens": self._flow.cached_tokens}

    def _scoring(self, pieces: Sequence[Sequence[Request]]) -> Iterator[Job[Answers]]:
        for piece in pieces:
            if piece[0].kind != GENERATE:
                yield from score_jobs(piece, self._encoder, self._sharing)

    def _generating(self, pieces: Sequence[Sequence[Request]]) -> Iterator[Job[Answers]]:
        for piece in pieces:
            if piece[0].kind == GENERATE:
                yield from (generate_job(request, self._encoder, self._work.seed) for request in piece)

    def _find_sharing(self) -> Sharing:
        """Share prefixes where that is wanted, possible and exact; say aloud where it is not."""
        config = self._engine.vllm_config
        sharing = Sharing(least=int(config.cache_config.block_size))
        if not self._options.get("prefix_sharing", True):
            return Sharing(least=sharing.least, why_not="switched off")
        if not config.cache_config.enable_prefix_caching:
            sharing = Sharing(least=sharing.least, why_not="vLLM keeps no prefixes of this model")
        else:
            dtype = str(config.model_config.dtype).removeprefix("torch.")
            tolerance = TOLERANCES.get(dtype, QUANTIZED_TOLERANCE)
            if self._work.variant.scheme.is_quantized:
                tolerance = max(tolerance, QUANTIZED_TOLERANCE)
            [tokens] = self._encoder.encode([TEXT])
            pairs = shapes(tokens, sharing.least, config.model_config.max_model_len)
            sharing, self._difference = probe(self._flow, pairs, sharing, tolerance)
        if sharing.why_not:
            _LOG.warning("Every prompt is computed in full: prefixes are not shared, because %s.", sharing.why_not)
        return sharing
