"""Files of feature caches with random features."""

import torch
from torch.nn.functional import normalize

from vlkd_pl.batch import ShardEnd
from vlkd_pl.features.format import FeatureSettings, FeatureWriter
from vlkd_pl.shards.decoder import SKIP_REASONS
from vlkd_pl.shards.subset import key_hash

SETTINGS = FeatureSettings("0123456789abcdef", 64, "all", "float16", None, 50_000_000, True)
NUM_TOKENS, DIM = 5, 32


def random_features(num, seed=0):
    """Image tokens and text embeddings of length 1, as those of CLIP."""
    generator = torch.Generator().manual_seed(seed)
    tokens = normalize(torch.randn(num, NUM_TOKENS, DIM, generator=generator), dim=-1)
    return tokens, normalize(torch.randn(num, DIM, generator=generator), dim=-1)


def shard_end(keys, **skipped):
    return ShardEnd([key_hash(key) for key in keys], dict.fromkeys(SKIP_REASONS, 0) | skipped)


def write_feature_file(path, num, seed=0, settings=SETTINGS, skipped_keys=()):
    """Write a file of ``num`` samples in batches of 4, whose keys begin with the seed."""
    writer = FeatureWriter(path, settings)
    tokens, embedding = random_features(num, seed)
    texts = [f"a fish, número {seed}.{i} 🐟" for i in range(num)]
    keys = [f"{seed}/{i:04d}" for i in range(num)]
    for first in range(0, max(num, 1), 4):
        part = slice(first, first + 4)
        writer.append(tokens[part], embedding[part], texts[part], keys[part])
    writer.finish(shard_end([*keys, *skipped_keys], empty_text=len(skipped_keys)))
    return tokens, embedding, texts, keys
