"""Small configurations of every model family in the table, with the options that change a model's parameters."""

from __future__ import annotations

from typing import Any

Settings = dict[str, Any]

SIZES: Settings = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
EXPERTS: Settings = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
DEEPSEEK: Settings = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LATENT: Settings = {
    "q_lora_rank": 32,
    "kv_lora_rank": 48,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 24,
    "num_key_value_heads": 4,
    "head_dim": 16,
}
GPT2: Settings = {"vocab_size": 1024, "n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 512}
MAMBA2: Settings = {"mamba_n_heads": 8, "mamba_d_head": 32, "mamba_n_groups": 2, "mamba_d_state": 16}
DELTA: Settings = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 48,
}
OLD: Settings = {"vocab_size": 1024, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
BART: Settings = OLD | {"max_position_embeddings": 512}
ROPE: Settings = {"rope_type": "default", "rope_theta": 10000.0}
WINDOW: Settings = {"sliding_window": 32}

CONFIGS: dict[str, tuple[str, Settings]] = {
    "llama": ("llama", SIZES),
    "llama-biases": ("llama", SIZES | {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", SIZES | {"tie_word_embeddings": True, "head_dim": 48}),
    "gemma": ("gemma", SIZES | {"head_dim": 32, "tie_word_embeddings": True}),
    "granite": ("granite", SIZES | {"attention_bias": True}),
    "helium": ("helium", SIZES | {"head_dim": 32}),
    "smollm3": ("smollm3", SIZES),
    "seed-oss": ("seed_oss", SIZES | {"head_dim": 32, "attention_out_bias": True}),
    "cwm": ("cwm", SIZES | WINDOW | {"head_dim": 32, "num_hidden_layers": 5}),
    "mistral": ("mistral", SIZES | WINDOW),
    "mistral-no-window": ("mistral", SIZES | {"sliding_window": None, "head_dim": 48}),
    "ministral3": ("ministral3", SIZES | {"head_dim": 48}),
    "ministral": ("ministral", SIZES | WINDOW | {"head_dim": 48, "rope_parameters": ROPE}),
    "granite-swa": ("granite_swa", SIZES | WINDOW | {"num_hidden_layers": 5}),
    "qwen2": ("qwen2", SIZES),
    "qwen2-window": ("qwen2", SIZES | WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("qwen3", SIZES | {"head_dim": 64}),
    "hunyuan": ("hunyuan_v1_dense", SIZES | {"head_dim": 32}),
    "ernie-4.5": ("ernie4_5", SIZES | {"head_dim": 32, "use_bias": True}),
    "exaone4": ("exaone4", SIZES | WINDOW | {"sliding_window_pattern": 2}),
    "olmo": ("olmo", SIZES),
    "olmo2": ("olmo2", SIZES),
    "olmo3": ("olmo3", SIZES | WINDOW | {"num_hidden_layers": 5}),
    "bitnet": ("bitnet", SIZES),
    "cohere": ("cohere", SIZES | {"tie_word_embeddings": True, "use_qk_norm": True}),
    "cohere2": ("cohere2", SIZES | WINDOW | {"tie_word_embeddings": True, "num_hidden_layers": 5}),
    "gemma2": ("gemma2", SIZES | WINDOW | {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma3": ("gemma3_text", SIZES | WINDOW | {"head_dim": 32, "num_hidden_layers": 7, "tie_word_embeddings": True}),
    "vaultgemma": ("vaultgemma", SIZES | WINDOW | {"head_dim": 48}),
    "gemma4-e2b": (
        "gemma4_text",
        SIZES | WINDOW | {"head_dim": 32, "global_head_dim": 48, "num_hidden_layers": 8, "num_kv_shared_layers": 2,
                          "use_double_wide_mlp": True, "hidden_size_per_layer_input": 24,
                          "vocab_size_per_layer_input": 512, "tie_word_embeddings": True},
    ),
    "gemma4-31b": (
        "gemma4_text",
        SIZES | WINDOW | {"head_dim": 32, "global_head_dim": 64, "num_hidden_layers": 7, "attention_k_eq_v": True,
                          "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0},
    ),
    "gemma4-26b-a4b": (
        "gemma4_text",
        SIZES | WINDOW | {"head_dim": 32, "num_hidden_layers": 7, "enable_moe_block": True, "num_experts": 4,
                          "top_k_experts": 2, "moe_intermediate_size": 64, "hidden_size_per_layer_input": 0},
    ),
    "glm": ("glm", SIZES | {"head_dim": 32, "attention_bias": True}),
    "glm4": ("glm4", SIZES | {"head_dim": 32}),
    "phi3": ("phi3", SIZES | WINDOW),
    "stablelm": ("stablelm", SIZES),
    "stablelm-12b": ("stablelm", SIZES | {"qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True}),
    "arcee": ("arcee", SIZES),
    "apertus": ("apertus", SIZES),
    "nanochat": ("nanochat", SIZES),
    "nemotron": ("nemotron", SIZES | {"head_dim": 32}),
    "jais2": ("jais2", SIZES),
    "starcoder2": ("starcoder2", SIZES | WINDOW),
    "phi": ("phi", SIZES),
    "phi-norms": ("phi", SIZES | {"qk_layernorm": True}),
    "gpt2": ("gpt2", GPT2),
    "gpt2-wide": ("gpt2", GPT2 | {"n_inner": 384}),
    "gpt-bigcode": ("gpt_bigcode", GPT2),
    "gpt-bigcode-multi-head": ("gpt_bigcode", GPT2 | {"multi_query": False}),
    "gpt-neo": (
        "gpt_neo",
        {"vocab_size": 1024, "hidden_size": 128, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 512,
         "attention_types": [[["global", "local"], 2]], "window_size": 64},
    ),
    "gptj": ("gptj", GPT2 | {"rotary_dim": 16}),
    "codegen": ("codegen", GPT2 | {"rotary_dim": 16}),
    "gpt-neox": ("gpt_neox", SIZES),
    "gpt-neox-no-bias": ("gpt_neox", SIZES | {"attention_bias": False}),
    "persimmon": ("persimmon", SIZES),
    "opt": ("opt", BART | {"ffn_dim": 256, "word_embed_proj_dim": 128}),
    "opt-350m": ("opt", BART | {"ffn_dim": 256, "word_embed_proj_dim": 64, "do_layer_norm_before": False}),
    "biogpt": ("biogpt", BART | {"intermediate_size": 256}),
    "xglm": (
        "xglm",
        {"vocab_size": 1024, "d_model": 128, "num_layers": 3, "attention_heads": 4, "ffn_dim": 256,
         "max_position_embeddings": 512},
    ),
    "falcon-7b": ("falcon", OLD | {"multi_query": True}),
    "falcon-40b": ("falcon", OLD | {"num_kv_heads": 2, "new_decoder_architecture": True, "bias": True}),
    "falcon-rw": ("falcon", OLD | {"multi_query": False, "bias": True, "parallel_attn": False, "alibi": True}),
    "bloom": ("bloom", {"vocab_size": 1024, "hidden_size": 128, "n_layer": 3, "n_head": 4}),
    "mpt": ("mpt", {"vocab_size": 1024, "d_model": 128, "n_layers": 3, "n_heads": 4, "max_seq_len": 512}),
    # Experts
    "mixtral": ("mixtral", SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "phimoe": ("phimoe", SIZES | {"num_local_experts": 4, "lm_head_bias": True, "attention_bias": True}),
    "qwen2-moe": ("qwen2_moe", SIZES | EXPERTS | {"shared_expert_intermediate_size": 96}),
    "qwen3-moe": ("qwen3_moe", SIZES | EXPERTS | {"head_dim": 32}),
    "qwen3-moe-dense": ("qwen3_moe", SIZES | EXPERTS | {"mlp_only_layers": [0], "decoder_sparse_step": 2}),
    "olmoe": ("olmoe", SIZES | {"num_experts": 4, "num_experts_per_tok": 2}),
    "flex-olmo": ("flex_olmo", SIZES | {"num_experts": 4, "num_experts_per_tok": 2}),
    "minimax-m2": ("minimax_m2", SIZES | {"head_dim": 48, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe": ("granitemoe", SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe-shared": ("granitemoeshared", SIZES | {"num_local_experts": 4, "shared_intermediate_size": 96}),
    "granitemoe-swa": ("granitemoe_swa", SIZES | WINDOW | {"num_local_experts": 4, "num_hidden_layers": 5}),
    "mellum": ("mellum", SIZES | EXPERTS | {"head_dim": 48, "mlp_layer_types": ["dense", "sparse", "sparse"]}),
    "gpt-oss": (
        "gpt_oss",
        SIZES | WINDOW | {"head_dim": 48, "num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 4},
    ),
    "llama4": (
        "llama4_text",
        SIZES | {"head_dim": 48, "num_local_experts": 4, "intermediate_size_mlp": 320, "num_hidden_layers": 5,
                 "attention_chunk_size": 32},
    ),
    "llama4-interleaved": (
        "llama4_text",
        SIZES | {"num_local_experts": 4, "intermediate_size_mlp": 320, "interleave_moe_layer_step": 2},
    ),
    "ernie-4.5-moe": (
        "ernie4_5_moe",
        SIZES | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64, "moe_num_shared_experts": 2,
                 "moe_layer_start_index": 1},
    ),
    "afmoe": ("afmoe", SIZES | EXPERTS | WINDOW | {"head_dim": 32, "num_shared_experts": 1, "num_dense_layers": 1}),
    "hunyuan-moe": ("hunyuan_v1_moe", SIZES | {"head_dim": 32, "num_experts": 4, "moe_topk": 2}),
    "dots1": ("dots1", SIZES | DEEPSEEK),
    "exaone-moe": ("exaone_moe", SIZES | EXPERTS | WINDOW | {"num_hidden_layers": 5, "num_shared_experts": 1}),
    "hy-v3": ("hy_v3", SIZES | EXPERTS | {"head_dim": 48}),
    "hy-v3-dense": ("hy_v3", SIZES | EXPERTS | {"mlp_layer_types": ["dense", "dense", "sparse"]}),
    "glm4-moe": ("glm4_moe", SIZES | DEEPSEEK | {"head_dim": 48, "use_qk_norm": True, "attention_bias": True}),
    "solar-open": ("solar_open", SIZES | DEEPSEEK | {"head_dim": 32}),
    # Latent attention
    "deepseek-v2": ("deepseek_v2", SIZES | DEEPSEEK | LATENT),
    "deepseek-v2-lite": ("deepseek_v2", SIZES | DEEPSEEK | LATENT | {"q_lora_rank": None, "n_shared_experts": 2}),
    "deepseek-v3": ("deepseek_v3", SIZES | DEEPSEEK | LATENT),
    "deepseek-v3.2": ("deepseek_v32", SIZES | DEEPSEEK | LATENT | {"index_n_heads": 4, "index_head_dim": 24}),
    "glm4-moe-lite": ("glm4_moe_lite", SIZES | DEEPSEEK | LATENT),
    "glm-moe-dsa": ("glm_moe_dsa", SIZES | DEEPSEEK | LATENT | {"index_n_heads": 4, "index_head_dim": 24}),
    "minicpm3": ("minicpm3", SIZES | LATENT),
    "youtu": ("youtu", SIZES | LATENT),
    # Linear attention and state spaces
    "qwen3-next": ("qwen3_next", SIZES | EXPERTS | DELTA | {"shared_expert_intermediate_size": 96}),
    "qwen3.5": ("qwen3_5_text", SIZES | DELTA),
    "qwen3.5-moe": ("qwen3_5_moe_text", SIZES | EXPERTS | DELTA | {"shared_expert_intermediate_size": 96}),
    "mamba": ("mamba", {"vocab_size": 1024, "hidden_size": 128, "num_hidden_layers": 3, "use_bias": True}),
    "falcon-mamba": ("falcon_mamba", {"vocab_size": 1024, "hidden_size": 128, "num_hidden_layers": 3}),
    "mamba2": (
        "mamba2",
        {"vocab_size": 1024, "hidden_size": 128, "num_hidden_layers": 2, "head_dim": 32, "num_heads": 8, "n_groups": 2,
         "state_size": 16},
    ),
    "bamba": ("bamba", SIZES | MAMBA2 | {"attn_layer_indices": [1]}),
    "falcon-h1": ("falcon_h1", SIZES | MAMBA2 | {"mamba_d_ssm": 256, "head_dim": 32}),
    "falcon-h1-norm": ("falcon_h1", SIZES | MAMBA2 | {"mamba_d_ssm": 256, "mamba_rms_norm": True}),
    "jamba": (
        "jamba",
        SIZES | {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
                 "expert_layer_offset": 1, "mamba_d_state": 16, "use_mamba_kernels": False},
    ),
    "nemotron-h": (
        "nemotron_h",
        SIZES | {"layers_block_type": ["mamba", "moe", "attention", "mlp"], "num_hidden_layers": 4,
                 "mamba_num_heads": 8, "mamba_head_dim": 32, "n_groups": 2, "ssm_state_size": 16, "head_dim": 48,
                 "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_group": 1,
                 "topk_group": 1, "moe_shared_expert_intermediate_size": 96},
    ),
    "nemotron-h-pattern": (
        "nemotron_h",
        SIZES | {"hybrid_override_pattern": "M-*-", "mamba_num_heads": 8, "mamba_head_dim": 32, "head_dim": 32},
    ),
    "granitemoe-hybrid": (
        "granitemoehybrid",
        SIZES | MAMBA2 | {"layer_types": ["mamba", "attention", "mamba"], "num_local_experts": 4,
                          "num_experts_per_tok": 2, "shared_intermediate_size": 96},
    ),
    "granite-hybrid-dense": (
        "granitemoehybrid",
        SIZES | MAMBA2 | {"layer_types": ["mamba", "attention", "mamba"], "num_local_experts": 0,
                          "num_experts_per_tok": 0, "shared_intermediate_size": 96},
    ),
    "lfm2": ("lfm2", SIZES | {"layer_types": ["conv", "full_attention", "conv"], "block_ff_dim": 300}),
    "lfm2-moe": (
        "lfm2_moe", SIZES | EXPERTS | {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1}
    ),
    "recurrent-gemma": (
        "recurrent_gemma",
        SIZES | {"lru_width": 192, "num_key_value_heads": 1, "head_dim": 32, "attention_window_size": 64,
                 "tie_word_embeddings": True},
    ),
    "rwkv": ("rwkv", {"vocab_size": 1024, "hidden_size": 128, "num_hidden_layers": 2, "context_length": 512}),
}  # fmt: skip
"""Name of a configuration, its model_type, and the values that differ from transformers' defaults."""
