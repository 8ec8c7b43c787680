"""Parallel training as functions over a model: sharding, recomputation, clipping, the training state."""
