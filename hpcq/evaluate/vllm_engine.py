"""vLLM's engine (0.32): started for this machine, fed without a pause, and what its outputs tell of a prompt.

Knows vLLM. Must not know requests, texts or tasks.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import wait
from typing import Any, TypeVar

from hpcq.evaluate.vllm_death import process_ended
from hpcq.evaluate.vllm_families import Prompt, Told
from hpcq.evaluate.vllm_mortality import EXTENSION, ROOT_VARIABLE
from hpcq.peers import Place
from hpcq.processes import identity

Answer = TypeVar("Answer")

# (tokens, vLLM's SamplingParams)
Asked = tuple[Sequence[int], Any]
Job = Generator[list[Asked], list[Any], Answer]
"""Yields what to ask, is sent vLLM's outputs in that order once all are there, may ask again, returns its answer."""

# The CPU's kernels take blocks of multiples of 32 tokens; vLLM's default of 128 would compute up to 127 shared tokens
# again. Its cache would take 92 % of the machine's memory, or refuse to start where that is not free (0.32).
_ON_CPU = {"enforce_eager": True, "block_size": 32, "kv_cache_memory_bytes": 2 * 2**30}

# That all nodes are there and reach the first one is known before an engine starts, and that one has died at once. So
# these only bound what hangs. The first holds for meeting, and for each collective operation, whose ranks may have
# compiled for minutes before; the second for operations between which each rank loads its weights.
_COLLECTIVE_S = 600
_LONGEST_LOAD_S = 6 * 3600


def has_gpu() -> bool:
    """Whether this build of vLLM computes on GPUs, and there are some."""
    from vllm.platforms import current_platform

    return not current_platform.is_cpu()


def start(*, on_gpu: bool, batch_share: float, place: Place | None = None, **settings: Any) -> Any:
    """vLLM's engine, with a prefix cache, and in this process where there is no GPU.

    A subprocess takes minutes to start there (85 s against 8 s), and has its threads bound to cores that a scheduler
    may have given to others.

    batch_share: how much of what is usually computed at once. place: of this node, the first, where there are others.
    settings: vLLM's `EngineArgs`.
    """
    arguments, usage = _arguments(on_gpu=on_gpu, batch_share=batch_share, place=place, settings=settings)

    from vllm.v1.engine.llm_engine import LLMEngine

    return LLMEngine.from_engine_args(arguments, usage_context=usage)


def join(*, on_gpu: bool, batch_share: float, place: Place | None, **settings: Any) -> None:
    """The processes that the engine on node 0 has on this node, until one of them ends. Arguments are `start`'s.

    Raises:
        ProcessEnded: one has.
    """
    arguments, usage = _arguments(on_gpu=on_gpu, batch_share=batch_share, place=place, settings=settings)

    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    executor = MultiprocExecutor(arguments.create_engine_config(usage, headless=True), monitor_workers=False)
    processes = {worker.proc.sentinel: worker.proc for worker in executor.workers}
    ended = processes[wait(list(processes))[0]]
    ended.join()
    raise process_ended(ended.name, ended.exitcode)


def _arguments(
    *, on_gpu: bool, batch_share: float, place: Place | None, settings: Mapping[str, Any]
) -> tuple[Any, Any]:
    """vLLM's `EngineArgs`, and what it is used for; the environment is set."""
    # To ask for GPUs may leave a process in a state that must not be forked.
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(_LONGEST_LOAD_S),
    }
    os.environ[ROOT_VARIABLE] = identity(os.getpid()) or ""
    usual: dict[str, Any] = {}
    if not on_gpu:
        defaults |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        usual |= _ON_CPU
    if place is not None:
        usual |= _among(place)
    if place is not None or _processes(settings) > 1:
        usual |= {"distributed_executor_backend": "mp", "worker_extension_cls": EXTENSION}
    elif not on_gpu:
        usual["distributed_executor_backend"] = "uni"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)

    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    settings = {**usual, **settings}
    if batch_share < 1:
        settings |= _smaller(EngineArgs, UsageContext.LLM_CLASS, batch_share, settings)
    # Statistics are kept because they tell which requests were preempted.
    return EngineArgs(enable_prefix_caching=True, disable_log_stats=False, **settings), UsageContext.LLM_CLASS


