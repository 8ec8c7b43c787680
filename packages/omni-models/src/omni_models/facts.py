"""What there is to know about a model before anything is decided: read from its configuration and modules. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from omni_models.classes import without_adapters
from omni_models.encoders import encoder_kinds
from omni_models.experts import is_experts
from omni_models.rope import length_dependent_rotaries
from omni_models.support import expert_problems, row_problems
from omni_models.token_wise import find_mlps


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model, described. Counts are of scalars, of the whole model."""

    model_type: str
    blocks: tuple[str, ...]
    """Names of the repeated blocks, in the order of the forward pass."""
    head: str
    """Name of the output head, after the blocks; "" if it has none of its own, or if it is tied to the embedding."""
    mlps: tuple[str, ...]
    """Names of the feed-forward modules in blocks that treat each token alone, and draw no random numbers."""
    experts: tuple[str, ...]
    """Names of the modules that hold the weights of many experts."""
    expert_shapes: tuple[tuple[int, ...], ...]
    """Shapes of the parameters in those modules, each once; their first dim is that of the experts."""
    unspreadable: tuple[str, ...]
    """Why experts cannot be spread over ranks, in words; empty if they can, or if there are none."""
    decoder: str
    """Name of the module that takes embedded rows through the blocks; "" is the model itself."""
    rotaries: tuple[str, ...]
    """Names of the modules whose encoding of a position depends on the length of its document."""
    unsplittable: tuple[str, ...]
    """Why a row cannot be cut between ranks, in words; empty if it can."""
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    num_experts: int
    experts_per_token: int
    block_params: int
    """Of the largest block, but for what is in `experts`."""
    num_params: int
    active_params: int
    """Parameters that one token of text is multiplied by: not the embedding it only looks up, nor experts it is not
    sent to, nor towers."""
    tower_params: int
    """Of what media are encoded by, and of what joins that to the decoder."""
    tied_embeddings: bool


def describe(model: PreTrainedModel) -> ModelFacts:
    """The facts of `model`, which may be on the meta device and is not changed. Adapters count for nothing in them.

    Raises:
        ValueError: if it has no attention.
    """
    model = without_adapters(model)
    config = model.config.get_text_config()
    try:
        heads = getattr(config, "num_attention_heads", None)
        head_dim = getattr(config, "head_dim", None)
        kv_heads = getattr(config, "num_key_value_heads", None)
    except RuntimeError as error:
        # transformers raises it for a field that has another value in each layer.
        raise ValueError(f"{model.config.model_type} has layers of different shapes, not built yet: {error}") from error
    if not isinstance(heads, int):
        raise ValueError(
            f"{model.config.model_type} has no attention heads; models without attention are not built yet."
        )
    experts = experts_names(model)
    banks = [model.get_submodule(name) for name in experts]
    # What a module says of itself comes before what a configuration may call otherwise.
    known = next((bank.num_experts for bank in banks if isinstance(getattr(bank, "num_experts", None), int)), 0)
    num_experts = known or _first(config, "num_experts", "num_local_experts", "n_routed_experts")
    chosen = _first(config, "num_experts_per_tok", "top_k_experts", "moe_topk")
    total = _count(model.parameters())
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    blocks = block_names(model)
    in_experts = sum(_count(bank.parameters()) for bank in banks)
    idle = in_experts * (num_experts - chosen) // num_experts if num_experts else 0
    towers = _count_towers(model)
    return ModelFacts(
        model_type=model.config.model_type,
        blocks=blocks,
        head="" if head is None or tied else next(name for name, module in model.named_modules() if module is head),
        mlps=find_mlps(model, blocks),
        experts=experts,
        expert_shapes=tuple(dict.fromkeys(tuple(p.shape) for bank in banks for p in bank.parameters(recurse=False))),
        unspreadable=expert_problems(banks),
        decoder=decoder_name(model),
        rotaries=length_dependent_rotaries(model),
        unsplittable=row_problems(model, model.get_submodule(decoder_name(model))),
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=heads,
        num_kv_heads=kv_heads or heads,
        head_dim=head_dim or config.hidden_size // heads,
        vocab_size=config.vocab_size,
        num_experts=num_experts,
        experts_per_token=chosen,
        block_params=max((_count_dense(model, name, experts) for name in blocks), default=0),
        num_params=total,
        active_params=total - idle - towers - (0 if tied else _count(embedding.parameters())),
        tower_params=towers,
        tied_embeddings=tied,
    )


def flops_per_token(facts: ModelFacts, seq_len: float, *, causal: bool = True, frozen: bool = False) -> float:
    """Floating-point operations of a forward and a backward pass, per token of a document of `seq_len` tokens.

    Six per active parameter, and for attention 12 x layers x heads x head_dim x seq_len, half of it if causal (PaLM,
    Chowdhery et al., 2022, arXiv:2204.02311, appendix B). Four where parameters are frozen, which have no gradients.
    Recomputation is not counted, nor are adapters.
    """
    attention = 12.0 * facts.num_layers * facts.num_heads * facts.head_dim * seq_len
    return (4.0 if frozen else 6.0) * facts.active_params + (attention / 2 if causal else attention)


def block_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the modules that transformers says must not be split, outermost only, in module order."""
    kinds = set(model._no_split_modules or ())
    names: list[str] = []
    for name, module in model.named_modules():
        # FSDP2 derives the class of what it shards, so the name may be that of a base.
        is_block = any(base.__name__ in kinds for base in type(module).__mro__)
        if is_block and not any(name.startswith(f"{outer}.") for outer in names):
            names.append(name)
    return tuple(names)


def experts_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that hold the weights of many experts, in module order."""
    return tuple(name for name, module in model.named_modules() if _holds_experts(module))


def decoder_name(model: PreTrainedModel) -> str:
    """Name of the module that transformers calls the decoder; "" where that is the model itself."""
    decoder = model.get_decoder()
    return next((name for name, module in model.named_modules() if module is decoder), "")


def _count_towers(model: PreTrainedModel) -> int:
    """Parameters beside the decoder, its embedding and its head, of a model that encodes media."""
    if not encoder_kinds(model) and not hasattr(model.config, "audio_config"):
        return 0
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    text = {id(param) for part in parts if isinstance(part, nn.Module) for param in part.parameters()}
    return _count(param for param in model.parameters() if id(param) not in text)


def _holds_experts(module: nn.Module) -> bool:
    """Whether `module` is an expert bank of transformers: one parameter with a dim for the experts."""
    own = dict(module.named_parameters(recurse=False))
    named = type(module).__name__.endswith("Experts") and any(param.ndim == 3 for param in own.values())
    return named or is_experts(module)


def _count_dense(model: nn.Module, block: str, experts: tuple[str, ...]) -> int:
    inside = [model.get_submodule(name) for name in experts if name.startswith(f"{block}.")]
    return _count(model.get_submodule(block).parameters()) - sum(_count(bank.parameters()) for bank in inside)


def _first(config: object, *names: str) -> int:
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), 0)


def _count(params: Iterable[nn.Parameter]) -> int:
    return sum(param.numel() for param in params)
