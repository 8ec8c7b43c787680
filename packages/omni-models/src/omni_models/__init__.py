"""Hugging Face models, described, built and filled without patching them."""

from omni_models.attention import AttentionFn as AttentionFn
from omni_models.build import build_model as build_model
from omni_models.build import read_config as read_config
from omni_models.build import save_config as save_config
from omni_models.choose import attention_problems as attention_problems
from omni_models.choose import choose_attention as choose_attention
from omni_models.facts import ModelFacts as ModelFacts
from omni_models.facts import describe as describe
from omni_models.facts import flops_per_token as flops_per_token
from omni_models.kernels import fitting_kernels as fitting_kernels
from omni_models.kernels import kernel_problems as kernel_problems
from omni_models.kernels import use_kernels as use_kernels
from omni_models.loss import choose_loss as choose_loss
from omni_models.loss import count_targets as count_targets
from omni_models.loss import loss_problems as loss_problems
from omni_models.loss import summed_loss as summed_loss
from omni_models.presets import PRESETS as PRESETS
from omni_models.rope import exact_rope as exact_rope
from omni_models.seams import map_attention as map_attention
from omni_models.seams import use_attention as use_attention
from omni_models.support import unsupported as unsupported
from omni_models.weights import fill_weights as fill_weights
from omni_models.weights import plan_weights as plan_weights
