"""What policies of the KV cache are built of: scores of its entries, whom they keep, and what becomes of the others."""
