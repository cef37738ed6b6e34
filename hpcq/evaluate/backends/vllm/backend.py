"""vLLM backend: lm-eval's requests through vLLM's engine (0.32), with every shared prefix computed once.

vLLM batches all requests that are in its queue, and rounding depends on the batch: the last bits of a response may
differ between runs.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.work_records import EvaluateWork
from hpcq.evaluate.backends.vllm.engine import describe_engine, has_gpu, run_headless, start_engine
from hpcq.evaluate.backends.vllm.engine_loop import EngineLoop, Job
from hpcq.evaluate.backends.vllm.engine_requests import JobResult, PrefixSharing, generate_job, score_jobs
from hpcq.evaluate.backends.vllm.root_cause import RootCause
from hpcq.evaluate.backends.vllm.self_check import SAMPLE_TEXT, check_sharing, rounding_tolerance, sample_pairs
from hpcq.evaluate.backends.vllm.tokenizer import LmEvalTokenizer
from hpcq.evaluate.requests import GENERATE, Request
from hpcq.store import RequestKey, Response

OPTION_NAMES = ("add_bos_token", "max_length", "prefix_sharing")
"""Keys of `EvaluateWork.options`: lm-eval's add_bos_token, max_length (tokens of prompt and response), and whether
prefixes are shared."""
ENGINE_OPTION_NAMES = (
    "block_size",
    "enforce_eager",
    "gpu_memory_utilization",
    "kv_cache_gib",
    "max_num_batched_tokens",
    "max_num_seqs",
    "pipeline_parallel_size",
    "tensor_parallel_size",
)
"""Keys of `EvaluateWork.engine_options`: vLLM's engine arguments of the same names, and kv_cache_gib, which is vLLM's
kv_cache_memory_bytes in GiB."""

_GIB = 2**30
_MAX_REASON_CHARACTERS = 400
_LOG = logging.getLogger(__name__)


class VllmBackend:
    """Evaluates a checkpoint with vLLM on the GPUs, or on the CPUs, of one node or of several."""

    def __init__(self, work: EvaluateWork) -> None:
        for field, pairs, known in (
            ("options", work.options, OPTION_NAMES),
            ("engine", work.engine_options, ENGINE_OPTION_NAMES),
        ):
            unknown = [name for name, _ in pairs if name not in known]
            if unknown:
                raise UserInputError(
                    f"evaluate.{field}: the vllm backend has no option {unknown[0]!r}; valid options are"
                    f" {', '.join(known)}."
                )
        self._work = work
        self._options = dict(work.options)
        self._engine: Any = None
        self._tokenizer: LmEvalTokenizer
        self._engine_loop: EngineLoop
        self._sharing: PrefixSharing
        self._tolerance = 0.0
        self._difference = 0.0
        self._asked_tokens = 0

    def load(self) -> None:
        """Start the engine and check whether prefixes can be shared exactly.

        Raises:
            SetupError: The device does not exist here, or the checkpoint cannot be read.
            UserInputError: vLLM does not support the model or the settings.
        """
        work, on_gpu = self._work, has_gpu()
        if work.device == ("cpu" if on_gpu else "cuda"):
            found = "vLLM runs on GPUs here" if on_gpu else "there is no GPU here"
            raise SetupError(
                f"evaluate.device: {work.device!r} was requested, but {found}."
                " Use 'auto': vLLM runs on the device that it was built for."
            )
        self._engine, self._tokenizer = self._start()
        self._engine_loop = EngineLoop(self._engine)
        dtype = str(self._engine.vllm_config.model_config.dtype).removeprefix("torch.")
        self._tolerance = rounding_tolerance(dtype, is_quantized=work.variant.scheme.is_quantized)
        with RootCause():
            self._sharing = self._check_prefix_sharing()

    def run_follower(self) -> None:
        """Run this node's workers of the engine on rank 0 until one of them exits.

        Raises:
            ProcessDiedError: A worker exited.
        """
        with self._startup_errors():
            run_headless(**self._engine_settings())

    def stream(
        self, chunks: Sequence[Sequence[Request]], answered: Container[RequestKey] = ()
    ) -> Iterator[tuple[Request, Response]]:
        """Yield every request whose key is not in `answered` with its response, as they complete.

        Chunks with common prefixes should be adjacent. The engine continues with the next chunk without a pause.

        Args:
            chunks: The requests of a chunk have one task, one kind and the same generation arguments.
            answered: Keys of the requests to skip.
        """
        with RootCause():
            for result in self._engine_loop.run(
                self._score_jobs(chunks, answered), self._generate_jobs(chunks, answered)
            ):
                self._asked_tokens += result.asked_tokens
                yield from result.rows

    def describe(self) -> dict[str, str | int | float]:
        """Return the device, the engine's configuration, and whether prefixes are shared, or why not.

        `varies` is the largest difference of a log-likelihood when the same request is computed in another batch.
        """
        return {
            "prefix_sharing": self._sharing.disabled_reason or "exact",
            "prefix_sharing_difference": self._difference,
            "varies": self._tolerance,
            **describe_engine(self._engine),
        }

    def token_counts(self) -> dict[str, int]:
        """Return the tokens of all log-likelihood requests so far, and how many of them the engine computed."""
        return {
            "asked_tokens": self._asked_tokens,
            "computed_tokens": self._engine_loop.prompt_tokens - self._engine_loop.cached_tokens,
        }

    def _start(self) -> tuple[Any, LmEvalTokenizer]:
        from vllm.tokenizers import get_tokenizer

        add_bos = self._options.get("add_bos_token")
        bos = {} if add_bos is None else {"add_bos_token": bool(add_bos)}
        with self._startup_errors():
            engine = start_engine(**self._engine_settings())
            tokenizer = get_tokenizer(self._work.checkpoint_path, **self._checkpoint_settings(), **bos)
        length = int(engine.vllm_config.model_config.max_model_len)
        return engine, LmEvalTokenizer(tokenizer, max_length=length, add_bos_token=bos.get("add_bos_token"))

    @contextmanager
    def _startup_errors(self) -> Iterator[None]:
        """Translate vLLM's start-up errors to messages with the checkpoint and the settings to fix."""
        path = self._work.checkpoint_path
        try:
            with RootCause():
                yield
        except OSError as error:
            first = (str(error).splitlines() or [""])[0].rstrip(".")
            raise SetupError(f"{path}: vLLM cannot load it ({first}).") from error
        except ValueError as error:
            # vLLM raises it for an unsupported model, and for settings that do not fit the model or this machine.
            reason = " ".join(str(error).split()).partition(" [type=")[0][:_MAX_REASON_CHARACTERS]
            raise UserInputError(
                f"{path}: vLLM does not start with the current evaluate.max_length and evaluate.engine: {reason}"
            ) from error

    def _engine_settings(self) -> dict[str, Any]:
        """Return the engine's settings, the same on every node except for `node_context`."""
        work = self._work
        settings: dict[str, Any] = dict(work.engine_options)
        if "kv_cache_gib" in settings:
            settings["kv_cache_memory_bytes"] = int(settings.pop("kv_cache_gib") * _GIB)
        return {
            "batch_share": work.batch_share,
            "node_context": work.node_context,
            "model": work.checkpoint_path,
            "dtype": work.dtype,
            "seed": work.seed,
            "max_model_len": self._options.get("max_length"),
            **self._checkpoint_settings(),
            **settings,
        }

    def _checkpoint_settings(self) -> dict[str, Any]:
        """Return the revision of a checkpoint on the hub, and whether its code may run."""
        model = self._work.variant.model
        settings: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
        if not Path(self._work.checkpoint_path).is_dir():
            settings["revision"] = model.revision or "main"
        return settings

    def _score_jobs(
        self, chunks: Sequence[Sequence[Request]], answered: Container[RequestKey]
    ) -> Iterator[Job[JobResult]]:
        for chunk in chunks:
            missing = [request for request in chunk if request.kind != GENERATE and request.key not in answered]
            if missing:
                yield from score_jobs(missing, self._tokenizer, self._sharing)

    def _generate_jobs(
        self, chunks: Sequence[Sequence[Request]], answered: Container[RequestKey]
    ) -> Iterator[Job[JobResult]]:
        for chunk in chunks:
            for request in chunk:
                if request.kind == GENERATE and request.key not in answered:
                    yield generate_job(request, self._tokenizer, self._work.seed, self._sharing)

    def _check_prefix_sharing(self) -> PrefixSharing:
        """Return whether to share prefixes: if requested, supported and exact. Log a warning if it is not possible."""
        config = self._engine.vllm_config
        min_tokens = int(config.cache_config.block_size)
        if not self._options.get("prefix_sharing", True):
            return PrefixSharing(min_tokens=min_tokens, disabled_reason="switched off")
        if not config.cache_config.enable_prefix_caching:
            reason = "vLLM does not cache prefixes of this model"
            sharing = PrefixSharing(min_tokens=min_tokens, disabled_reason=reason)
        else:
            [tokens] = self._tokenizer.encode([SAMPLE_TEXT])
            pairs = sample_pairs(tokens, min_tokens, config.model_config.max_model_len)
            # A separate loop: tokens of the self-check must not count in `token_counts`.
            sharing, self._difference = check_sharing(
                EngineLoop(self._engine), pairs, PrefixSharing(min_tokens=min_tokens), self._tolerance
            )
        if sharing.disabled_reason:
            _LOG.warning("Prefix sharing is disabled: %s. Every prompt is computed in full.", sharing.disabled_reason)
        return sharing
