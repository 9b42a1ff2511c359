"""What several policies are built of: pure functions of tensors and grids, written once."""
