"""Tensor operations of vtprune: each defined in torch, some with a Triton kernel beside; no model, no transformers."""

from vtprune_kernels.attention_columns import (
    Visible,
    attention_columns,
    attention_columns_reference,
    log_sum_exp,
    log_sum_exp_reference,
)
from vtprune_kernels.attention_rows import attention_rows, attention_rows_reference
from vtprune_kernels.dispatch import backend, backend_reason
from vtprune_kernels.frame_similarity import frame_similarity, frame_similarity_reference
from vtprune_kernels.gather import gather_tokens, gather_tokens_reference
from vtprune_kernels.gather_site import gather_site, gather_site_reference
from vtprune_kernels.greedy_rules import DPP, MMR, Coverage, MatrixCoverage, MaxMin
from vtprune_kernels.greedy_select import greedy_select, greedy_select_reference
from vtprune_kernels.merge import merge_tokens, merge_tokens_reference
from vtprune_kernels.pack import pack, pack_reference, unpack, unpack_reference
from vtprune_kernels.transition import transition, transition_reference

__all__ = [
    "DPP",
    "MMR",
    "Coverage",
    "MatrixCoverage",
    "MaxMin",
    "Visible",
    "attention_columns",
    "attention_columns_reference",
    "attention_rows",
    "attention_rows_reference",
    "backend",
    "backend_reason",
    "frame_similarity",
    "frame_similarity_reference",
    "gather_site",
    "gather_site_reference",
    "gather_tokens",
    "gather_tokens_reference",
    "greedy_select",
    "greedy_select_reference",
    "log_sum_exp",
    "log_sum_exp_reference",
    "merge_tokens",
    "merge_tokens_reference",
    "pack",
    "pack_reference",
    "transition",
    "transition_reference",
    "unpack",
    "unpack_reference",
]
