"""Accelerate backend: lm-eval's HFLM (0.4.13), which tokenizes, truncates and generates.

Log-likelihoods are computed from shared prefixes if the model supports that, otherwise by HFLM. Text is generated with
the arguments of the task alone; the checkpoint's generation settings do not apply, except for its stop tokens.
"""

from __future__ import annotations

import contextlib
import logging
import platform
from collections.abc import Container, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval.models.utils import normalize_gen_kwargs
from safetensors import SafetensorError

from hpcq.catalog.attention_softcap import caps_attention
from hpcq.catalog.generation_settings import GenerationSettings
from hpcq.catalog.hf_config import OTHER_PARTS
from hpcq.catalog.weight_files import weights_problem
from hpcq.core.error_classification import classify_error
from hpcq.core.errors import SetupError, UserInputError, WorkerError
from hpcq.core.failures import Failure
from hpcq.core.sentences import first_line
from hpcq.core.work_records import EvaluateWork
from hpcq.evaluate.backends.appended_tokens import appended_tokens, remove_appended_tokens
from hpcq.evaluate.backends.generation import check_end_token, check_room_for_prompt, checkpoint_generation_settings
from hpcq.evaluate.backends.transformers.device_map import DeviceMap, make_device_map, node_memory
from hpcq.evaluate.backends.transformers.disk_offload import copy_weights_to_node, offload_folder
from hpcq.evaluate.backends.transformers.finite_logits import first_not_finite_layer
from hpcq.evaluate.backends.transformers.int8_activations import use_kernel_rounding
from hpcq.evaluate.backends.transformers.panel import read_windows
from hpcq.evaluate.backends.transformers.prefix_scoring.model_support import depends_on_batch
from hpcq.evaluate.backends.transformers.prefix_scoring.quantized_activations import BatchWideScales
from hpcq.evaluate.backends.transformers.prefix_scoring.scorer import Scorer, dtype_name
from hpcq.evaluate.backends.transformers.quantized_loading import (
    check_loaded,
    conversion_errors,
    restore_dtypes,
    take_quantization,
    unrounded_activations,
)
from hpcq.evaluate.backends.transformers.recording_lm import RecordingLM
from hpcq.evaluate.backends.transformers.tokenizer import (
    check_tokenizer,
    load_tokenizer,
    source_settings,
)
from hpcq.evaluate.prefix.agreement import Agreement, largest_rounding
from hpcq.evaluate.prefix.token_counts import TokenCounts
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, TOP_LOGPROBS, Request
from hpcq.evaluate.sampling import depends_on_other_rows, seed_of
from hpcq.store import TOLERANCE_ATTRIBUTE, RequestKey, Response
from hpcq.verify.config_errors import config_errors, missing_package
from hpcq.verify.loaded_model import forward_problem
from hpcq.verify.responses import NotFiniteError, not_finite_error

OPTION_NAMES = ("add_bos_token", "add_eos", "attention", "int8_divisor", "max_length", "prefix_sharing")
"""Options in `EvaluateWork.options`: arguments of HFLM, whether tokens that the tokenizer appends are kept,
transformers' attention, the divisor of the scales of INT8 activations (without it, compressed-tensors rounds them), and
whether prefixes are shared."""

_LOW_PRECISION_BITS = 16

_LOG = logging.getLogger(__name__)


