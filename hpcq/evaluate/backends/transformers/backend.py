"""The accelerate back end: transformers through lm-eval's own HFLM (0.4.13), which tokenizes, truncates and generates.

Log-likelihoods come from shared prefixes where the model allows that, and from HFLM where it does not.

Knows transformers and lm-eval. Must not know tasks, shards or files other than the checkpoint.
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

from hpcq.core.errors import SetupError, UserInputError, WorkFailed
from hpcq.core.work import EvaluateWork
from hpcq.evaluate.backends.transformers.device_map import Spread, memory_here, spread
from hpcq.evaluate.backends.transformers.disk_offload import bring_to_node, folder_on_node
from hpcq.evaluate.backends.transformers.prefix_scoring.scorer import Scorer
from hpcq.evaluate.backends.transformers.prefix_scoring.self_check import tolerance
from hpcq.evaluate.prefix.token_counts import Counts
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, Request
from hpcq.store import VARIES, RequestKey, Response

OPTIONS = ("add_bos_token", "max_length", "prefix_sharing")
"""What `EvaluateWork.options` may set: HFLM's arguments of these names, and whether prefixes are shared."""

_LOG = logging.getLogger(__name__)


class AccelerateBackend:
    """A checkpoint on the CPU, on one GPU, or spread over all GPUs of the node and what else the work allows."""

    def __init__(self, work: EvaluateWork) -> None:
        unknown = [name for name, _ in work.options if name not in OPTIONS]
        if unknown:
            raise UserInputError(
                f"evaluate.options: the accelerate back end has no {unknown[0]!r}; it has {', '.join(OPTIONS)}."
            )
        self._work = work
        self._device = _device(work.device)
        self._batch_size = max(1, int(work.batch_size * work.batch_share))
        self._lm: Any = None
        self._scorer: Scorer | None = None
        self._why_not: str | None = None
        self._offloaded_gib = 0.0

    def load(self) -> None:
        """Load model and tokenizer, and find out whether prefixes can be shared.

        A quantized checkpoint is computed as its scheme says, activations included.
        """
        options = dict(self._work.options)
        is_wanted = options.pop("prefix_sharing", True)
        model, self._offloaded_gib = _model(self._work, self._device)
        self._lm = HFLM(
            pretrained=model,
            tokenizer=self._work.checkpoint_path,
            backend="causal",
            trust_remote_code=self._work.variant.model.trust_remote_code,
            **options,
        )
        if not is_wanted:
            self._why_not = "it is switched off"
            return
        scorer = Scorer(
            self._lm,
            on_gpu=self._device == "cuda",
            batch_share=self._work.batch_share,
            is_offloaded=self._offloaded_gib > 0,
        )
        self._why_not = scorer.why_not
        self._scorer = None if scorer.why_not else scorer
        if self._why_not:
            _LOG.warning("Every request is computed in full: prefixes are not shared, because %s.", self._why_not)

    def stream(
        self, pieces: Sequence[Sequence[Request]], known: Container[RequestKey]
    ) -> Iterator[tuple[Request, Response]]:
        """Every request whose key is not in `known`, with its response; the same bits, whatever is known."""
        for piece in pieces:
            if self._scorer is not None and piece[0].kind == LOGLIKELIHOOD:
                wanted = [number for number, request in enumerate(piece) if request.key not in known]
                for number, loglikelihood, is_greedy in self._scorer.score([one.arguments for one in piece], wanted):
                    yield piece[number], Response(loglikelihood=loglikelihood, is_greedy=is_greedy)
                continue
            longest_first = sorted(piece, key=lambda request: (-request.length, request.key))
            for begin in range(0, len(piece), self._batch_size):
                batch = longest_first[begin : begin + self._batch_size]
                if any(request.key not in known for request in batch):
                    yield from zip(batch, self._plain(batch), strict=True)

    def _plain(self, batch: Sequence[Request]) -> list[Response]:
        """Answer `batch` in one pass of the model (lm-eval drops from it what single-token choices share)."""
        torch.manual_seed(_seed(self._work.seed, batch))
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

    def counts(self) -> dict[str, int]:
        """Tokens that requests scored from shared prefixes asked for so far, and how many of them were computed."""
        counts = self._scorer.counts if self._scorer is not None else Counts()
        return {"asked_tokens": counts.asked, "computed_tokens": counts.computed}

    def describe(self) -> dict[str, str | int | float]:
        """The device, how it computes, and whether prefixes are shared; where they are not, why."""
        on_gpu = self._device == "cuda"
        return {
            "device": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU",
            "devices": torch.cuda.device_count() if on_gpu else 1,
            "cuda": str(torch.version.cuda or ""),
            "threads": torch.get_num_threads(),
            "loaded_dtype": str(self._lm.model.dtype).removeprefix("torch."),
            "max_length": int(self._lm.max_length),
            "offloaded_gib": self._offloaded_gib,
            # The kernels that a GPU computes with are its class's; a CPU's are one library's.
            VARIES: tolerance(self._lm.model) if on_gpu else 0.0,
            "prefix_sharing": self._why_not or "exact",
            "prefix_sharing_difference": self._scorer.difference if self._scorer is not None else 0.0,
        }


