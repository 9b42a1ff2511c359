"""What vtprune leans on in transformers: names that, were they to move, would break it.

A row is who of ours uses it, how, where it stands, and its names. Where: a module below transformers, "/llava" being
the modelling file of a model and "/llava/configuration" that file of it; a colon; a class or function. Of names joined
by "|" one is enough, as releases differ. HAS: attributes, methods and fields. TAKES: arguments of a call. HOLDS: what
the class's own code gives its instances. SAYS: names that the code of a function has in it.
"""

from __future__ import annotations

from collections.abc import Iterator

HAS, TAKES, HOLDS, SAYS = "has", "takes", "holds", "says"

Row = tuple[str, str, str, str]

_LAYER = "update get_seq_length get_mask_sizes reorder_cache reset"
_HELD = "keys values is_initialized is_sliding"

CORE: tuple[Row, ...] = (
    (
        "cache.py",
        HAS,
        "cache_utils",
        "Cache DynamicLayer DynamicSlidingWindowLayer StaticLayer StaticSlidingWindowLayer",
    ),
    ("cache.py", HAS, "cache_utils:DynamicLayer", f"{_LAYER} batch_select_indices batch_repeat_interleave crop"),
    ("cache.py", HAS, "cache_utils:StaticLayer", _LAYER),
    ("cache.py", TAKES, "cache_utils:DynamicLayer.update", "key_states value_states"),
    ("cache.py", TAKES, "cache_utils:StaticLayer.update", "key_states value_states"),
    ("cache.py", TAKES, "cache_utils:DynamicLayer.get_mask_sizes", "query_length"),
    ("cache.py", TAKES, "cache_utils:StaticLayer.get_mask_sizes", "query_length"),
    ("cache.py", TAKES, "cache_utils:StaticLayer", "max_cache_len"),
    ("cache.py", HOLDS, "cache_utils:DynamicLayer", _HELD),
    ("cache.py", HOLDS, "cache_utils:StaticLayer", f"{_HELD} max_cache_len cumulative_length"),
    ("cache.py", HOLDS, "cache_utils:StaticSlidingWindowLayer", "cumulative_length_int"),
    ("cache.py", HOLDS, "cache_utils:Cache", "layers layer_class_to_replicate"),
    ("states.py", HOLDS, "cache_utils:LinearAttentionLayer", "has_previous_state conv_states recurrent_states"),
    ("families/base.py encoder.py", HAS, "modeling_outputs:BaseModelOutputWithPooling", "pooler_output"),
    ("pruner.py", HAS, "modeling_outputs:BaseModelOutputWithPast", "past_key_values"),
    (
        "compat.py",
        SAYS,
        "configuration_utils:PreTrainedConfig._attn_implementation.fget",
        "_attn_implementation_internal",
    ),
    ("compat.py", HAS, "configuration_utils:PreTrainedConfig", "_attn_implementation"),
    ("families/detect.py", HAS, "modeling_utils:PreTrainedModel", "get_decoder base_model get_input_embeddings"),
    ("attention.py", TAKES, "integrations.sdpa_attention:sdpa_attention_forward", "scaling is_causal attention_mask"),
    ("attention.py", SAYS, "integrations.sdpa_attention:sdpa_attention_forward", "scaled_dot_product_attention"),
    ("clock.py cli/quiet.py", HAS, "", "StoppingCriteria DynamicCache AutoProcessor AutoModelForImageTextToText"),
    ("clip_question.py", HOLDS, "/clip:CLIPModel", "text_model text_projection vision_model visual_projection"),
    (
        "between.py",
        TAKES,
        "/qwen3_vl:Qwen3VLTextModel._deepstack_process",
        "hidden_states visual_pos_masks visual_embeds",
    ),
    ("between.py", SAYS, "/qwen3_vl:Qwen3VLTextModel.forward", "_deepstack_process"),
    ("between.py", SAYS, "/qwen3_omni_moe:Qwen3OmniMoeThinkerTextModel.forward", "_deepstack_process"),
    ("compat.py", TAKES, "/gemma3:Gemma3RotaryEmbedding.forward", "layer_type position_ids"),
    ("compat.py", HAS, "/gemma3/configuration:Gemma3TextConfig", "layer_types sliding_window"),
    ("compat.py", HAS, "/gemma4/configuration:Gemma4TextConfig", "layer_types num_kv_shared_layers"),
    ("families/gemma3n.py", HAS, "/gemma3n/configuration:Gemma3nTextConfig", "altup_active_idx"),
    ("families/gemma3n.py", HOLDS, "/gemma3n:Gemma3nTextDecoderLayer", "altup input_layernorm"),
    ("families/llama4.py", HAS, "/llama4/configuration:Llama4TextConfig", "attn_temperature_tuning floor_scale"),
    ("families/phi4.py", HOLDS, "/phi4_multimodal:Phi4MultimodalModel", "embed_tokens_extend layers norm"),
    ("families/phi4.py", HOLDS, "/phi4_multimodal:Phi4MultimodalFeatureEmbedding", "image_embed"),
    (
        "families/phi4.py",
        HOLDS,
        "/phi4_multimodal:Phi4MultimodalImageEmbedding",
        "img_processor image_token_compression",
    ),
)

