"""What the architectures of the zoo are made of: small sizes that several share, and random inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    Made = tuple[torch.nn.Module, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One architecture.

    Attributes:
        name: As its authors write it.
        kind: What it is for.
        make: Gives the module and its example inputs: a tensor, a tuple, or a dict by argument name.
    """

    name: str
    kind: str
    make: Callable[[], Made]


def image(size: int = 32, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, size, size)


def tokens(length: int = 7, vocabulary: int = 50) -> torch.Tensor:
    return torch.randint(0, vocabulary, (2, length))


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
PATCHES = {**TINY, "image_size": 32, "patch_size": 8}
SPEECH = {
    **TINY, "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
    "vocab_size": 20, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
DETR = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 4,
}  # fmt: skip
CODEC = {
    "num_filters": 4, "hidden_size": 8, "codebook_size": 16, "codebook_dim": 8, "upsampling_ratios": [2, 2],
    "num_lstm_layers": 1,
}  # fmt: skip
