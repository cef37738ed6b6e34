"""vLLM backend: lm-eval's requests through vLLM's engine (0.32), with every shared prefix computed once.

vLLM batches all requests that are in its queue, and rounding depends on the batch: the last bits of a response may
differ between runs.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcq.catalog.generation_settings import GenerationSettings
from hpcq.catalog.weight_files import unindexed_weights
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.sentences import first_line
from hpcq.core.work_records import EvaluateWork
from hpcq.evaluate.backends.appended_tokens import appended_tokens, remove_appended_tokens
from hpcq.evaluate.backends.generation import check_end_token, checkpoint_generation_settings
from hpcq.evaluate.backends.vllm.cpu_features import INT8_KERNEL, int8_saturates
from hpcq.evaluate.backends.vllm.engine import TOKENIZER_MODE, describe_engine, has_gpu, run_headless, start_engine
from hpcq.evaluate.backends.vllm.engine_loop import EngineLoop, Job
from hpcq.evaluate.backends.vllm.engine_requests import JobResult, PrefixSharing, generate_job, score_jobs
from hpcq.evaluate.backends.vllm.panel import window_job
from hpcq.evaluate.backends.vllm.quantization import check_tensors, describe_quantization
from hpcq.evaluate.backends.vllm.root_cause import RootCause
from hpcq.evaluate.backends.vllm.self_check import (
    SAMPLE_TEXT,
    check_sharing,
    last_tokens_read,
    rounding_type,
    sample_pairs,
    scores_of_single_tokens,
)
from hpcq.evaluate.backends.vllm.tokenizer import LmEvalTokenizer, Pair
from hpcq.evaluate.prefix.agreement import Agreement, largest_rounding
from hpcq.evaluate.requests import GENERATE, TOP_LOGPROBS, Request
from hpcq.store import TOLERANCE_ATTRIBUTE, RequestKey, Response
from hpcq.verify.config_errors import config_errors
from hpcq.verify.loaded_model import equal_scores_problem, tokenizer_problem

OPTION_NAMES = ("add_bos_token", "add_eos", "linear_backend", "max_length", "prefix_sharing")
"""Keys of `EvaluateWork.options`: lm-eval's add_bos_token, whether tokens that the tokenizer appends are kept, vLLM's
linear_backend, max_length (tokens of prompt and response), and whether prefixes are shared."""
ENGINE_OPTION_NAMES = (
    "block_size",
    "enable_expert_parallel",
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
        self._generation = GenerationSettings()
        self._tokenizer: LmEvalTokenizer
        self._engine_loop: EngineLoop
        self._sharing: PrefixSharing
        self._quantization: dict[str, str | int | float] = {}
        self._rounding_type = ""
        self._appended = ""
        self._agreement = Agreement()
        self._asked_tokens = 0

    def load(self) -> None:
        """Start the engine and check whether prefixes can be shared exactly.

        Raises:
            SetupError: The device does not exist here, or the checkpoint cannot be read.
            UserInputError: vLLM does not support the model or the settings, or would load other files too.
            WorkerError: vLLM does not compute the checkpoint as quantized, although the variant is, or the other way.
        """
        work, on_gpu = self._work, has_gpu()
        if work.device == ("cpu" if on_gpu else "cuda"):
            found = "vLLM runs on GPUs here" if on_gpu else "vLLM finds none here"
            planned = "CPUs" if on_gpu else "GPUs"
            raise SetupError(
                f"evaluate.device: the unit was planned on {planned}, but {found}. Remove evaluate.device: vLLM runs on"
                " the device that it was built for. Otherwise check the driver and CUDA_VISIBLE_DEVICES."
            )
        self._refuse_unindexed_weights()
        self._generation = checkpoint_generation_settings(work)
        self._engine, self._tokenizer = self._start()
        check_tensors(self._engine, work)
        self._quantization = describe_quantization(self._engine, work)
        if not on_gpu and INT8_KERNEL in str(self._quantization.get("quantization_kernels")) and int8_saturates():
            raise UserInputError(
                f"{work.checkpoint_path}: vLLM's INT8 kernel computes wrong numbers on this CPU, which has no VNNI"
                " instructions: use evaluate.backend = 'accelerate', or another CPU."
            )
        self._engine_loop = EngineLoop(self._engine)
        dtype = str(self._engine.vllm_config.model_config.dtype).removeprefix("torch.")
        self._rounding_type = rounding_type(dtype, is_quantized=work.variant.scheme.is_quantized)
        with RootCause():
            self._check_single_tokens()
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
            **self._describe_sharing(),
            "appended_tokens": self._appended,
            TOLERANCE_ATTRIBUTE: max(
                largest_rounding(self._rounding_type), self._agreement.difference, self._agreement.batch_difference
            ),
            **describe_engine(self._engine),
            **self._generation.as_facts(),
            **self._quantization,
        }

    def _describe_sharing(self) -> dict[str, str | float]:
        if self._sharing.disabled_reason:
            return {"prefix_sharing": self._sharing.disabled_reason}
        return self._agreement.as_facts(
            self._rounding_type, quantizes_activations=self._work.variant.scheme.quantizes_activations
        )

    def token_counts(self) -> dict[str, int]:
        """Return the tokens of all log-likelihood requests so far, and how many of them the engine computed."""
        return {
            "asked_tokens": self._asked_tokens,
            "computed_tokens": self._engine_loop.prompt_tokens - self._engine_loop.cached_tokens,
        }

    def _refuse_unindexed_weights(self) -> None:
        path = self._work.checkpoint_path
        others = unindexed_weights(Path(path))
        if others:
            raise UserInputError(
                f"{path}: vLLM would load {', '.join(others)} in addition to the model's weights: move these files to"
                " another folder, or use evaluate.backend = 'accelerate'."
            )

    def _start(self) -> tuple[Any, LmEvalTokenizer]:
        from transformers import AutoConfig
        from vllm.tokenizers import get_tokenizer

        with config_errors(self._work.checkpoint_path):
            AutoConfig.from_pretrained(self._work.checkpoint_path, **self._checkpoint_settings())
        add_bos = self._options.get("add_bos_token")
        bos = {} if add_bos is None else {"add_bos_token": bool(add_bos)}
        with self._startup_errors():
            engine = start_engine(**self._engine_settings())
            tokenizer = get_tokenizer(
                self._work.checkpoint_path, tokenizer_mode=TOKENIZER_MODE, **self._checkpoint_settings(), **bos
            )
        problem = tokenizer_problem(tokenizer, int(engine.vllm_config.model_config.get_vocab_size()))
        if problem:
            raise UserInputError(f"{self._work.checkpoint_path}: {problem}: copy the model's tokenizer files.")
        check_end_token(tokenizer, self._work.checkpoint_path)
        if not self._options.get("add_eos", True):
            remove_appended_tokens(tokenizer, self._work.checkpoint_path)
        self._appended = appended_tokens(tokenizer)
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
            first = first_line(error)
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
        if "linear_backend" in self._options:
            settings["linear_backend"] = self._options["linear_backend"]
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
            settings["revision"] = self._work.revision
        return settings

    def _score_jobs(
        self, chunks: Sequence[Sequence[Request]], answered: Container[RequestKey]
    ) -> Iterator[Job[JobResult]]:
        for chunk in chunks:
            missing = [request for request in chunk if request.kind != GENERATE and request.key not in answered]
            if missing and missing[0].kind == TOP_LOGPROBS:
                yield from map(self._window_job, missing)
            elif missing:
                yield from score_jobs(missing, self._tokenizer, self._sharing)

    def _window_job(self, request: Request) -> Job[JobResult]:
        config = self._engine.vllm_config.model_config
        return window_job(
            request, self._tokenizer, max_length=int(config.max_model_len), vocabulary=int(config.get_vocab_size())
        )

    def _generate_jobs(
        self, chunks: Sequence[Sequence[Request]], answered: Container[RequestKey]
    ) -> Iterator[Job[JobResult]]:
        for chunk in chunks:
            for request in chunk:
                if request.kind == GENERATE and request.key not in answered:
                    yield generate_job(
                        request,
                        self._tokenizer,
                        self._work,
                        self._sharing,
                        stop_tokens=self._generation.stop_tokens,
                    )

    def _check_single_tokens(self) -> None:
        """Check that different tokens have different log-likelihoods."""
        length = int(self._engine.vllm_config.model_config.max_model_len)
        [tokens] = self._tokenizer.encode([SAMPLE_TEXT])
        problem = equal_scores_problem(scores_of_single_tokens(EngineLoop(self._engine), tokens[: length - 1]))
        self._engine.reset_prefix_cache()
        if problem:
            raise UserInputError(f"{self._work.checkpoint_path}: {problem}: copy or download the checkpoint again.")

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
            sharing = self._checked(pairs, PrefixSharing(min_tokens=min_tokens), must_cache=True)
        _warn_if_disabled(sharing)
        return sharing

    def check(self, sample: Sequence[Request]) -> None:
        """Check whether log-likelihoods from shared prefixes are correct for requests of the run."""
        if not sample or self._sharing.disabled_reason:
            return
        encoded = self._tokenizer.encode_pairs([one.arguments for one in sample])
        pairs = [last_tokens_read(one.pair) for one in encoded]
        with RootCause():
            self._sharing = self._checked(pairs, self._sharing, must_cache=False)
        _warn_if_disabled(self._sharing)

    def _checked(self, pairs: Sequence[Pair], sharing: PrefixSharing, *, must_cache: bool) -> PrefixSharing:
        # A separate loop: tokens of the check must not count in `token_counts`.
        sharing, agreement = check_sharing(
            EngineLoop(self._engine), pairs, sharing, self._rounding_type, must_cache=must_cache
        )
        # Continuations that were read from the cache would be computed a second time, in full.
        self._engine.reset_prefix_cache()
        # The difference of a sharing that is not used does not matter for any response.
        self._agreement |= replace(agreement, difference=0.0) if sharing.disabled_reason else agreement
        return sharing


def _warn_if_disabled(sharing: PrefixSharing) -> None:
    if sharing.disabled_reason:
        _LOG.warning("Prefix sharing is disabled: %s. Every prompt is computed in full.", sharing.disabled_reason)
