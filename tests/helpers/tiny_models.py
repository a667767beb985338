"""Small random models of the real classes."""

import torch
from transformers import BartConfig, BartForConditionalGeneration

from vlkd_pl.clip.openai import CLIP
from vlkd_pl.sample.tokenizers import CONTEXT_LENGTH


def tiny_clip(kind="resnet", vocab_size=655, context_length=CONTEXT_LENGTH):
    """A CLIP of OpenAI's class with random weights, also where OpenAI initialises with zeros or ones."""
    torch.manual_seed(0)
    layers, width, patch = ((1, 1, 1, 1), 8, None) if kind == "resnet" else (2, 64, 16)
    clip = CLIP(32, 64, layers, width, patch, context_length, vocab_size, 64, 1, 2).float().eval()
    for name, value in clip.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif value.is_floating_point() and value.ndim <= 1 and name != "logit_scale":
            value.normal_(0.5, 0.3)
    return clip


def tiny_bart(vocab_size, width=32):
    """A BART of the real class with random weights."""
    torch.manual_seed(1)
    config = BartConfig(
        vocab_size=vocab_size,
        d_model=width,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=80,
        init_std=0.2,
    )
    return BartForConditionalGeneration(config).eval()