DECODERS = (
    ("/llama", "LlamaModel", "Llama"),
    ("/qwen2", "Qwen2Model", "Qwen2"),
    ("/mistral", "MistralModel", "Mistral"),
    ("/gemma", "GemmaModel", "Gemma"),
    ("/gemma3", "Gemma3TextModel", "Gemma3"),
    ("/qwen2_vl", "Qwen2VLTextModel", "Qwen2VL"),
    ("/qwen2_5_vl", "Qwen2_5_VLTextModel", "Qwen2_5_VL"),
    ("/qwen3_vl", "Qwen3VLTextModel", "Qwen3VLText"),
)
"""Modelling file, decoder, and how the names of its layers and of their attention begin."""


def _of_decoder(file: str, decoder: str, layer: str) -> Iterator[Row]:
    attention = f"{file}:{layer}Attention"
    yield "pruner.py compat.py parts.py", HOLDS, f"{file}:{decoder}", "layers norm rotary_emb"
    yield "pruner.py", TAKES, f"{file}:{decoder}.forward", "inputs_embeds position_ids attention_mask past_key_values"
    taken = "hidden_states attention_mask position_ids past_key_values position_embeddings|kwargs"
    yield "narrow.py", TAKES, f"{file}:{layer}DecoderLayer.forward", taken
    yield "narrow.py", SAYS, f"{file}:{decoder}.forward", "position_embeddings"
    held = "self_attn mlp input_layernorm post_attention_layernorm"
    yield "inside.py parts.py", HOLDS, f"{file}:{layer}DecoderLayer", held
    yield "attention.py sight.py", HOLDS, attention, "config q_proj k_proj v_proj layer_idx scaling is_causal"
    yield "attention.py", TAKES, f"{attention}.forward", "hidden_states attention_mask past_key_values"


_GRID, _PIXELS = "pixel_values image_grid_thw", "pixel_values"
_CLIP, _STACK = "pixel_values_videos video_grid_thw", "pixel_values_videos|pixel_values"
_SEES, _PROJECTS = "language_model visual", "language_model vision_tower multi_modal_projector"
_OMNI2 = "Qwen2_5OmniThinkerModel|Qwen2_5OmniThinkerForConditionalGeneration"
_OMNI3 = "Qwen3OmniMoeThinkerModel|Qwen3OmniMoeThinkerForConditionalGeneration"

