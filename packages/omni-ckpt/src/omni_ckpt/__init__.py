"""Checkpoints: sharded while training, Hugging Face when done."""
