"""What this package relies on in TRL beyond its public interface. A test compares it with the TRL that is installed,
so that an upgrade fails there first.
"""

TRL_HOOKS: dict[str, list[str]] = {
    "_generate_and_score_completions": ["inputs"],
    "_tokenize_prompts": ["prompts"],
    "_generate_single_turn": ["prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
    "_get_per_token_logps_and_entropies": [
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
    ],
    "_compute_loss": ["model", "inputs"],
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
    "_get_train_sampler": ["dataset"],
    "_save_checkpoint": ["model", "trial"],
    "_load_optimizer_and_scheduler": ["checkpoint"],
}
"""Methods of `GRPOTrainer` that are overridden or called, with their first parameters."""

DIVERGENCE_KERNEL = [
    "student_hidden",
    "student_weight",
    "student_bias",
    "teacher_hidden",
    "teacher_weight",
    "teacher_bias",
    "beta",
    "temperature",
    "student_logit_scale",
    "student_final_logit_softcapping",
    "teacher_logit_scale",
    "teacher_final_logit_softcapping",
]
"""Parameters of `trl.kernels.chunked_divergence.ChunkedDivergenceFunction`."""

ATTRIBUTES = [
    "_step",
    "_buffered_inputs",
    "_total_train_tokens",
    "_metrics",
    "_tokenizer",
    "_is_vlm",
    "generation_config",
    "eos_token_ids",
    "num_iterations",
    "temperature",
    "reward_func_names",
    "reward_weights",
    "mask_truncated_completions",
]
"""Attributes of a `GRPOTrainer`."""
