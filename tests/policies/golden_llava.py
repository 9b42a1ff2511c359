"""A LLaVA around the LLaMA of a golden case: its text is the stored embeddings, its projector says the stored image."""

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vtprune
from tests.policies.golden import weights

FIRST = 50  # ids below never stand in a prompt


def llava_with(case: dict, idle_layers: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model and its inputs. idle_layers: more decoder layers at the end that add nothing to what they are given."""
    embeds, state = case["inputs_embeds"][0], weights(case)
    start, n = int(case["image_start"]), int(case["n_image"])
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers."))
    words = len(embeds) + FIRST
    text = LlamaConfig(
        vocab_size=words + 1,
        hidden_size=embeds.shape[1],
        intermediate_size=len(state["layers.0.mlp.up_proj.weight"]),
        num_hidden_layers=depth + idle_layers,
        num_attention_heads=int(case["heads"]),
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=words, image_seq_length=4)
    model = LlavaForConditionalGeneration(config).eval()
    decoder = {key: value for key, value in state.items() if not key.startswith("embed")}
    table = torch.zeros(words + 1, embeds.shape[1])
    table[FIRST:words] = embeds
    decoder["embed_tokens.weight"] = table
    missing, unknown = model.model.language_model.load_state_dict(decoder, strict=False)
    assert not unknown and all(int(key.split(".")[1]) >= depth for key in missing)
    with torch.no_grad():
        for layer in model.model.language_model.layers[depth:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.model.multi_modal_projector.register_forward_hook(lambda *_: embeds[None, start : start + n])
    ids = torch.arange(FIRST, words)[None]
    ids[:, start : start + n] = words
    return model, {"input_ids": ids, "pixel_values": torch.zeros(1, 3, 8, 8, dtype=embeds.dtype)}


@torch.no_grad()
def run(case: dict, policy, idle_layers: int = 0) -> tuple[list[Tensor], list[int], Tensor]:
    """Through ``wrap`` and ``generate``: kept tokens at each site (counted before any pruning), keys in each layer's
    cache, and the hidden states (1, L', D) that the last norm puts out, of the columns that are left."""
    model, inputs = llava_with(case, idle_layers)
    final = {}
    with vtprune.pruned(model, policy) as report:
        model.model.language_model.norm.register_forward_hook(lambda module, args, out: final.setdefault("hidden", out))
        out = model.generate(
            **inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        kept = [record.kept[0] for record in report.sites]
    lengths = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    start, n, total = int(case["image_start"]), int(case["n_image"]), inputs["input_ids"].shape[1]
    columns = [*range(start), *(kept[-1] + start).tolist(), *range(start + n, total)]
    return kept, lengths, final["hidden"][:, columns]
