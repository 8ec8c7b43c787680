"""Hugging Face models, described, built and filled without patching them."""
