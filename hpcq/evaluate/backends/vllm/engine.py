"""Start vLLM's engine (0.32) on one node or on several, and describe its configuration."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from hpcq.core.node_context import NodeContext
from hpcq.core.processes import identity
from hpcq.core.work_records import FidelityPanel
from hpcq.evaluate.backends.vllm.attention_design import attention_difference
from hpcq.evaluate.backends.vllm.quantization import LOAD_FORMAT
from hpcq.evaluate.backends.vllm.reporter import REPORTER
from hpcq.evaluate.backends.vllm.root_cause import process_died
from hpcq.evaluate.backends.vllm.rotary_embedding import fixed_rope
from hpcq.evaluate.backends.vllm.watchdog import EXTENSION, ROOT_VARIABLE

TOKENIZER_MODE = "hf"
"""vLLM's name for the tokenizers that transformers loads."""

# CPU kernels need a block size that is a multiple of 32 tokens. vLLM's default of 128 would recompute up to 127 shared
# tokens. Its default KV cache takes 92 % of the host's memory and fails to start if that much is not free (0.32).
_CPU_ARGUMENTS = {"enforce_eager": True, "block_size": 32, "kv_cache_memory_bytes": 2 * 2**30}

# Folder of an empty generation_config.json, which replaces the checkpoint's: vLLM does not start with an invalid one,
# and requests name their stop tokens. The path is part of the key of vLLM's compile cache, so it must not change.
_GENERATION_CONFIG_FOLDER = str(Path(__file__).parent)

# By default vLLM prefers Mistral's own weights, configuration and tokenizer, if a folder has them too.
_HUGGING_FACE_FORMAT = {"load_format": LOAD_FORMAT, "config_format": "hf", "tokenizer_mode": TOKENIZER_MODE}

# These limits only bound a hang: the rendezvous precedes the engine, and a dead node is detected at once. The first
# holds for process group initialization and for each collective, before which a rank may compile for minutes. The
# second holds for collectives between which each rank loads its weights.
_COLLECTIVE_TIMEOUT_S = 600
_LOAD_TIMEOUT_S = 6 * 3600


def has_gpu() -> bool:
    """Whether this build of vLLM supports GPUs and detects one."""
    from vllm.platforms import current_platform

    return not current_platform.is_cpu()


def start_engine(*, batch_share: float, node_context: NodeContext | None = None, **settings: Any) -> Any:
    """Return vLLM's engine with a prefix cache. Without a GPU it runs in this process.

    On CPUs a subprocess takes 85 s to start instead of 8 s, and vLLM binds its threads to cores that the scheduler may
    have given to other jobs.

    Args:
        batch_share: Fraction of the usual batch size, at most 1.
        node_context: This node (rank 0) of a multi-node engine; None for one node.
        settings: Fields of vLLM's `EngineArgs`.
    """
    arguments, usage = _engine_arguments(batch_share, node_context, settings)

    from vllm.v1.engine.llm_engine import LLMEngine

    return LLMEngine.from_engine_args(arguments, usage_context=usage)


def run_headless(*, batch_share: float, node_context: NodeContext | None, **settings: Any) -> None:
    """Run this node's workers of the engine on rank 0 until one of them exits. Arguments as of `start_engine`.

    Raises:
        ProcessDiedError: A worker exited.
    """
    arguments, usage = _engine_arguments(batch_share, node_context, settings)

    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    executor = MultiprocExecutor(arguments.create_engine_config(usage, headless=True), monitor_workers=False)
    processes = {worker.proc.sentinel: worker.proc for worker in executor.workers}
    exited = processes[wait(list(processes))[0]]
    exited.join()
    raise process_died(exited.name, exited.exitcode)


