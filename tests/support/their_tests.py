"""transformers' own tests of its Longformer: which of ours check the same, and which are left out, and why.

``their_tests.json`` has the names of all of them, of release 5.23.0: those in its test file for Longformer, and those
that every model's tests inherit. (A mixin for exporters is not in its archive; exported models are in
``tests/models/test_graphs.py``.)
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = "against_transformers/test_their_tests.py"
HEADS_HERE = "against_transformers/test_heads.py"
FILES = "against_transformers/test_head_files.py"
OUTPUTS = "against_transformers/test_outputs.py"
RELEASED = "against_transformers/test_released.py"
ACCELERATE = "integrations/test_accelerate.py"

# Their names, or patterns of them, and our tests, by file.
MAPPED: dict[str, dict[str, tuple[str, ...]]] = {
    HERE: {
        "test_config": ("test_a_config_is_written_and_read",),
        "test_model": ("test_shapes",),
        "test_model_attention_mask_determinism": ("test_a_mask_of_ones_is_none",),
        "test_batching_equivalence": ("test_rows_do_not_depend_on_each_other",),
        "test_layer_local_attn": ("test_a_layer_of_attention",),
        "test_layer_global_attn": ("test_a_layer_of_attention",),
        "test_layer_attn_probs": ("test_a_layer_of_attention",),
        "test_save_load": ("test_saved_and_loaded",),
        "test_torch_save_load": ("test_saved_and_loaded",),
        "test_load_contiguous_weights": ("test_saved_and_loaded",),
        "test_can_use_safetensors": ("test_saved_and_loaded",),
        "test_from_pretrained_no_checkpoint": ("test_from_weights_alone",),
        "test_gradient_checkpointing_enable_disable": ("test_training",),
        "test_training": ("test_training",),
        "test_training_gradient_checkpointing*": ("test_training",),
        "test_enable_input_require_grads*": ("test_inputs_that_require_gradients",),
        "test_can_init_all_missing_weights": ("test_fresh_weights",),
        "test_init_weights_can_init_buffers": ("test_every_tensor_is_a_parameter",),
        "test_all_tensors_are_parameter_or_buffer": ("test_every_tensor_is_a_parameter",),
        "test_can_be_initialized_on_meta": ("test_every_tensor_is_a_parameter",),
        "test_determinism": ("test_the_same_twice",),
        "test_model_get_set_embeddings": ("test_names_that_tools_ask_for",),
        "test_model_main_input_name": ("test_names_that_tools_ask_for",),
        "test_model_base_model_prefix": ("test_names_that_tools_ask_for",),
        "test_internal_model_config_and_subconfig_are_same": ("test_names_that_tools_ask_for",),
        "test_resize_tokens_embeddings": ("test_another_vocabulary",),
        "test_tied_weights_keys": ("test_tied_weights",),
        "test_model_weights_reload_no_missing_tied_weights": ("test_tied_weights",),
        "test_model_outputs_equivalence": ("test_tuples_and_outputs_are_the_same",),
        "test_inputs_embeds": ("test_embeddings_in_place_of_ids",),
        "test_inputs_embeds_matches_input_ids": ("test_embeddings_in_place_of_ids",),
        "test_model_forward_default_config_values": ("test_a_config_without_what_has_a_default",),
        "test_can_load_with_device_context_manager": ("test_a_default_device",),
        "test_can_load_with_global_device_set": ("test_a_default_device",),
        "test_cannot_load_with_meta_device_context_manager": ("test_a_default_device",),
        "test_bc_torch_dtype": ("test_either_name_of_the_precision",),
        "test_load_with_mismatched_shapes": ("test_weights_of_another_shape",),
        "test_can_load_ignoring_mismatched_shapes": ("test_weights_of_another_shape",),
    },
    "against_transformers/test_forward.py": {"test_model_global_attention_mask": ("test_every_layer_in_float64",)},
    HEADS_HERE: {
        "test_for_*": ("test_states_and_results_in_float64", "test_loss_and_gradients_in_float64"),
        "test_problem_types": ("test_loss_and_gradients_in_float64",),
    },
    OUTPUTS: {
        "test_attention_outputs": ("test_hidden_states_and_attentions", "test_every_head_has_them"),
        "test_hidden_states_output": ("test_hidden_states_and_attentions", "test_every_head_has_them"),
    },
    FILES: {
        "test_correct_missing_keys": ("test_a_head_from_another_s_checkpoint",),
        "test_base_model_prefix_loads_base_weights": ("test_a_head_from_another_s_checkpoint",),
    },
    "models/test_outputs.py": {
        "test_retain_grad_hidden_states_attentions": ("test_attentions_have_gradients_in_training",)
    },
    RELEASED: {
        "test_inference_no_head": ("test_base_on_a_short_text",),
        "test_inference_no_head_long": ("test_base_on_a_long_text",),
        "test_inference_masked_lm_long": ("test_masked_lm_on_a_long_text",),
    },
    ACCELERATE: {
        "test_cpu_offload": ("test_cpu_offload",),
        "test_disk_offload_*": ("test_disk_offload",),
        "test_model_parallelism": ("test_dispatch_model",),
    },
    "models/test_classification.py": {
        "test_torch_compile_for_training": ("test_a_training_step_compiles_in_one_graph",)
    },
}

LEFT_OUT: dict[str, tuple[str, ...]] = {
    "steps inside its implementation of the window; ours is compared by results": (
        "test_diagonalize",
        "test_pad_and_transpose_last_two_dims",
        "test_chunk",
        "test_mask_invalid_locations",
    ),
    "its pipelines, which take its own classes; with our attention inside: integrations/test_transformers_tools.py": (
        "test_pipeline_*",
    ),
    "a choice among attention implementations that its Longformer does not have; ours are in tests/kernels": (
        "test_flash_attn_*",
        "test_sdpa_*",
        "test_eager_matches_*",
        "test_flex_attention_with_grads",
        "test_*attn_implementation*",
        "test_can_set_attention_dynamically*",
        "test_kernels_can_load_without_crashing",
        "test_sliding_window_mask",
    ),
    "for models of images, sound, video, for experts, for decoders and for rotary positions": (
        "test_get_*_features_*",
        "test_*router_logits*",
        "test_model_rope_*",
        "test_vision_axial_rope",
        "test_encoder_decoder_loss_no_double_shift",
        "test_causal_lm_loss_honors_shift_labels",
        "test_generation_tester_mixin_inheritance",
    ),
    "rules for that library's own classes and test files": (
        "test_num_layers_is_small",
        "test_model_is_small",
        "test_tp_plan_matches_params",
        "test_tied_head_has_a_tp_plan_entry",
        "test_capture_outputs_decorator",
        "test_format_of_can_record_outputs",
        "test_can_capture_specific_layers_hidden_states",
        "test_reverse_loading_mapping",
        "test_can_load_from_already_mapped_keys",
        "test_keep_in_fp32_modules*",
        "test_save_load_keys_to_ignore_on_save",
        "test_gradient_checkpointing_backward_compatibility",
    ),
    "an output that is not tied to the word embeddings, which this model does not have": (
        "test_resize_embeddings_untied*",
        "test_load_save_without_tied_weights",
    ),
    "DeepSpeed, whose place is a cluster": ("test_resize_tokens_embeddings_with_deepspeed*",),
    "work in pieces of the feed-forward, to save memory that the packed engine does not take": (
        "test_feed_forward_chunking",
    ),
    "more positions, which `longformer convert --to-long` makes: tests/test_convert.py": (
        "test_resize_position_vector_embeddings",
    ),
    "adapters, which have tests of their own: tests/integrations": ("test_peft_gradient_checkpointing_enable_disable",),
}


def their_names() -> set[str]:
    """The names of all their tests."""
    found: dict[str, list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return {name for names in found.values() for name in names}
