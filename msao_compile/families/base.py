"""What a family gives: its functional modules as traceable pieces with named inputs, outputs and repeated layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from msao_compile.manifest.schema import DecoderFacts, TensorSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sizes:
    """Concrete lengths for one example run; three of them prove that dimensions are dynamic."""

    batch: int
    sequence: int
    past: int
    images: int
    grids: tuple[tuple[int, int, int], ...]


SIZES = (
    Sizes(2, 5, 11, 3, ((1, 8, 12), (1, 4, 4))),
    Sizes(1, 1, 7, 1, ((1, 4, 8),)),
    Sizes(3, 4, 0, 4, ((1, 8, 8), (1, 12, 4), (1, 4, 4))),
)


# What a checkpoint's config says of its text model, tokens and saving: a vision piece, which is built from the whole
# config, reads none of it. Every other field is part of the piece's identity, read or not.
NOT_OF_VISION = (
    "text_config",
    "image_token_id",
    "image_token_index",
    "image_seq_length",
    "pad_token_id",
    "_pad_token_id",
    "tie_word_embeddings",
    "use_cache",
)

# What parity asks: one request with one picture, one with two of other shapes.
REQUEST_SIZES = (Sizes(1, 1, 0, 1, ((1, 8, 12),)), Sizes(1, 1, 0, 2, ((1, 4, 8), (1, 8, 4))))


@dataclass(frozen=True)
class KVFacts:
    """Shape of a decoder's key-value cache, layout `bhsd/v1`."""

    num_layers: int
    num_key_value_heads: int
    head_dim: int


@dataclass(frozen=True)
class Piece:
    """One component as a module whose `forward` takes and gives exactly the named tensors.

    `config` is the smallest config that the module's code was built from, None where it was built from none: all of it
    but the `unread` fields identifies the module, so a field that the code starts to read is never forgotten.
    `stacks` are dotted paths of ModuleLists inside `module` whose layers repeat; each distinct layer is traced once.
    """

    component: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: Callable[[Sizes, np.random.Generator], Arrays]
    config: PretrainedConfig | None
    unread: tuple[str, ...] = ()
    stacks: tuple[str, ...] = ()
    kv: KVFacts | None = None


