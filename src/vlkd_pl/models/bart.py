"""Loads a BART and its tokenizer, complete and fitting each other, and nothing else of their folder."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration, PreTrainedTokenizerBase

from vlkd_pl.errors import ModelFileError
from vlkd_pl.weights.model_files import check_model_file, first_line, model_folder, read_config
from vlkd_pl.weights.reader import read_weights

_CONFIG_FILE = "config.json"
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json"),
)
_WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
_DOWNLOADED = (
    *(_CONFIG_FILE, *_TOKENIZER_FILES, *_WEIGHTS_FILES, *(f"{name}.index.json" for name in _WEIGHTS_FILES)),
    *("model-*.safetensors", "pytorch_model-*.bin"),
)
_SIZES = (
    *("vocab_size", "max_position_embeddings", "d_model", "encoder_layers", "decoder_layers"),
    *("encoder_attention_heads", "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim"),
)
_PROBABILITIES = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop")
_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
# Of a config.json no more is used: other entries of it can make transformers load code or further files.
_SETTINGS = (
    *(*_SIZES, *_IDS, "decoder_start_token_id", "forced_eos_token_id", "activation_function", "init_std"),
    *(*_PROBABILITIES, "classifier_dropout"),
    *("scale_embedding", "tie_word_embeddings", "use_cache"),
)
_MOST_LAYERS = 200
_EMBEDDINGS = (
    *("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"),
    "lm_head.weight",
)
_LOGITS_BIAS = "final_logits_bias"


def load_bart(bart: str) -> tuple[BartForConditionalGeneration, PreTrainedTokenizerBase]:
    """Load a BART in float32 and in evaluation mode, and its tokenizer.

    Args:
        bart: A folder with ``config.json``, weights and the tokenizer's files; or a Hugging Face name.

    Returns:
        The BART, with every weight from its files, and a tokenizer whose ids it embeds.

    Raises:
        FileNotFoundError: There is no such folder or name.
        ModelFileError: It holds another model, or a file is missing, corrupt or of another BART.
    """
    folder = model_folder(bart, "BART", _DOWNLOADED)
    config = read_bart_config(folder)
    tokenizer = _load_tokenizer(folder, config)
    weights = _read_weights(folder)
    return _build(folder, config, weights), tokenizer


def load_bart_tokenizer(bart: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a BART.

    Args:
        bart: Hugging Face name; or a folder: a BART's, a model's that ``vlkd-pl fit`` wrote, or a tokenizer's alone.

    Raises:
        FileNotFoundError: There is no such folder or name.
        ModelFileError: It holds no tokenizer of a BART.
    """
    if (Path(bart) / "bart").is_dir():
        bart = str(Path(bart) / "bart")
    folder = model_folder(bart, "BART", (_CONFIG_FILE, *_TOKENIZER_FILES))
    return _load_tokenizer(folder, read_bart_config(folder) if (folder / _CONFIG_FILE).exists() else None)


def read_bart_config(folder: Path) -> BartConfig:
    """Read what a BART's ``config.json`` tells of its architecture.

    Args:
        folder: The BART's.

    Raises:
        ModelFileError: It is missing, corrupt, or another model's.
    """
    path = folder / _CONFIG_FILE
    stored = read_config(path)
    kind = stored.get("model_type")
    if kind != "bart":
        raise ModelFileError(f"{path} has the model_type {kind!r}, not 'bart': give the folder or name of a BART")
    settings = {name: stored[name] for name in _SETTINGS if name in stored}
    for name in _SIZES:
        if name in settings and (type(settings[name]) is not int or settings[name] < 1):
            raise ModelFileError(f"{path}: {name} is {settings[name]!r}, not a whole number above 0")
    for name in _PROBABILITIES:
        value = settings.get(name, 0)
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise ModelFileError(f"{path}: {name} is {value!r}, not a number from 0 to below 1")
    try:
        config = BartConfig(**settings)
    except Exception as error:  # transformers 5 checks types by classes of its own
        raise ModelFileError(f"{path} cannot be used: {first_line(error)}") from error
    for name in (*_IDS, "decoder_start_token_id"):
        value = getattr(config, name)
        if type(value) is not int or not 0 <= value < config.vocab_size:
            raise ModelFileError(f"{path}: {name} is {value!r}, not the id of one of {config.vocab_size} tokens")
    if max(config.encoder_layers, config.decoder_layers) > _MOST_LAYERS:
        raise ModelFileError(f"{path} has more than {_MOST_LAYERS} layers")
    return config


