"""Hugging Face models, described, built and filled without patching them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from omni_models.adapters import merge_adapters as merge_adapters
    from omni_models.adapters import peft_keys as peft_keys
    from omni_models.adapters import read_adapters as read_adapters
    from omni_models.adapters import save_adapter_config as save_adapter_config
    from omni_models.attention import AttentionFn as AttentionFn
    from omni_models.balance import Routing as Routing
    from omni_models.balance import asked_loss as asked_loss
    from omni_models.balance import balance_loss as balance_loss
    from omni_models.balance import balance_problems as balance_problems
    from omni_models.balance import count_load as count_load
    from omni_models.balance import count_loads as count_loads
    from omni_models.balance import next_biases as next_biases
    from omni_models.balance import read_biases as read_biases
    from omni_models.balance import record_routing as record_routing
    from omni_models.balance import set_biases_ as set_biases_
    from omni_models.balance_config import BalanceConfig as BalanceConfig
    from omni_models.build import build_model as build_model
    from omni_models.build import read_config as read_config
    from omni_models.build import save_config as save_config
    from omni_models.choose import attention_problems as attention_problems
    from omni_models.choose import choose_attention as choose_attention
    from omni_models.decoders import CodesHead as CodesHead
    from omni_models.decoders import Decoder as Decoder
    from omni_models.decoders import FlowHead as FlowHead
    from omni_models.decoders import VQHead as VQHead
    from omni_models.draws import keys_of as keys_of
    from omni_models.draws import normal_of as normal_of
    from omni_models.draws import uniform_of as uniform_of
    from omni_models.encode import Encoded as Encoded
    from omni_models.encode import Media as Media
    from omni_models.encode import encode_media as encode_media
    from omni_models.encoders import encoder_kinds as encoder_kinds
    from omni_models.encoders import map_encoders as map_encoders
    from omni_models.experts import ExpertsFn as ExpertsFn
    from omni_models.experts import choose_experts as choose_experts
    from omni_models.experts import experts_problems as experts_problems
    from omni_models.explaining import explain as explain
    from omni_models.export import hf_keys as hf_keys
    from omni_models.facts import ModelFacts as ModelFacts
    from omni_models.facts import describe as describe
    from omni_models.facts import flops_per_token as flops_per_token
    from omni_models.frozen import cast_frozen as cast_frozen
    from omni_models.frozen import freeze_params as freeze_params
    from omni_models.frozen import freeze_problems as freeze_problems
    from omni_models.generating import Generated as Generated
    from omni_models.generating import generate as generate
    from omni_models.groups import group_images as group_images
    from omni_models.kernels import fitting_kernels as fitting_kernels
    from omni_models.kernels import kernel_problems as kernel_problems
    from omni_models.kernels import use_kernels as use_kernels
    from omni_models.lora import add_lora as add_lora
    from omni_models.lora import lora_problems as lora_problems
    from omni_models.lora_settings import LoraSettings as LoraSettings
    from omni_models.loss import choose_loss as choose_loss
    from omni_models.loss import count_targets as count_targets
    from omni_models.loss import loss_problems as loss_problems
    from omni_models.loss import summed_loss as summed_loss
    from omni_models.losses import count_losses as count_losses
    from omni_models.losses import decoder_arguments as decoder_arguments
    from omni_models.losses import loss_weights as loss_weights
    from omni_models.losses import mean_loss as mean_loss
    from omni_models.losses import summed_losses as summed_losses
    from omni_models.media import count_features as count_features
    from omni_models.media import media_places as media_places
    from omni_models.media import media_positions as media_positions
    from omni_models.media import media_problems as media_problems
    from omni_models.media import token_kinds as token_kinds
    from omni_models.omni import OmniModel as OmniModel
    from omni_models.omni import OmniOutput as OmniOutput
    from omni_models.part_names import ModelPart as ModelPart
    from omni_models.parts import DecoderSpec as DecoderSpec
    from omni_models.parts import EncoderSpec as EncoderSpec
    from omni_models.parts import ModuleSpec as ModuleSpec
    from omni_models.parts import OmniConfig as OmniConfig
    from omni_models.parts import decoder_specs as decoder_specs
    from omni_models.parts import encoder_specs as encoder_specs
    from omni_models.parts import omni_config as omni_config
    from omni_models.presets import PRESETS as PRESETS
    from omni_models.rope import exact_rope as exact_rope
    from omni_models.seams import map_attention as map_attention
    from omni_models.seams import map_experts as map_experts
    from omni_models.seams import use_attention as use_attention
    from omni_models.seams import use_experts as use_experts
    from omni_models.senses import PARTS as PARTS
    from omni_models.senses import find_parts as find_parts
    from omni_models.senses import freeze_parts as freeze_parts
    from omni_models.senses import part_problems as part_problems
    from omni_models.shown import Shown as Shown
    from omni_models.shown import list_media as list_media
    from omni_models.support import unsupported as unsupported
    from omni_models.targets import Routed as Routed
    from omni_models.targets import is_text as is_text
    from omni_models.targets import route_targets as route_targets
    from omni_models.targets import sample_problems as sample_problems
    from omni_models.targets import split_targets as split_targets
    from omni_models.vq import VQTokenizer as VQTokenizer
    from omni_models.vq import fit_tokenizer as fit_tokenizer
    from omni_models.vq import read_vq as read_vq
    from omni_models.vq import save_vq as save_vq
    from omni_models.weights import fill_weights as fill_weights
    from omni_models.weights import plan_weights as plan_weights

_HOMES: Final = {
    "adapters": "merge_adapters peft_keys read_adapters save_adapter_config",
    "attention": "AttentionFn",
    "balance": (
        "Routing asked_loss balance_loss balance_problems count_load count_loads next_biases read_biases "
        "record_routing set_biases_"
    ),
    "balance_config": "BalanceConfig",
    "build": "build_model read_config save_config",
    "choose": "attention_problems choose_attention",
    "decoders": "CodesHead Decoder FlowHead VQHead",
    "draws": "keys_of normal_of uniform_of",
    "encode": "Encoded Media encode_media",
    "encoders": "encoder_kinds map_encoders",
    "experts": "ExpertsFn choose_experts experts_problems",
    "explaining": "explain",
    "export": "hf_keys",
    "facts": "ModelFacts describe flops_per_token",
    "frozen": "cast_frozen freeze_params freeze_problems",
    "generating": "Generated generate",
    "groups": "group_images",
    "kernels": "fitting_kernels kernel_problems use_kernels",
    "lora": "add_lora lora_problems",
    "lora_settings": "LoraSettings",
    "loss": "choose_loss count_targets loss_problems summed_loss",
    "losses": "count_losses decoder_arguments loss_weights mean_loss summed_losses",
    "media": "count_features media_places media_positions media_problems token_kinds",
    "omni": "OmniModel OmniOutput",
    "part_names": "ModelPart",
    "parts": "DecoderSpec EncoderSpec ModuleSpec OmniConfig decoder_specs encoder_specs omni_config",
    "presets": "PRESETS",
    "rope": "exact_rope",
    "seams": "map_attention map_experts use_attention use_experts",
    "senses": "PARTS find_parts freeze_parts part_problems",
    "shown": "Shown list_media",
    "support": "unsupported",
    "targets": "Routed is_text route_targets sample_problems split_targets",
    "vq": "VQTokenizer fit_tokenizer read_vq save_vq",
    "weights": "fill_weights plan_weights",
}
"""Where names are. A module is imported with the first of its names that is asked for, torch with it."""


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names.split()), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *(name for names in _HOMES.values() for name in names.split())})