class AccelerateBackend:
    """A checkpoint on the CPU, on one GPU, or distributed over all GPUs of the node, host memory and disk."""

    def __init__(self, work: EvaluateWork) -> None:
        unknown = [name for name, _ in work.options if name not in OPTION_NAMES]
        if unknown:
            raise UserInputError(
                f"evaluate.options: the accelerate backend has no option {unknown[0]!r}; valid options are"
                f" {', '.join(OPTION_NAMES)}."
            )
        self._work = work
        self._device = _resolve_device(work.device)
        self._batch_size = max(1, int(work.batch_size * work.batch_share))
        self._lm: Any = None
        self._generation = GenerationSettings()
        self._scorer: Scorer | None = None
        self._unshared_reason: str | None = None
        self._offloaded_gib = 0.0
        self._appended = ""

    def load(self) -> None:
        """Load model and tokenizer, and check whether prefixes can be shared.

        A quantized checkpoint is computed as its scheme defines, with quantized activations.
        """
        options = dict(self._work.options)
        shares_prefixes = options.pop("prefix_sharing", True)
        attention = options.pop("attention", None)
        int8_divisor = options.pop("int8_divisor", None)
        tokenizer = load_tokenizer(self._work)
        if not options.pop("add_eos", True):
            remove_appended_tokens(tokenizer, self._work.checkpoint_path)
        self._appended = appended_tokens(tokenizer)
        model, self._offloaded_gib = _load_model(self._work, self._device, attention)
        if int8_divisor is not None:
            use_kernel_rounding(model, int(int8_divisor))
        check_tokenizer(self._work, tokenizer, model)
        self._lm = RecordingLM(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            revision=self._work.revision,
            trust_remote_code=self._work.variant.model.trust_remote_code,
            **options,
        )
        with BatchWideScales(model) as scales:
            _check_forward(self._lm, self._work)
        self._generation = checkpoint_generation_settings(self._work)
        generate_as_defined(self._lm, self._generation)
        if depends_on_batch(model) or scales.layer is not None:
            self._batch_size = 1  # as in lm-eval with its default batch size
        if not shares_prefixes:
            self._unshared_reason = "switched off"
            return
        self._scorer = Scorer(
            self._lm,
            on_gpu=self._device == "cuda",
            batch_share=self._work.batch_share,
            is_offloaded=self._offloaded_gib > 0,
        )
        self._take_result(self._scorer)

    def check(self, sample: Sequence[Request]) -> None:
        """Check whether log-likelihoods from shared prefixes are correct for requests of the run."""
        if self._scorer is not None and sample:
            self._scorer.check([request.arguments for request in sample])
            self._take_result(self._scorer)

    def _take_result(self, scorer: Scorer) -> None:
        """Stop sharing prefixes if a check of the scorer has found a reason."""
        self._unshared_reason = scorer.unsupported_reason
        if self._unshared_reason:
            self._scorer = None
            if scorer.has_batch_wide_scale:
                self._batch_size = 1
            _LOG.warning(
                "Every request is computed in full: prefixes are not shared, because %s.", self._unshared_reason
            )

    def stream(
        self, chunks: Sequence[Sequence[Request]], answered: Container[RequestKey]
    ) -> Iterator[tuple[Request, Response]]:
        """Yield every request whose key is not in `answered`, with its response.

        The bits of a response do not depend on `answered`.
        """
        for chunk in chunks:
            if self._scorer is not None and chunk[0].kind == LOGLIKELIHOOD:
                wanted = [number for number, request in enumerate(chunk) if request.key not in answered]
                for number, response in self._scorer.score([one.arguments for one in chunk], wanted):
                    yield chunk[number], response
                continue
            longest_first = sorted(chunk, key=lambda request: (-request.text_length, request.key))
            rows = 1 if depends_on_other_rows(chunk[0].generation_kwargs) else self._batch_size
            for begin in range(0, len(chunk), rows):
                batch = longest_first[begin : begin + rows]
                if any(request.key not in answered for request in batch):
                    compute = self._read_windows if batch[0].kind == TOP_LOGPROBS else self._compute_with_hflm
                    yield from zip(batch, compute(batch), strict=True)

    def _read_windows(self, batch: Sequence[Request]) -> list[Response]:
        return read_windows(self._lm, batch)

    def _compute_with_hflm(self, batch: Sequence[Request]) -> list[Response]:
        """Answer `batch` in one pass of the model.

        Raises:
            NotFiniteError: The logits of a generated text are not finite.
            UserInputError: The texts leave no room for a prompt.
        """
        if batch[0].kind == GENERATE:
            check_end_token(self._lm.tokenizer, self._work.checkpoint_path)
            for request in batch:
                settings = normalize_gen_kwargs(dict(request.arguments[1]), self._lm.max_gen_toks)
                check_room_for_prompt(settings["max_gen_toks"], self._lm.max_length)
        answers = self._call_hflm(batch)
        if not self._lm.has_finite_logits:
            raise self._not_finite_error(batch)
        cut, kind = self._lm.cut_tokens, batch[0].kind
        if kind == GENERATE:
            return [
                Response(text=text, cut_tokens=cut[request.arguments[0]])
                for request, text in zip(batch, answers, strict=True)
            ]
        if kind == LOGLIKELIHOOD:
            return [
                Response(loglikelihood=float(value), is_greedy=bool(flag), cut_tokens=cut[request.arguments])
                for request, (value, flag) in zip(batch, answers, strict=True)
            ]
        # Rolling log-likelihoods are computed in windows: nothing is removed.
        return [Response(loglikelihood=float(value), cut_tokens=0) for value in answers]

    def _call_hflm(self, batch: Sequence[Request]) -> list[Any]:
        """Return HFLM's answers to `batch`. It computes single-token choices of one context only once."""
        torch.manual_seed(seed_of(batch[0], self._work.seed))
        self._lm.think_end_token = batch[0].think_end_token
        self._lm.batch_size_per_gpu = len(batch)
        self._lm.forget()
        with torch.inference_mode():
            return getattr(self._lm, batch[0].kind)([request.instance for request in batch], disable_tqdm=True)

    def _not_finite_error(self, batch: Sequence[Request]) -> NotFiniteError:
        """Return the error of the first request of `batch` that has such logits if it is computed alone."""
        found = ((request, self.not_finite_origin(request)) for request in sorted(batch, key=lambda one: one.key))
        request, origin = next((one for one in found if one[1]), (batch[0], None))
        return not_finite_error(
            request.key,
            "the logits of its text are not finite",
            model=self._work.checkpoint_path,
            dtype=self._work.dtype,
            origin=origin,
        )

    def not_finite_origin(self, request: Request) -> str | None:
        """Compute `request` alone again; return the first layer whose output is not finite, as a clause."""
        compute = self._read_windows if request.kind == TOP_LOGPROBS else self._call_hflm
        return first_not_finite_layer(self._lm.model, lambda: compute([request]))

    def token_counts(self) -> dict[str, int]:
        """Return the tokens of all requests that were scored from shared prefixes, and how many were computed."""
        counts = self._scorer.counts if self._scorer is not None else TokenCounts()
        return {"asked_tokens": counts.requested, "computed_tokens": counts.computed}

    def describe(self) -> dict[str, str | int | float]:
        """Return device, precision, and whether prefixes are shared and how exactly, or the reason why they are not.

        The differences and the tolerance of log-likelihoods are in nats.
        """
        on_gpu = self._device == "cuda"
        return {
            "device": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU",
            "devices": torch.cuda.device_count() if on_gpu else 1,
            "cuda": str(torch.version.cuda or ""),
            "threads": torch.get_num_threads(),
            "attention": str(self._lm.model.config._attn_implementation),  # noqa: SLF001  # there is no public name for it
            "loaded_dtype": dtype_name(self._lm.model),
            "max_length": int(self._lm.max_length),
            "appended_tokens": self._appended,
            "offloaded_gib": self._offloaded_gib,
            "unrounded_activations": unrounded_activations(self._work, self._lm.model),
            **self._generation.as_facts(),
            TOLERANCE_ATTRIBUTE: self._varies(on_gpu=on_gpu),
            **({"generation_batch": self._batch_size} if self._depends_on_batch else {}),
            **self._describe_sharing(),
        }

    def _describe_sharing(self) -> dict[str, str | float]:
        if self._scorer is None:
            return {"prefix_sharing": self._unshared_reason or ""}
        return self._scorer.agreement.as_facts(
            dtype_name(self._lm.model), quantizes_activations=self._scorer.quantizes_activations
        )

    @property
    def _depends_on_batch(self) -> bool:
        """Whether rounding is so large that generated texts depend on the size of the batch."""
        return torch.finfo(self._lm.model.dtype).bits <= _LOW_PRECISION_BITS

    def _varies(self, *, on_gpu: bool) -> float:
        """Return by how much a log-likelihood may differ when it is computed again.

        The kernels depend on the class of the GPU; on CPUs all come from one library. In 16 bits, results also depend
        on the size of the batch, which is smaller after an attempt that ran out of memory.
        """
        if not on_gpu and not self._depends_on_batch:
            return 0.0
        measured = self._scorer.agreement if self._scorer is not None else Agreement()
        return max(largest_rounding(dtype_name(self._lm.model)), measured.difference, measured.batch_difference)


