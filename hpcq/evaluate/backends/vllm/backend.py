"""The vLLM back end: lm-eval's requests through vLLM's engine (0.32), with every shared prefix computed once.

Knows the work, and how requests become jobs for the engine. Must not know tasks, shards or files other than the
checkpoint.

vLLM batches whatever there is to do, and how a number is rounded depends on its batch: the same request may be answered
with other last bits beside other requests.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.work import EvaluateWork
from hpcq.evaluate.backends.vllm import start
from hpcq.evaluate.backends.vllm.engine_loop import Flow, Job
from hpcq.evaluate.backends.vllm.jobs import Answers, Sharing, generate_job, score_jobs
from hpcq.evaluate.backends.vllm.root_cause import RootCause
from hpcq.evaluate.backends.vllm.self_check import TEXT, probe, shapes, tolerance_of
from hpcq.evaluate.backends.vllm.tokens import Encoder
from hpcq.evaluate.requests import GENERATE, Request
from hpcq.store import RequestKey, Response

OPTIONS = ("add_bos_token", "max_length", "prefix_sharing")
"""What `EvaluateWork.options` may set: lm-eval's add_bos_token, max_length (tokens of prompt and answer), and whether
prefixes are shared."""
ENGINE = (
    "block_size",
    "enforce_eager",
    "gpu_memory_utilization",
    "kv_cache_gib",
    "max_num_batched_tokens",
    "max_num_seqs",
    "pipeline_parallel_size",
    "tensor_parallel_size",
)
"""What `EvaluateWork.engine` may set: vLLM's engine arguments of these names, and its kv_cache_memory_bytes in GiB."""

_GIB = 2**30
_REASON_CHARACTERS = 400
_LOG = logging.getLogger(__name__)