class Family(Protocol):
    """How one family of checkpoints is taken apart."""

    name: str

    def pieces(self, model: PreTrainedModel) -> tuple[Piece, ...]:
        """The components of the model, in the order in which a request meets them."""

    def decoder_facts(self, config: PretrainedConfig, kv_capacity: int) -> DecoderFacts:
        """What the generation loop must know."""

    def host_facts(self, config: PretrainedConfig) -> dict[str, Any]:
        """What the host-side code (positions, merge) must know; plain JSON."""

    def example_pictures(self, config: PretrainedConfig, sizes: Sizes, chance: np.random.Generator) -> Arrays:
        """Random pictures of one request, as the family's processor would give them."""

    def forward_inputs(
        self, config: PretrainedConfig, ids_BS: torch.Tensor, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """What the original model's forward takes for these tokens and pictures."""


class EmbedTokens(nn.Module):
    """`input_ids` [batch, sequence] to `inputs_embeds` [batch, sequence, hidden]."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        embeds: torch.Tensor = self.embedding(input_ids)
        return embeds


class Decoder(nn.Module):
    """Text model and head. Logits are computed at `logits_positions` only: a prompt needs one row of them."""

    def __init__(self, text_model: nn.Module, lm_head: nn.Module) -> None:
        super().__init__()
        self.text_model = text_model
        self.lm_head = lm_head

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        logits_positions: torch.Tensor,
    ) -> torch.Tensor:
        hidden = self.text_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        logits: torch.Tensor = self.lm_head(hidden.index_select(1, logits_positions))
        return logits


class CausalFamily:
    """What most families share: the text model's facts, and a forward of ids, mask and the processor's tensors."""

    def decoder_facts(self, config: PretrainedConfig, kv_capacity: int) -> DecoderFacts:
        """Facts of the text model."""
        return text_facts(config.text_config, kv_capacity)

    def forward_inputs(
        self, config: PretrainedConfig, ids_BS: torch.Tensor, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Ids, an all-ones mask, and the pictures."""
        return {"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS), **tensors}


def embed_piece(model: PreTrainedModel, hidden: int) -> Piece:
    """The embedding as a component of its own: the host merges modality features into what it gives."""
    embedding: Any = model.get_input_embeddings()
    vocabulary = int(embedding.weight.shape[0])

    def example(sizes: Sizes, chance: np.random.Generator) -> Arrays:
        return {"input_ids": chance.integers(0, vocabulary, (sizes.batch, sizes.sequence), dtype=np.int64)}

    return Piece(
        component="embed_tokens",
        module=EmbedTokens(embedding),
        inputs=(TensorSpec(name="input_ids", dtype="int64", shape=("batch_size", "sequence_length")),),
        outputs=(TensorSpec(name="inputs_embeds", dtype="float32", shape=("batch_size", "sequence_length", hidden)),),
        example=example,
        # A plain embedding is its weights; a subclass may scale what it gives by what its config says.
        config=None if type(embedding) is nn.Embedding else model.config.get_text_config(),
    )


def decoder_piece(text_model: nn.Module, lm_head: nn.Module, facts: DecoderFacts, config: PretrainedConfig) -> Piece:
    """Text model and head as one graph for prefill (past length 0) and decode.

    Takes the embedding out of `text_model`: it is a component of its own, and no weight of the decoder.
    """
    text_model.embed_tokens = nn.Identity()
    axes = ("batch_size", "sequence_length")
    position_shape = (3, *axes) if facts.position == "mrope" else axes

    def example(sizes: Sizes, chance: np.random.Generator) -> Arrays:
        total = sizes.past + sizes.sequence
        positions = np.broadcast_to(np.arange(sizes.past, total), (sizes.batch, sizes.sequence))
        if facts.position == "mrope":
            positions = np.broadcast_to(positions, (3, *positions.shape))
        embeds = chance.standard_normal((sizes.batch, sizes.sequence, facts.hidden_size)).astype(np.float32)
        rows = max(1, sizes.sequence - 1)
        return {
            "inputs_embeds": embeds,
            "attention_mask": np.ones((sizes.batch, total), np.int64),
            "position_ids": np.ascontiguousarray(positions).astype(np.int64),
            "logits_positions": np.arange(sizes.sequence - rows, sizes.sequence, dtype=np.int64),
        }

    return Piece(
        component="decoder",
        module=Decoder(text_model, lm_head),
        inputs=(
            TensorSpec(name="inputs_embeds", dtype="float32", shape=(*axes, facts.hidden_size)),
            TensorSpec(name="attention_mask", dtype="int64", shape=("batch_size", "total_sequence_length")),
            TensorSpec(name="position_ids", dtype="int64", shape=position_shape),
            TensorSpec(name="logits_positions", dtype="int64", shape=("num_logits",)),
        ),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch_size", "num_logits", facts.vocab_size)),),
        example=example,
        stacks=("text_model.layers",),
        kv=KVFacts(facts.num_layers, facts.num_key_value_heads, facts.head_dim),
        config=config,
    )


def text_facts(text_config: PretrainedConfig, kv_capacity: int, mrope: bool = False) -> DecoderFacts:
    """Decoder facts under one name for every family, read through optimum's `NormalizedTextConfig`."""
    from optimum.utils import NormalizedTextConfig

    normal = NormalizedTextConfig(text_config)
    heads = int(normal.num_attention_heads)
    return DecoderFacts(
        hidden_size=int(normal.hidden_size),
        vocab_size=int(normal.vocab_size),
        num_layers=int(normal.num_layers),
        num_key_value_heads=int(getattr(text_config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text_config, "head_dim", None) or normal.hidden_size // heads),
        kv_capacity=kv_capacity,
        position="mrope" if mrope else "rope",
    )