def generate_as_defined(lm: Any, settings: GenerationSettings) -> None:
    """Let HFLM generate with the task's arguments alone, up to the stop tokens of the checkpoint or of the tokenizer.

    HFLM passes the tokenizer's end token as text only. In a batch, transformers would continue an answer after it until
    all answers have ended, and the end token is not visible in the decoded text.
    """
    end = () if lm.tokenizer.eos_token_id is None else (lm.tokenizer.eos_token_id,)
    stop_tokens = list(dict.fromkeys((*end, *settings.stop_tokens)))
    lm.model.generation_config = transformers.GenerationConfig(eos_token_id=stop_tokens or None)
    lm.model.generation_config.top_k = 0  # sample from all tokens; transformers' default is the 50 most probable ones
    decode = type(lm).tok_decode

    def decode_answer(tokens: Any, skip_special_tokens: bool = True) -> Any:  # noqa: FBT001, FBT002 (HFLM's signature)
        if isinstance(tokens, list):
            tokens = list(takewhile(lambda token: token not in stop_tokens, tokens))
            # Otherwise the end of the reasoning could not be found in the text.
            skip_special_tokens = skip_special_tokens and lm.think_end_token not in lm.tokenizer.all_special_tokens
        return decode(lm, tokens, skip_special_tokens)

    lm.tok_decode = decode_answer