class VllmBackend:
    """A checkpoint on the GPUs of this node and of those beside it, or on their CPUs."""

    def __init__(self, work: EvaluateWork) -> None:
        for field, pairs, known in (("options", work.options, OPTIONS), ("engine", work.engine, ENGINE)):
            unknown = [name for name, _ in pairs if name not in known]
            if unknown:
                raise UserInputError(
                    f"evaluate.{field}: the vllm back end has no {unknown[0]!r}; it has {', '.join(known)}."
                )
        self._work = work
        self._options = dict(work.options)
        self._engine: Any = None
        self._encoder: Encoder
        self._flow: Flow
        self._sharing: Sharing
        self._tolerance = 0.0
        self._difference = 0.0
        self._asked_tokens = 0

    def load(self) -> None:
        """Start the engine, and find out whether prefixes can be shared exactly."""
        work, on_gpu = self._work, start.has_gpu()
        if work.device == ("cpu" if on_gpu else "cuda"):
            there = "are GPUs" if on_gpu else "is no GPU"
            raise SetupError(
                f"evaluate.device: {work.device!r} is asked for, and there {there} here."
                " Use 'auto': vLLM computes on what it was built for."
            )
        self._engine, self._encoder = self._start()
        self._flow = Flow(self._engine)
        dtype = str(self._engine.vllm_config.model_config.dtype).removeprefix("torch.")
        self._tolerance = tolerance_of(dtype, is_quantized=work.variant.scheme.is_quantized)
        with RootCause():
            self._sharing = self._find_sharing()

    def join(self) -> None:
        """Compute what the engine on node 0 says, until a process of it here ends."""
        with self._starting():
            start.join(**self._settings())

    def stream(
        self, pieces: Sequence[Sequence[Request]], known: Container[RequestKey] = ()
    ) -> Iterator[tuple[Request, Response]]:
        """Every request of every piece whose key is not in `known`, with its response, as they are finished.

        A piece's requests are of one task, kind and generation arguments. Pieces whose requests begin alike should
        stand side by side. The engine goes on from one to the next without a pause.
        """
        with RootCause():
            for answers in self._flow.run(self._scoring(pieces, known), self._generating(pieces, known)):
                self._asked_tokens += answers.asked_tokens
                yield from answers.rows

    def describe(self) -> dict[str, str | int | float]:
        """The device, how the engine was set up, and whether prefixes are shared; where they are not, why.

        varies: by how much a log-likelihood may differ when the same request is answered beside others.
        """
        return {
            "prefix_sharing": self._sharing.why_not or "exact",
            "prefix_sharing_difference": self._difference,
            "varies": self._tolerance,
            **start.describe(self._engine),
        }

    def counts(self) -> dict[str, int]:
        """Tokens of the log-likelihood requests so far, each in full, and how many the engine computed for them."""
        return {
            "asked_tokens": self._asked_tokens,
            "computed_tokens": self._flow.prompt_tokens - self._flow.cached_tokens,
        }

    def _start(self) -> tuple[Any, Encoder]:
        from vllm.tokenizers import get_tokenizer

        add_bos = self._options.get("add_bos_token")
        bos = {} if add_bos is None else {"add_bos_token": bool(add_bos)}
        with self._starting():
            engine = start.start(**self._settings())
            tokenizer = get_tokenizer(self._work.checkpoint_path, **self._source(), **bos)
        length = int(engine.vllm_config.model_config.max_model_len)
        return engine, Encoder(tokenizer, max_length=length, add_bos_token=bos.get("add_bos_token"))

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """What vLLM raises where it does not start, as a sentence with the checkpoint and the cure."""
        path = self._work.checkpoint_path
        try:
            with RootCause():
                yield
        except OSError as error:
            first = (str(error).splitlines() or [""])[0].rstrip(".")
            raise SetupError(f"{path}: vLLM cannot load it ({first}).") from error
        except ValueError as error:
            # What vLLM raises of a model that it does not know, and of settings that do not fit it or this machine.
            said = " ".join(str(error).split()).partition(" [type=")[0][:_REASON_CHARACTERS]
            raise UserInputError(
                f"{path}: vLLM does not start with it as evaluate.max_length and evaluate.engine say;"
                f" its reason: {said}"
            ) from error

    def _settings(self) -> dict[str, Any]:
        """What the engine is started with, on every node."""
        work = self._work
        settings: dict[str, Any] = dict(work.engine)
        if "kv_cache_gib" in settings:
            settings["kv_cache_memory_bytes"] = int(settings.pop("kv_cache_gib") * _GIB)
        return {
            "batch_share": work.batch_share,
            "place": work.place,
            "model": work.checkpoint_path,
            "dtype": work.dtype,
            "seed": work.seed,
            "max_model_len": self._options.get("max_length"),
            **self._source(),
            **settings,
        }

    def _source(self) -> dict[str, Any]:
        """Which of a model's checkpoints, and whether its code may run."""
        model = self._work.variant.model
        source: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
        if not Path(self._work.checkpoint_path).is_dir():
            source["revision"] = model.revision or "main"
        return source

    def _scoring(self, pieces: Sequence[Sequence[Request]], known: Container[RequestKey]) -> Iterator[Job[Answers]]:
        for piece in pieces:
            missing = [request for request in piece if request.kind != GENERATE and request.key not in known]
            if missing:
                yield from score_jobs(missing, self._encoder, self._sharing)

    def _generating(self, pieces: Sequence[Sequence[Request]], known: Container[RequestKey]) -> Iterator[Job[Answers]]:
        for piece in pieces:
            for request in piece:
                if request.kind == GENERATE and request.key not in known:
                    yield generate_job(request, self._encoder, self._work.seed, self._sharing)

    def _find_sharing(self) -> Sharing:
        """Share prefixes where that is wanted, possible and exact; say aloud where it is not."""
        config = self._engine.vllm_config
        sharing = Sharing(least=int(config.cache_config.block_size))
        if not self._options.get("prefix_sharing", True):
            return Sharing(least=sharing.least, why_not="switched off")
        if not config.cache_config.enable_prefix_caching:
            sharing = Sharing(least=sharing.least, why_not="vLLM keeps no prefixes of this model")
        else:
            [tokens] = self._encoder.encode([TEXT])
            pairs = shapes(tokens, sharing.least, config.model_config.max_model_len)
            # A flow of its own: what the probe computes is none of the work's.
            sharing, self._difference = probe(Flow(self._engine), pairs, sharing, self._tolerance)
        if sharing.why_not:
            _LOG.warning("Every prompt is computed in full: prefixes are not shared, because %s.", sharing.why_not)
        return sharing
