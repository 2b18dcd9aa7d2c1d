"""Tiny models of the true classes, random weights: one of each family that people use, and of each quirk."""

from typing import Any

import torch

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.3,
    "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
MHA = {"num_key_value_heads": 4}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1,
       "shared_expert_intermediate_size": 24}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0,
}  # fmt: skip
ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
LINEAR = {
    "linear_conv_kernel_dim": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"], "mlp_only_layers": [],
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip

# Name: (model type, settings beside SIZES).
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gpt_neox": ("gpt_neox", {}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "falcon": ("falcon", {"new_decoder_architecture": False, "multi_query": True}),
    "falcon_alibi": ("falcon", {"alibi": True, "multi_query": False, "new_decoder_architecture": False}),
    "llama": ("llama", {}),
    "llama4": ("llama4_text", {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 48,
                               "attention_chunk_size": 64, "moe_layers": [1], "rope_parameters": ROTARY}),
    "mistral": ("mistral", {}),
    "mixtral": ("mixtral", EXPERTS),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"sliding_window": 64, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {"sliding_window": 64, "query_pre_attn_scalar": 8}),
    "gemma3_vision": ("gemma3", {"text_config": SIZES | {"sliding_window": 64}, "vision_config": VISION,
                                 "mm_tokens_per_image": 4}),
    "gemma4": ("gemma4_text", {"sliding_window": 64, "hidden_size_per_layer_input": 8, "global_head_dim": 8,
                               "vocab_size_per_layer_input": 96, "final_logit_softcapping": 30.0,
                               "num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"]}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen2_moe": ("qwen2_moe", MOE),
    "qwen3_moe": ("qwen3_moe", MOE),
    "qwen3_next": ("qwen3_next", MOE | LINEAR),
    "deepseek_v2": ("deepseek_v2", LATENT),
    "deepseek_v3": ("deepseek_v3", LATENT),
    "glm4": ("glm4", {}),
    "glm4_moe": ("glm4_moe", {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                              "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}),
    "phi3": ("phi3", {"original_max_position_embeddings": 128}),
    "phimoe": ("phimoe", EXPERTS),
    "olmo2": ("olmo2", {}),
    "olmoe": ("olmoe", MOE),
    "stablelm": ("stablelm", {}),
    "smollm3": ("smollm3", {}),
    "cohere": ("cohere", {"logit_scale": 0.0625}),
    "granite": ("granite", {"logits_scaling": 8.0}),
    "granitemoe": ("granitemoe", EXPERTS | {"logits_scaling": 8.0}),
    "gpt_oss": ("gpt_oss", EXPERTS | {"rope_parameters": ROTARY, "sliding_window": 64}),
    "mamba": ("mamba", {"state_size": 4, "time_step_rank": 4, "intermediate_size": 64}),
    "falcon_h1": ("falcon_h1", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
                                "mamba_n_groups": 1, "mamba_expand": 1, "lm_head_multiplier": 0.25}),
    "jamba": ("jamba", {"num_experts": 2, "num_experts_per_tok": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
                        "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4,
                        "use_mamba_kernels": False}),
    "recurrent_gemma": ("recurrent_gemma", {"lru_width": 32, "attention_window_size": 64, "logits_soft_cap": 30.0,
                                            "block_types": ["recurrent", "attention"]}),
    "bert_decoder": ("bert", {"is_decoder": True}),
    "modernbert_decoder": ("modernbert-decoder", {"local_attention": 64, "bos_token_id": 2, "cls_token_id": 2,
                                                  "sep_token_id": 1}),
}  # fmt: skip
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {  # those that are no causal decoder
    "bert": ("bert", {}),
    "roberta": ("roberta", {}),
    "bart": ("bart", {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
                      "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}),
    "t5": ("t5", {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}),
}  # fmt: skip


def config(name: str, **changes: Any) -> Any:
    """The configuration of a tiny model of this family; ``changes`` go over what stands above."""
    from transformers import CONFIG_MAPPING

    kind, own = (DECODERS | REFUSED)[name]
    attention = MHA if kind in ("gpt2", "gpt_neox", "opt", "bloom", "mamba", "bert", "roberta", "bart", "t5") else {}
    settings = ({} if "text_config" in own else SIZES) | attention | own | changes
    if kind == "falcon":
        settings.pop("head_dim")
    return CONFIG_MAPPING[kind](**settings)


def build(name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    """A causal language model of this family with random weights, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(name, **changes), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 2 or not torch.isfinite(parameter).all():  # experts that are left as memory was
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()