def _resolve_device(requested: str) -> str:
    available = torch.cuda.is_available()
    if requested == "cuda" and not available:
        raise SetupError(
            "evaluate.device: the unit was planned on GPUs, but torch finds none on this node. Check the driver and"
            " CUDA_VISIBLE_DEVICES, use a class without GPUs, or set evaluate.device = 'cpu'."
        )
    return "cpu" if requested == "cpu" or not available else "cuda"


def _load_model(work: EvaluateWork, device: str, attention: Any) -> tuple[Any, float]:
    """Load the model with its device map; return it, and the GiB of weights that are offloaded.

    Args:
        work: The evaluation.
        device: "cpu" or "cuda".
        attention: Attention implementation; None: transformers' default for the model.

    Raises:
        SetupError: transformers cannot load the checkpoint.
        WorkerError: the model does not fit (out of memory), or would be computed as another scheme.
    """
    source = source_settings(work)
    with config_errors(work.checkpoint_path):
        config = transformers.AutoConfig.from_pretrained(work.checkpoint_path, **source)
        _check_attention(work, config, attention)
        quantization = take_quantization(config, work)
        sizes = _without_weights(work, config)
    device_map = _make_device_map(work, sizes, device, is_quantized=quantization is not None)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(offload_folder(device_map.disk_bytes)) if device_map.disk_bytes else None
        try:
            with conversion_errors(quantization, work.checkpoint_path):
                model, loading_info = transformers.AutoModelForCausalLM.from_pretrained(
                    work.checkpoint_path,
                    config=config,
                    dtype=getattr(torch, work.dtype),
                    device_map=_transformers_device_map(device_map, device),
                    generation_config=transformers.GenerationConfig(),  # not read: an invalid one would be an error
                    offload_folder=folder,
                    output_loading_info=True,
                    **({"attn_implementation": attention} if attention else {}),
                    ignore_mismatched_sizes=True,  # they are refused below, with their names
                    **({"quantization_config": quantization} if quantization is not None else {}),
                    **source,
                )
        except ImportError as error:
            raise SetupError(missing_package(work.checkpoint_path, error)) from error
        except (OSError, SafetensorError) as error:
            problem = (
                weights_problem(Path(work.checkpoint_path)) or f"transformers cannot load it ({first_line(error)})"
            )
            raise SetupError(f"{work.checkpoint_path}: {problem}.") from error
        except (KeyError, RuntimeError, ValueError) as error:
            if isinstance(error, RuntimeError) and classify_error(error) is not Failure.BUG:
                raise  # of the device, or of its memory
            raise UserInputError(
                f"{work.checkpoint_path}: transformers cannot load it: {first_line(error)}."
            ) from error
        if folder:
            copy_weights_to_node(model, folder)
    if work.variant.scheme.is_quantized:
        restore_dtypes(model, sizes, getattr(torch, work.dtype))
    check_loaded(
        work, model, loading_info, quantization, has_other_parts=any(hasattr(config, part) for part in OTHER_PARTS)
    )
    return model, device_map.offloaded_gib


def _check_forward(lm: Any, work: EvaluateWork) -> None:
    """Check that the loaded model can compute a text."""
    problem = forward_problem(lm.compute_trial)
    if problem:
        raise UserInputError(
            f"{work.checkpoint_path}: {problem}: correct its config.json, or copy or download the model again."
        )


def _check_attention(work: EvaluateWork, config: Any, attention: str | None) -> None:
    """Check that the attention implementation computes what the configuration describes."""
    if attention is None and caps_attention(config.to_dict()):
        raise WorkerError(
            f"{work.checkpoint_path}: the model caps attention logits, which the default attention of transformers "
            "ignores, and the unit was planned without another: submit the manifest again."
        )


def _transformers_device_map(device_map: DeviceMap, device: str) -> dict[str, Any] | None:
    """Return the argument `device_map` of transformers; None if all of the model is on the CPU.

    A model is loaded directly to its device: compressed-tensors (0.19) computes where the weights were decompressed,
    and a model that is moved afterwards leaves them on the CPU.
    """
    if not device_map.is_single_device:
        return dict(device_map.devices)
    return {"": 0} if device == "cuda" else None


def _without_weights(work: EvaluateWork, config: Any) -> Any:
    """Return the model on the `meta` device."""
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, work.dtype), trust_remote_code=work.variant.model.trust_remote_code
        )


def _make_device_map(work: EvaluateWork, sizes: Any, device: str, *, is_quantized: bool) -> DeviceMap:
    """Return the device map. A quantized checkpoint is decompressed in memory, so it cannot be offloaded to disk.

    Args:
        work: The evaluation.
        sizes: The model without weights.
        device: "cpu" or "cuda".
        is_quantized: Whether the checkpoint is quantized.
    """
    memory = node_memory(on_gpu=device == "cuda")
    return make_device_map(sizes, memory, work.offload, model_name=work.variant.model.id, can_use_disk=not is_quantized)