def _processes(settings: Mapping[str, Any]) -> int:
    return int(settings.get("tensor_parallel_size", 1) * settings.get("pipeline_parallel_size", 1))


def _among(place: Place) -> dict[str, Any]:
    """vLLM's arguments for one of several nodes; the environment tells its libraries which address is meant."""
    os.environ["VLLM_HOST_IP"] = place.address
    interface = place.interface
    if interface:
        # gloo would take what the host's name resolves to, on many nodes a loopback.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return {
        "nnodes": place.nodes,
        "node_rank": place.rank,
        "master_addr": place.head,
        "master_port": place.port,
        "distributed_timeout_seconds": _COLLECTIVE_S,
        "cpu_distributed_timeout_seconds": _LONGEST_LOAD_S,
    }


def _smaller(arguments: Any, usage: Any, share: float, settings: Mapping[str, Any]) -> dict[str, int]:
    """A share of the prompts and of the tokens that are computed at once: a prompt and a block of tokens at least."""
    defaults = arguments.get_batch_defaults(_processes(settings))
    names = ("max_num_batched_tokens", "max_num_seqs")
    tokens, rows = (int(settings.get(name, usual[usage]) * share) for name, usual in zip(names, defaults, strict=True))
    tokens = max(tokens, settings.get("block_size", 1))
    return {"max_num_seqs": max(1, min(rows, tokens)), "max_num_batched_tokens": tokens}