def _load_tokenizer(folder: Path, config: BartConfig | None) -> PreTrainedTokenizerBase:
    files = [folder / name for name in _TOKENIZER_FILES if (folder / name).exists()]
    names = {path.name for path in files}
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        raise ModelFileError(f"{folder} holds no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt")
    for path in files:
        check_model_file(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        ids = {name: getattr(tokenizer, name) for name in (*_IDS, "mask_token_id")}
        size = max(tokenizer.get_vocab().values()) + 1
    except Exception as error:  # transformers and tokenizers have many classes: each means the same to the user
        raise ModelFileError(f"the tokenizer in {folder} cannot be loaded: {first_line(error)}") from error
    for name, value in ids.items():
        if type(value) is not int:
            raise ModelFileError(f"the tokenizer in {folder} has no {name.removesuffix('_id')}: it is not a BART's")
        if config is not None and name in _IDS and value != getattr(config, name):
            raise ModelFileError(
                f"{folder}: {name} is {value} in the tokenizer and {getattr(config, name)} in {_CONFIG_FILE}: they are "
                "of different models"
            )
    if config is not None and size > config.vocab_size:
        raise ModelFileError(
            f"the tokenizer in {folder} has {size} tokens, but its BART embeds {config.vocab_size}: they are of "
            "different models"
        )
    return tokenizer


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights in a folder, whichever of their names and formats it has."""
    for name in _WEIGHTS_FILES:
        if (folder / name).exists():
            return read_weights(folder / name)
        index = folder / f"{name}.index.json"
        if index.exists():
            names = read_config(index).get("weight_map")
            files = sorted({str(file) for file in names.values()}) if isinstance(names, dict) else []
            if not files or any(Path(file).name != file for file in files):
                raise ModelFileError(f"{index} does not list files of its folder: copy it again")
            weights: dict[str, Tensor] = {}
            for file in files:
                if not (folder / file).exists():
                    raise ModelFileError(f"{folder / file} is missing: the folder was not copied completely")
                weights |= read_weights(folder / file)
            return weights
    raise ModelFileError(f"{folder} holds no weights: it needs {' or '.join(_WEIGHTS_FILES)}")


def _build(folder: Path, config: BartConfig, weights: dict[str, Tensor]) -> BartForConditionalGeneration:
    """A BART with these weights, if they are all of it; nothing large is built before their shapes are compared."""
    try:
        with torch.device("meta"):
            model = BartForConditionalGeneration(config)
    except Exception as error:  # of many classes, by the entry that is wrong
        raise ModelFileError(f"{folder / _CONFIG_FILE} cannot be used: {first_line(error)}") from error
    expected = model.state_dict()
    weights = {
        f"model.{name}" if name.startswith(("shared.", "encoder.", "decoder.")) else name: value
        for name, value in weights.items()
    }
    _share_embeddings(folder, config, weights)
    missing = [name for name in expected if name not in weights and name != _LOGITS_BIAS]
    if missing:
        raise ModelFileError(
            f"the weights in {folder} lack {len(missing)} of a BART's {len(expected)}, first {missing[0]}: they are "
            "incomplete, or of another model"
        )
    excess = [name for name in weights if name not in expected and ".layers." in name]
    if excess:
        raise ModelFileError(
            f"the weights in {folder} hold {len(excess)} that a BART of its {_CONFIG_FILE} does not have, first "
            f"{excess[0]}"
        )
    weights.setdefault(_LOGITS_BIAS, torch.zeros(1, len(weights[_EMBEDDINGS[0]])))
    for name, value in expected.items():
        if weights[name].shape != value.shape or not weights[name].is_floating_point():
            raise ModelFileError(
                f"the weight {name} in {folder} has the shape {list(weights[name].shape)} and type "
                f"{weights[name].dtype}, not {list(value.shape)} and floats as its {_CONFIG_FILE} tells"
            )
    model.load_state_dict({name: weights[name].float() for name in expected}, assign=True)
    model.tie_weights()
    return model.eval()


def _share_embeddings(folder: Path, config: BartConfig, weights: dict[str, Tensor]) -> None:
    """Give the embeddings all their names, of which files hold one or several."""
    shared = _EMBEDDINGS if config.tie_word_embeddings else _EMBEDDINGS[:-1]
    present = [name for name in shared if name in weights]
    for name in present:
        if not torch.equal(weights[name], weights[present[0]]):
            raise ModelFileError(f"the weights in {folder} are not a BART's: {name} differs from {present[0]}")
    if present:
        weights.update((name, weights[present[0]]) for name in shared)


def differs_from(bart: str, model: BartForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a BART has other than a loaded one: architecture or vocabulary; empty where its weights could be loaded.

    Args:
        bart: See ``load_bart``; its weights are not read.
        model: The loaded one.
        tokenizer: Its tokenizer.

    Raises:
        FileNotFoundError: There is no such folder or name.
        ModelFileError: Its configuration or tokenizer is missing, corrupt, or another model's.
    """
    folder = model_folder(bart, "BART", (_CONFIG_FILE, *_TOKENIZER_FILES))
    config = read_bart_config(folder)
    for name in (*_SIZES, "activation_function", "scale_embedding"):
        value, loaded = getattr(config, name), getattr(model.config, name)
        if value != loaded:
            return f"{name} {value} instead of {loaded}"
    same_vocabulary = _load_tokenizer(folder, config).get_vocab() == tokenizer.get_vocab()
    return "" if same_vocabulary else "another vocabulary"


def clean_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer as it was loaded: each call leaves its padding and truncation in a fast one."""
    clean = copy.deepcopy(tokenizer)
    if clean.is_fast:
        clean.backend_tokenizer.no_padding()
        clean.backend_tokenizer.no_truncation()
    return clean