def _engine_arguments(
    batch_share: float, node_context: NodeContext | None, settings: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Return vLLM's `EngineArgs` and `UsageContext`, and set its environment variables."""
    variables = {
        "VLLM_NO_USAGE_STATS": "1",
        # Querying GPUs may initialize CUDA, after which the process must not fork.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(_LOAD_TIMEOUT_S),
    }
    os.environ[ROOT_VARIABLE] = identity(os.getpid()) or ""
    # Without it, a text generated from NaN looks like any other: the environment of the user does not switch it off.
    os.environ["VLLM_COMPUTE_NANS_IN_LOGITS"] = "1"
    defaults: dict[str, Any] = {
        "worker_extension_cls": REPORTER,
        "generation_config": _GENERATION_CONFIG_FOLDER,
        "max_logprobs": FidelityPanel.top,
        **_HUGGING_FACE_FORMAT,
    }
    on_gpu = has_gpu()
    if not on_gpu:
        variables |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        defaults |= _CPU_ARGUMENTS
    if node_context is not None:
        defaults |= _multi_node_arguments(node_context)
    if node_context is not None or _world_size(settings) > 1:
        defaults |= {"distributed_executor_backend": "mp", "worker_extension_cls": EXTENSION}
    elif not on_gpu:
        defaults["distributed_executor_backend"] = "uni"
    for name, value in variables.items():
        os.environ.setdefault(name, value)

    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    settings = {**defaults, **settings}
    if batch_share < 1:
        settings |= _reduced_batch(EngineArgs, UsageContext.LLM_CLASS, batch_share, settings)
    # Statistics stay enabled: they report preempted requests.
    return EngineArgs(enable_prefix_caching=True, disable_log_stats=False, **settings), UsageContext.LLM_CLASS


def _world_size(settings: Mapping[str, Any]) -> int:
    return int(settings.get("tensor_parallel_size", 1) * settings.get("pipeline_parallel_size", 1))


def _multi_node_arguments(node_context: NodeContext) -> dict[str, Any]:
    """Return vLLM's arguments for this node, and set the environment variables that select its network interface."""
    os.environ["VLLM_HOST_IP"] = node_context.address
    interface = node_context.network_interface
    if interface:
        # By default gloo uses the address that the host name resolves to, on many nodes a loopback address.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return {
        "nnodes": node_context.nnodes,
        "node_rank": node_context.node_rank,
        "master_addr": node_context.master_addr,
        "master_port": node_context.master_port,
        "distributed_timeout_seconds": _COLLECTIVE_TIMEOUT_S,
        "cpu_distributed_timeout_seconds": _LOAD_TIMEOUT_S,
    }


def _reduced_batch(arguments: Any, usage: Any, share: float, settings: Mapping[str, Any]) -> dict[str, int]:
    """Return the batch limits scaled by `share`: at least one prompt and one block of tokens."""
    defaults = arguments.get_batch_defaults(_world_size(settings))
    names = ("max_num_batched_tokens", "max_num_seqs")
    tokens, rows = (
        int(settings.get(name, default[usage]) * share) for name, default in zip(names, defaults, strict=True)
    )
    tokens = max(tokens, settings.get("block_size", 1))
    return {"max_num_seqs": max(1, min(rows, tokens)), "max_num_batched_tokens": tokens}


def describe_engine(engine: Any) -> dict[str, str | int | float]:
    """Return the device and the engine's configuration, for the provenance of responses."""
    import torch
    from vllm.platforms import current_platform

    config, on_gpu = engine.vllm_config, has_gpu()
    return {
        # From vLLM, not torch: torch would initialize CUDA, which takes GPU memory.
        "device": current_platform.get_device_name() if on_gpu else f"{platform.machine()} CPU",
        "cuda": str(torch.version.cuda or ""),
        "threads": torch.get_num_threads(),
        "loaded_dtype": str(config.model_config.dtype).removeprefix("torch."),
        "max_length": int(config.model_config.max_model_len),
        "fixed_rope": fixed_rope(config.model_config.hf_text_config, int(config.model_config.max_model_len)),
        "attention_difference": attention_difference(
            config.model_config.hf_text_config, int(config.model_config.max_model_len)
        ),
        "model_runner": 2 if config.use_v2_model_runner else 1,
        "block_size": int(config.cache_config.block_size),
        "kv_cache_tokens": int(config.cache_config.num_gpu_blocks or 0) * int(config.cache_config.block_size),
        "max_num_seqs": int(config.scheduler_config.max_num_seqs),
        "max_num_batched_tokens": int(config.scheduler_config.max_num_batched_tokens),
        "tensor_parallel": int(config.parallel_config.tensor_parallel_size),
        "pipeline_parallel": int(config.parallel_config.pipeline_parallel_size),
        "nodes": int(config.parallel_config.nnodes),
    }
