"""Accelerate backend: lm-eval's HFLM (0.4.13), which tokenizes, truncates and generates.

Log-likelihoods are computed from shared prefixes if the model supports that, otherwise by HFLM.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import platform
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval.models.huggingface import HFLM

from hpcq.core.errors import SetupError, UserInputError, WorkerError
from hpcq.core.work_records import EvaluateWork
from hpcq.evaluate.backends.transformers.device_map import DeviceMap, make_device_map, node_memory
from hpcq.evaluate.backends.transformers.disk_offload import copy_weights_to_node, offload_folder
from hpcq.evaluate.backends.transformers.prefix_scoring.scorer import Scorer
from hpcq.evaluate.backends.transformers.prefix_scoring.self_check import tolerance
from hpcq.evaluate.prefix.token_counts import TokenCounts
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, Request
from hpcq.store import TOLERANCE_ATTRIBUTE, RequestKey, Response

OPTION_NAMES = ("add_bos_token", "max_length", "prefix_sharing")
"""Options in `EvaluateWork.options`: arguments of HFLM, and whether prefixes are shared."""

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
        self._scorer: Scorer | None = None
        self._unshared_reason: str | None = None
        self._offloaded_gib = 0.0

    def load(self) -> None:
        """Load model and tokenizer, and check whether prefixes can be shared.

        A quantized checkpoint is computed as its scheme defines, with quantized activations.
        """
        options = dict(self._work.options)
        shares_prefixes = options.pop("prefix_sharing", True)
        model, self._offloaded_gib = _load_model(self._work, self._device)
        self._lm = HFLM(
            pretrained=model,
            tokenizer=self._work.checkpoint_path,
            backend="causal",
            trust_remote_code=self._work.variant.model.trust_remote_code,
            **options,
        )
        if not shares_prefixes:
            self._unshared_reason = "switched off"
            return
        scorer = Scorer(
            self._lm,
            on_gpu=self._device == "cuda",
            batch_share=self._work.batch_share,
            is_offloaded=self._offloaded_gib > 0,
        )
        self._unshared_reason = scorer.unsupported_reason
        self._scorer = None if scorer.unsupported_reason else scorer
        if self._unshared_reason:
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
                for number, loglikelihood, is_greedy in self._scorer.score([one.arguments for one in chunk], wanted):
                    yield chunk[number], Response(loglikelihood=loglikelihood, is_greedy=is_greedy)
                continue
            longest_first = sorted(chunk, key=lambda request: (-request.text_length, request.key))
            for begin in range(0, len(chunk), self._batch_size):
                batch = longest_first[begin : begin + self._batch_size]
                if any(request.key not in answered for request in batch):
                    yield from zip(batch, self._compute_with_hflm(batch), strict=True)

    def _compute_with_hflm(self, batch: Sequence[Request]) -> list[Response]:
        """Answer `batch` in one pass of the model. lm-eval computes single-token choices of one context only once."""
        torch.manual_seed(_batch_seed(self._work.seed, batch))
        self._lm.batch_size_per_gpu = len(batch)
        instances = [request.instance for request in batch]
        kind = batch[0].kind
        with torch.inference_mode():
            answers = getattr(self._lm, kind)(instances, disable_tqdm=True)
        if kind == GENERATE:
            return [Response(text=text) for text in answers]
        if kind == LOGLIKELIHOOD:
            return [Response(loglikelihood=float(value), is_greedy=bool(flag)) for value, flag in answers]
        return [Response(loglikelihood=float(value)) for value in answers]

    def token_counts(self) -> dict[str, int]:
        """Return the tokens of all requests that were scored from shared prefixes, and how many were computed."""
        counts = self._scorer.counts if self._scorer is not None else TokenCounts()
        return {"asked_tokens": counts.requested, "computed_tokens": counts.computed}

    def describe(self) -> dict[str, str | int | float]:
        """Return device, precision, and whether prefixes are shared ("exact") or the reason why they are not."""
        on_gpu = self._device == "cuda"
        return {
            "device": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU",
            "devices": torch.cuda.device_count() if on_gpu else 1,
            "cuda": str(torch.version.cuda or ""),
            "threads": torch.get_num_threads(),
            "loaded_dtype": str(self._lm.model.dtype).removeprefix("torch."),
            "max_length": int(self._lm.max_length),
            "offloaded_gib": self._offloaded_gib,
            # The kernels depend on the class of the GPU; on CPUs all come from one library.
            TOLERANCE_ATTRIBUTE: tolerance(self._lm.model) if on_gpu else 0.0,
            "prefix_sharing": self._unshared_reason or "exact",
            "prefix_sharing_difference": self._scorer.max_difference if self._scorer is not None else 0.0,
        }


def _resolve_device(requested: str) -> str:
    available = torch.cuda.is_available()
    if requested == "cuda" and not available:
        raise SetupError("evaluate.device: 'cuda' is requested, but this node has no GPU. Use 'auto' or 'cpu'.")
    return "cpu" if requested == "cpu" or not available else "cuda"


def _load_model(work: EvaluateWork, device: str) -> tuple[Any, float]:
    """Load the model with its device map; return it, and the GiB of weights that are offloaded.

    Raises:
        SetupError: transformers cannot load the checkpoint.
        WorkerError: the model does not fit (out of memory), or would be computed as another scheme.
    """
    is_folder = Path(work.checkpoint_path).is_dir()
    source: dict[str, Any] = {"trust_remote_code": work.variant.model.trust_remote_code}
    if not is_folder:
        source["revision"] = work.variant.model.revision or "main"
    with contextlib.ExitStack() as stack:
        try:
            config = transformers.AutoConfig.from_pretrained(work.checkpoint_path, **source)
            device_map = _make_device_map(work, config, device)
            disk_bytes = device_map.disk_bytes
            folder = stack.enter_context(offload_folder(disk_bytes)) if disk_bytes else None
            model = transformers.AutoModelForCausalLM.from_pretrained(
                work.checkpoint_path,
                dtype=getattr(torch, work.dtype),
                device_map=_transformers_device_map(device_map, device),
                offload_folder=folder,
                **_quantization_kwargs(config),
                **source,
            )
        except OSError as error:
            first = (str(error).splitlines() or [""])[0].rstrip(".")
            raise SetupError(f"{work.checkpoint_path}: transformers cannot load it ({first}).") from error
        if folder:
            copy_weights_to_node(model, folder)
    _refuse_unquantized_activations(work, config, model)
    return model, device_map.offloaded_gib


def _transformers_device_map(device_map: DeviceMap, device: str) -> dict[str, Any] | None:
    """Return the argument `device_map` of transformers; None if all of the model is on the CPU.

    A model is loaded directly to its device: compressed-tensors (0.19) computes where the weights were decompressed,
    and a model that is moved afterwards leaves them on the CPU.
    """
    if not device_map.is_single_device:
        return dict(device_map.devices)
    return {"": 0} if device == "cuda" else None


def _make_device_map(work: EvaluateWork, config: Any, device: str) -> DeviceMap:
    """Return the device map. A quantized checkpoint is decompressed in memory, so it cannot be offloaded to disk."""
    with torch.device("meta"):
        sizes = transformers.AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, work.dtype), trust_remote_code=work.variant.model.trust_remote_code
        )
    can_use_disk = not getattr(config, "quantization_config", None)
    memory = node_memory(on_gpu=device == "cuda")
    return make_device_map(sizes, memory, work.offload, model_name=work.variant.model.id, can_use_disk=can_use_disk)


def _quantization_kwargs(config: Any) -> dict[str, Any]:
    """Return the arguments with which compressed-tensors weights are decompressed at loading.

    By default they are decompressed in the first forward of the top-level model. The numbers are the same, and
    activations are quantized in both cases (transformers 5.17, compressed-tensors 0.19), but a call that bypasses the
    top-level forward would get compressed weights.
    """
    settings = getattr(config, "quantization_config", None) or {}
    if settings.get("quant_method") != "compressed-tensors":
        return {}
    return {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}


def _refuse_unquantized_activations(work: EvaluateWork, config: Any, model: Any) -> None:
    """Check that the loaded model quantizes activations if its scheme does.

    Raises:
        WorkerError: the checkpoint's configuration quantizes activations, but no layer of the loaded model does.
    """
    settings = getattr(config, "quantization_config", None) or {}
    groups = (settings.get("config_groups") or {}).values()
    if not any(group.get("input_activations") for group in groups):
        return
    schemes = (getattr(module, "quantization_scheme", None) for module in model.modules())
    if not any(scheme is not None and scheme.input_activations is not None for scheme in schemes):
        raise WorkerError(
            f"{work.checkpoint_path}: transformers {transformers.__version__} loads it without quantizing activations,"
            f" which {work.variant.scheme.name} does: its scores would be those of another scheme."
        )


def _batch_seed(seed: int, batch: Sequence[Request]) -> int:
    """Return a seed that depends only on the batch, so that sampled text is independent of earlier batches."""
    text = f"{seed} {batch[0].key}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