def sampling(prompt: Prompt) -> Any:
    """How vLLM is told what a prompt asks."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        detokenize=False,
        # With the likeliest token: ranks would count equal logits, which are common in bf16, as likelier.
        prompt_logprobs=1 if prompt.asks_of_itself else None,
        logprob_token_ids=list(prompt.next_tokens) or None,
        # Unless told so, vLLM computes prompts that ask for log-probabilities in full.
        skip_reading_prefix_cache=not prompt.shares,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def told_of_itself(prompt: Prompt, output: Any) -> dict[int, Told]:
    """What was computed of the prompt's own tokens that were to be told, by position.

    A token is told by the pass over the one before it. What came from the cache was not passed over: vLLM then hands
    out memory that nobody wrote to, or, in its second model runner, nothing at all (0.32). A prompt that was preempted
    may have found more in the cache when it came back than is reported; so nothing of it is read if it looked there.
    """
    if not prompt.asks_of_itself or (prompt.shares and output.metrics.num_preemptions):
        return {}
    length = len(prompt.tokens)
    beyond = len(output.prompt_logprobs) - length  # not zero where nothing is handed out for cached tokens
    found = {}
    for position in range(max(prompt.scored, (output.num_cached_tokens or 0) + 1), length):
        row = output.prompt_logprobs[position + beyond]
        if prompt.tokens[position] in row:
            best = max(one.logprob for one in row.values())
            found[position] = Told(row[prompt.tokens[position]].logprob, best)
    return found


def told_of_nexts(prompt: Prompt, output: Any) -> dict[int, Told]:
    """What was computed of the tokens that might follow the prompt."""
    if not prompt.next_tokens:
        return {}
    row = output.outputs[0].logprobs[0]
    best = max(one.logprob for one in row.values())  # the generated token, the likeliest of all, is among them
    return {token: Told(row[token].logprob, best) for token in prompt.next_tokens}


@dataclass(kw_only=True, eq=False)
class _Lane:
    """Jobs of a kind. flying: their prompts in the engine; is_open: whether jobs may be left."""

    jobs: Iterator[Job[Any]]
    is_scoring: bool
    flying: int = 0
    is_open: bool = True


@dataclass(kw_only=True, eq=False)
class _Flight:
    """A job under way, and the outputs that are there of what it asked last."""

    job: Job[Any]
    lane: _Lane
    outputs: list[Any]
    missing: int


class Flow:
    """Jobs through the engine, which always has more to do than it can hold, until none is left.

    prompt_tokens, cached_tokens: of all prompts of scoring so far, and how many of them came from the cache.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._rows = engine.vllm_config.scheduler_config.max_num_seqs
        self._numbers = count()
        self._under_way: dict[str, tuple[_Flight, int]] = {}
        self.prompt_tokens = 0
        self.cached_tokens = 0

    def run(self, scoring: Iterator[Job[Answer]], generating: Iterator[Job[Answer]]) -> Iterator[Answer]:
        """Every job's answer as it comes.

        Scoring goes in the order of its jobs, so that what they share is still kept when it is wanted again. Generating
        goes beside it, where it costs little: a pass that reads prompts has room for a row that writes.
        """
        score, generate = _Lane(jobs=scoring, is_scoring=True), _Lane(jobs=generating, is_scoring=False)
        try:
            while True:
                yield from self._board(score, 2 * self._rows)
                yield from self._board(generate, max(1, self._rows // 2) if score.is_open else 2 * self._rows)
                if not self._under_way:
                    return
                for output in self._engine.step():
                    yield from self._land(output)
        finally:
            self._engine.abort_request(list(self._under_way))
            self._under_way.clear()

    def _board(self, lane: _Lane, most: int) -> Iterator[Any]:
        while lane.is_open and lane.flying < most:
            job = next(lane.jobs, None)
            if job is None:
                lane.is_open = False
            else:
                yield from self._go_on(job, lane, None)

    def _go_on(self, job: Job[Any], lane: _Lane, outputs: list[Any] | None) -> Iterator[Any]:
        try:
            # A generator that has not begun takes None alone, which is what send declares for no other.
            asked = next(job) if outputs is None else job.send(outputs)
        except StopIteration as finished:
            yield finished.value
            return
        flight = _Flight(job=job, lane=lane, outputs=[None] * len(asked), missing=len(asked))
        lane.flying += len(asked)
        for index, (tokens, parameters) in enumerate(asked):
            name = str(next(self._numbers))
            self._under_way[name] = (flight, index)
            [rendered] = self._engine.renderer.render_cmpl([{"prompt_token_ids": list(tokens)}])
            self._engine.add_request(name, rendered, parameters)

    def _land(self, output: Any) -> Iterator[Any]:
        if not output.finished:
            return
        flight, index = self._under_way.pop(output.request_id)
        if flight.lane.is_scoring:
            self.prompt_tokens += len(output.prompt_token_ids)
            self.cached_tokens += output.num_cached_tokens or 0
        flight.outputs[index] = output
        flight.missing -= 1
        flight.lane.flying -= 1
        if not flight.missing:
            yield from self._go_on(flight.job, flight.lane, flight.outputs)


def describe(engine: Any) -> dict[str, str | int | float]:
    """The device, and how the engine was set up."""
    import torch
    from vllm.platforms import current_platform

    config, on_gpu = engine.vllm_config, has_gpu()
    return {
        # Not asked of torch, which would take memory of the GPU for it.
        "device": current_platform.get_device_name() if on_gpu else f"{platform.machine()} CPU",
        "cuda": str(torch.version.cuda or ""),
        "threads": torch.get_num_threads(),
        "loaded_dtype": str(config.model_config.dtype).removeprefix("torch."),
        "max_length": int(config.model_config.max_model_len),
        "model_runner": 2 if config.use_v2_model_runner else 1,
        "block_size": int(config.cache_config.block_size),
        "kv_cache_tokens": int(config.cache_config.num_gpu_blocks or 0) * int(config.cache_config.block_size),
        "max_num_seqs": int(config.scheduler_config.max_num_seqs),
        "max_num_batched_tokens": int(config.scheduler_config.max_num_batched_tokens),
        "tensor_parallel": int(config.parallel_config.tensor_parallel_size),
        "pipeline_parallel": int(config.parallel_config.pipeline_parallel_size),
        "nodes": int(config.parallel_config.nnodes),
    }
