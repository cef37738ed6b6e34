"""Facts about the installed vLLM with which the planner refuses models (hpcq/catalog/backend_limits.py)."""

from __future__ import annotations

import inspect
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

from hpcq.catalog import backend_limits


def test_sizes_of_latent_attention_are_those_of_the_installed_version() -> None:
    """After an update of vLLM, this test shows which kernels it has for multi-head latent attention."""
    from vllm.v1.attention.backends.mla.amx_mla import AMXMLABackend
    from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend
    from vllm.v1.attention.backends.mla.prefill.base import MLAPrefillBackend
    from vllm.v1.attention.backends.mla.prefill.flashinfer import FlashInferPrefillBackend
    from vllm.v1.attention.backends.mla.prefill.tokenspeed_mla import TokenspeedMLAPrefillBackend
    from vllm.v1.attention.backends.mla.prefill.trtllm_ragged import TrtllmRaggedPrefillBackend
    from vllm.v1.attention.backends.mla.triton_mla import TritonMLABackend

    for backend in (CPUMLABackend, AMXMLABackend):
        assert backend.get_supported_head_sizes() == [backend_limits._LATENT_ROW_ON_CPUS]
    assert TritonMLABackend.get_supported_head_sizes() == []  # all sizes, on all GPUs
    assert _sizes("flash_attn") == set(backend_limits._LATENT_SIZES_ON_GPUS)
    for other in (FlashInferPrefillBackend, TokenspeedMLAPrefillBackend, TrtllmRaggedPrefillBackend):
        found = {
            tuple(getattr(one, key) for key in backend_limits._LATENT_SIZES) for one in other.supported_mla_dimensions
        }
        assert found
        assert found <= set(backend_limits._LATENT_SIZES_ON_GPUS)
    assert "float32" not in str(MLAPrefillBackend.supported_dtypes)


def _sizes(module: str) -> set[tuple[int, ...]]:
    """Return the sizes in the source of a module, which cannot be imported without a GPU."""
    spec = find_spec(f"vllm.v1.attention.backends.mla.prefill.{module}")
    assert spec
    assert spec.origin
    keys = r",\s*".join(rf"{key}=(\d+)" for key in backend_limits._LATENT_SIZES)
    return {tuple(map(int, found)) for found in re.findall(keys, Path(spec.origin).read_text(encoding="utf-8"))}


def test_families_with_latent_attention_are_those_of_the_installed_version() -> None:
    """The planner's list has only families that vLLM computes with these kernels."""
    from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

    for family in backend_limits._LATENT:
        config = SimpleNamespace(model_type=family, kv_lora_rank=512)
        assert ModelArchConfigConvertorBase(config, config).is_deepseek_mla(), family


def test_limits_in_the_source_of_the_installed_version() -> None:
    """The rules were derived from these lines. If one has changed, a rule may be obsolete."""
    from vllm.engine import arg_utils
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention
    from vllm.model_executor.layers.rotary_embedding import dynamic_ntk_scaling_rope
    from vllm.model_executor.models import deepseek_v2, lfm2, qwen2, qwen2_moe

    for module, line in (
        (qwen2, "assert config.max_window_layers == config.num_hidden_layers"),
        (arg_utils, 'all(lt == "sliding_attention" for lt in layer_types)'),
        (gdn_attention, "mixed_qkv.dtype == torch.bfloat16"),
        (deepseek_v2, 'getattr(config, "topk_method", None) == "noaux_tc"'),
        (deepseek_v2, 'getattr(config, "scoring_func", "softmax")'),
        (deepseek_v2, 'else "deepseek_yarn"'),
        (dynamic_ntk_scaling_rope, "torch.arange(self.max_position_embeddings"),
        (lfm2, "config.conv_dim"),
        (lfm2, "config.block_dim"),
    ):
        assert line in inspect.getsource(module), line
    assert "layer_types" not in inspect.getsource(qwen2_moe)
