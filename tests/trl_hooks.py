"""What this package relies on in TRL beyond its public interface. Tests compare it with the TRL that is installed, so
that an upgrade fails there first, and with what the package's code names, so that nothing is missing here.
"""

TRL_HOOKS: dict[str, list[str]] = {
    "_generate_and_score_completions": ["inputs"],
    "_tokenize_prompts": ["prompts"],
    "_get_tool_suffix_ids": ["tool_messages"],
    "_generate_single_turn": ["prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
    "_get_per_token_logps_and_entropies": [
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
        "compute_aux_loss",
    ],
    "_prepare_inputs": ["generation_batch"],
    "_compute_loss": ["model", "inputs"],
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
    "_get_train_sampler": ["dataset"],
    "_get_output_dir": ["trial"],
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
    # what it keeps between steps
    "_step",
    "_buffered_inputs",
    "_entropy_bonus_enabled",
    "_total_train_tokens",
    "_metrics",
    # what it is made of
    "_tokenizer",
    "_is_vlm",
    "_dist",
    "ref_model",
    "reward_weights",
    # what a model card says
    "_name",
    "_paper",
    "_tag_names",
    # its configuration, as it uses it
    "aux_loss_enabled",
    "chat_template_kwargs",
    "eos_token_ids",
    "generation_config",
    "generation_kwargs",
    "loss_type",
    "mask_truncated_completions",
    "num_generations",
    "num_generations_eval",
    "num_iterations",
    "pad_to_multiple_of",
    "top_entropy_quantile",
    "use_transformers_continuous_batching",
    "use_vllm",
    "vllm_mode",
    "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min",
    "vllm_importance_sampling_mode",
    "reward_func_names",
    "reward_weights",
]
"""Attributes of a `GRPOTrainer`, those with an underscore and those that it alone assigns."""

ENGINE = ["vllm_generation", "_last_loaded_step"]
"""Attributes of a `GRPOTrainer` that exist with vLLM alone."""

ENGINE_ATTRIBUTES = [
    # what it samples by, of which the first three are set between its calls
    "generation_kwargs",
    "max_completion_length",
    "temperature",
    "min_p",
    "repetition_penalty",
    "structured_outputs_regex",
    "top_k",
    "top_p",
    # its weights, and vLLM's own object
    "_llm_weights_sleeping",
    "enable_sleep_mode",
    "llm",
    "sync_weights",
]
"""What is read, set or called of the engine, a `trl.generation.vllm_generation.VLLMGeneration`."""

FUNCTIONS: dict[str, list[str]] = {
    "trl.extras.profiling.profiling_context": ["trainer", "name"],
    "trl.trainer.utils.pad": ["tensors", "padding_value", "padding_side", "pad_to_multiple_of"],
    "trl.trainer.utils.use_adapter": ["model", "adapter_name"],
    "trl.trainer.utils.get_config_model_id": ["config"],
    "trl.trainer.utils.add_fused_lm_head": ["model", "temperature", "cast_lm_head_to_fp32", "outputs"],
    "trl.trainer.utils.create_model_from_path": ["model_id", "architecture", "kwargs"],
    "trl.models.utils.prepare_deepspeed": ["model", "accelerator"],
    "trl.models.utils.prepare_fsdp": ["model", "accelerator"],
    "trl.models.utils.disable_gradient_checkpointing": ["model", "gradient_checkpointing_kwargs"],
    "trl.models.utils.unwrap_model_for_generation": [
        "model",
        "accelerator",
        "gather_deepspeed3_params",
        "generation_kwargs",
        "gradient_checkpointing_kwargs",
    ],
}
"""Functions from below TRL's top level, with their parameters."""

OTHERS: dict[str, list[str]] = {
    "accelerate.state.GradientState._set_sync_gradients": ["self", "sync_gradients"],
    "transformers.generation.GenerationMixin._supports_default_dynamic_cache": [],
}
"""Private names of Accelerate and Transformers, with their parameters."""