BASES = (
    ("deepseek_vl", "/deepseek_vl:DeepseekVLModel", "language_model vision_model aligner", _PIXELS, ""),
    ("deepseek_vl", "/janus:JanusModel", "language_model vision_model aligner", _PIXELS, ""),
    ("ernie", "/ernie4_5_vl_moe:Ernie4_5_VLMoeModel", "language_model resampler_model", _GRID, _CLIP),
    ("exaone", "/exaone4_5:Exaone4_5_Model", _SEES, _GRID, _CLIP),
    ("gemma3n", "/gemma3n:Gemma3nModel", "language_model embed_vision", _PIXELS, ""),
    (
        "gemma4",
        "/gemma4:Gemma4Model",
        "language_model vision_tower embed_vision",
        "pixel_values image_position_ids",
        "pixel_values_videos video_position_ids",
    ),
    ("glm4v", "/glm4v:Glm4vModel", _SEES, _GRID, _CLIP),
    ("granite4_vision", "/granite4_vision:Granite4VisionModel", "language_model vision_tower", "image_sizes", ""),
    ("hunyuan_vl", "/hunyuan_vl:HunYuanVLModel", "language_model", _GRID, ""),
    ("idefics", "/idefics3:Idefics3Model", "text_model vision_model", _PIXELS, ""),
    ("internvl", "/internvl:InternVLModel", _PROJECTS, _PIXELS, ""),
    ("kimi", "/kimi_k25:Kimi_K25Model", "language_model vision_tower mm_projector", _GRID, _CLIP),
    ("latents", "/aria:AriaModel", _PROJECTS, _PIXELS, ""),
    ("latents", "/idefics2:Idefics2Model", "text_model vision_model connector", _PIXELS, ""),
    ("lfm", "/lfm2_vl:Lfm2VlModel", _PROJECTS, "pixel_values spatial_shapes", ""),
    ("lfm", "/lfm3_vl:Lfm3VlModel", "language_model", _GRID, _CLIP),
    (
        "lighton_ocr",
        "/lighton_ocr:LightOnOcrModel",
        "language_model vision_encoder vision_projection",
        "image_sizes",
        "",
    ),
    ("llama4", "/llama4:Llama4ForConditionalGeneration", "language_model vision_model", _PIXELS, ""),
    ("llava", "/llava:LlavaModel", _PROJECTS, _PIXELS, ""),
    ("llava", "/vipllava:VipLlavaModel", _PROJECTS, _PIXELS, ""),
    ("llava", "/paligemma:PaliGemmaModel", _PROJECTS, _PIXELS, ""),
    ("llava", "/gemma3:Gemma3Model", _PROJECTS, _PIXELS, ""),
    ("llava_next", "/llava_next:LlavaNextModel", _PROJECTS, "pixel_values image_sizes", ""),
    ("llava_next", "/llava_next_video:LlavaNextVideoModel", _PROJECTS, "pixel_values image_sizes", _STACK),
    ("llava_next", "/llava_onevision:LlavaOnevisionModel", _PROJECTS, "image_sizes batch_num_images", _STACK),
    (
        "minicpm",
        "/minicpmv4_6:MiniCPMV4_6Model",
        "language_model vision_tower",
        "pixel_values target_sizes",
        "pixel_values_videos target_sizes_videos",
    ),
    ("mistral", "/mistral3:Mistral3Model", _PROJECTS, "pixel_values image_sizes", ""),
    (
        "molmo2",
        "/molmo2:Molmo2Model",
        "language_model vision_tower",
        "image_grids image_token_pooling",
        "video_grids video_token_pooling",
    ),
    ("omni", f"/qwen2_5_omni:{_OMNI2}", "visual language_model|model", _GRID, _CLIP),
    ("omni", f"/qwen3_omni_moe:{_OMNI3}", "visual language_model|model", _GRID, _CLIP),
    ("paddleocr", "/paddleocr_vl:PaddleOCRVLModel", "language_model visual projector", _GRID, ""),
    ("qwen3_5", "/qwen3_5:Qwen3_5Model", _SEES, _GRID, _CLIP),
    ("qwen_vl", "/qwen2_vl:Qwen2VLModel", _SEES, _GRID, _CLIP),
    ("qwen_vl", "/qwen2_5_vl:Qwen2_5_VLModel", _SEES, _GRID, _CLIP),
    ("qwen_vl", "/qwen3_vl:Qwen3VLModel", _SEES, _GRID, _CLIP),
    ("tiles", "/cohere2_vision:Cohere2VisionModel", "language_model vision_tower", _PIXELS, ""),
    ("timm_towers", "/perception_lm:PerceptionLMModel", _PROJECTS, _PIXELS, ""),
    (
        "video_llama",
        "/video_llama_3:VideoLlama3Model",
        "language_model vision_model projector",
        f"{_GRID} image_merge_sizes",
        f"{_CLIP} video_merge_sizes",
    ),
    (
        "video_llava",
        "/video_llava:VideoLlavaModel",
        "language_model image_tower video_tower",
        "pixel_values|pixel_values_images",
        "pixel_values_videos",
    ),
)
"""Of our family files, without the ending: the model that encodes pictures, its parts, arguments of its encoders."""

ARRANGED: tuple[Row, ...] = (
    (
        "families/llava_next.py",
        TAKES,
        "/llava_next:LlavaNextModel.pack_image_features",
        "image_features image_sizes vision_feature_select_strategy image_newline",
    ),
    (
        "families/llava_next.py",
        TAKES,
        "/llava_onevision:LlavaOnevisionModel.pack_image_features",
        "image_features image_sizes image_newline vision_aspect_ratio",
    ),
    ("families/llava_next.py", TAKES, "/llava_onevision:LlavaOnevisionModel.apply_pooling", "image_features"),
    ("families/video_llama.py", HAS, "/video_llama_3:VideoLlama3VisionModel", "pixel_unshuffle"),
    ("families/llava_next.py", HAS, "/llava_next/configuration:LlavaNextConfig", "image_grid_pinpoints"),
    (
        "families/qwen_vl.py",
        HAS,
        "/qwen2_vl/configuration:Qwen2VLVisionConfig",
        "spatial_merge_size temporal_patch_size",
    ),
    (
        "families/qwen_vl.py",
        HAS,
        "/qwen2_5_vl/configuration:Qwen2_5_VLVisionConfig",
        "window_size fullatt_block_indexes",
    ),
    ("families/internvl.py", HAS, "/internvl/configuration:InternVLConfig", "downsample_ratio"),
    ("families/idefics.py", HAS, "/idefics3/configuration:Idefics3Config", "scale_factor"),
)


def _of_base(file: str, where: str, holds: str, image: str, video: str) -> Iterator[Row]:
    file = f"families/{file}.py"
    yield file, HOLDS, where, holds
    for kind, names in (("image", image), ("video", video)):
        if names:
            yield file, TAKES, f"{where}.get_{kind}_features", names


def rows() -> list[Row]:
    """The whole table."""
    decoders = (row for decoder in DECODERS for row in _of_decoder(*decoder))
    bases = (row for base in BASES for row in _of_base(*base))
    return [*CORE, *decoders, *bases, *ARRANGED]