def _device(wanted: str) -> str:
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise SetupError("evaluate.device: 'cuda' is asked for and there is no GPU here; use 'auto' or 'cpu'.")
    return "cpu" if wanted == "cpu" or not available else "cuda"


def _model(work: EvaluateWork, device: str) -> tuple[Any, float]:
    """The model where its layers are to lie, and how many GiB of its weights are elsewhere than on GPUs.

    Raises:
        SetupError: there is no checkpoint that transformers can load.
        WorkFailed: it does not fit (an attempt out of memory), or would be computed as another scheme.
    """
    is_folder = Path(work.checkpoint_path).is_dir()
    source: dict[str, Any] = {"trust_remote_code": work.variant.model.trust_remote_code}
    if not is_folder:
        source["revision"] = work.variant.model.revision or "main"
    with contextlib.ExitStack() as stack:
        try:
            config = transformers.AutoConfig.from_pretrained(work.checkpoint_path, **source)
            layers = _layers(work, config, device)
            folder = stack.enter_context(folder_on_node(layers.disk)) if layers.disk else None
            model = transformers.AutoModelForCausalLM.from_pretrained(
                work.checkpoint_path,
                dtype=getattr(torch, work.dtype),
                device_map=_device_map(layers, device),
                offload_folder=folder,
                **_quantization(config),
                **source,
            )
        except OSError as error:
            first = (str(error).splitlines() or [""])[0].rstrip(".")
            raise SetupError(f"{work.checkpoint_path}: transformers cannot load it ({first}).") from error
        if folder:
            bring_to_node(model, folder)
    _refuse_unquantized_activations(work, config, model)
    return model, layers.offloaded_gib


def _device_map(layers: Spread, device: str) -> dict[str, Any] | None:
    """None: all of it on the CPU. A model is loaded where it stays.

    compressed-tensors (0.19) remembers where weights were decompressed, and computes there: moving the model afterwards
    leaves them on the CPU.
    """
    if not layers.is_whole:
        return dict(layers.devices)
    return {"": 0} if device == "cuda" else None


def _layers(work: EvaluateWork, config: Any, device: str) -> Spread:
    """Where the layers are to lie. A quantized checkpoint is decompressed in memory, and cannot lie on a disk."""
    with torch.device("meta"):
        sizes = transformers.AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, work.dtype), trust_remote_code=work.variant.model.trust_remote_code
        )
    has_disk = not getattr(config, "quantization_config", None)
    memory = memory_here(on_gpu=device == "cuda")
    return spread(sizes, memory, work.offload, title=work.variant.model.id, has_disk=has_disk)


def _quantization(config: Any) -> dict[str, Any]:
    """Decompress compressed-tensors weights at loading, not at the first forward of the top-level model.

    The numbers are the same, activations are quantized either way (transformers 5.17, compressed-tensors 0.19); but a
    call that goes round the top-level forward would meet compressed weights.
    """
    settings = getattr(config, "quantization_config", None) or {}
    if settings.get("quant_method") != "compressed-tensors":
        return {}
    return {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}


def _refuse_unquantized_activations(work: EvaluateWork, config: Any, model: Any) -> None:
    """Scores of a scheme that quantizes activations must not come from a model that does not.

    Raises:
        WorkFailed: the checkpoint says that activations are quantized, and no layer of the loaded model does it.
    """
    settings = getattr(config, "quantization_config", None) or {}
    groups = (settings.get("config_groups") or {}).values()
    if not any(group.get("input_activations") for group in groups):
        return
    schemes = (getattr(module, "quantization_scheme", None) for module in model.modules())
    if not any(scheme is not None and scheme.input_activations is not None for scheme in schemes):
        raise WorkFailed(
            f"{work.checkpoint_path}: transformers {transformers.__version__} loads it without quantizing activations,"
            f" which {work.variant.scheme.name} does: its scores would be another scheme's."
        )


def _seed(seed: int, batch: Sequence[Request]) -> int:
    """A seed of the batch's own, so that sampled text too is independent of the batches before it."""
    text = f"{seed} {batch[0].key}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
