"""Tensor operations of vtprune: each defined in torch, some with a Triton kernel beside; no model, no transformers."""

from vtprune_kernels.gather import gather_tokens, gather_tokens_reference
from vtprune_kernels.merge import merge_tokens, merge_tokens_reference

__all__ = ["gather_tokens", "gather_tokens_reference", "merge_tokens", "merge_tokens_reference"]
