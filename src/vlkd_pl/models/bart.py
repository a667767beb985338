"""Loading of a BART and its tokenizer, with checks that they are complete and fit each other."""

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
# Only these entries of a config.json are used: others can make transformers load code or further files.
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
        bart: Folder with ``config.json``, weights and the tokenizer's files; or a name on the Hugging Face hub.

    Returns:
        The BART, with every weight from its files, and its tokenizer.

    Raises:
        FileNotFoundError: Neither the folder nor the name exists.
        ModelFileError: The folder holds another model, or a file is missing, corrupt or of another BART.

    Example:
        >>> from vlkd_pl.sample import BART_FOLDER
        >>> bart, tokenizer = load_bart(BART_FOLDER)
        >>> bart.config.vocab_size == len(tokenizer)
        True
    """
    folder = model_folder(bart, "BART", _DOWNLOADED)
    config = read_bart_config(folder)
    tokenizer = _load_tokenizer(folder, config)
    weights = _read_weights(folder)
    return _build(folder, config, weights), tokenizer


def load_bart_tokenizer(bart: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a BART.

    Args:
        bart: Name on the Hugging Face hub; or a folder of a BART, of a tokenizer alone, or of a model that
            ``vlkd-pl fit`` wrote.

    Raises:
        FileNotFoundError: Neither the folder nor the name exists.
        ModelFileError: The folder holds no tokenizer of a BART.

    Example:
        >>> from vlkd_pl.sample import BART_FOLDER
        >>> load_bart_tokenizer(BART_FOLDER).tokenize("a red fish")
        ['a', 'Ġred', 'Ġfish']
    """
    if (Path(bart) / "bart").is_dir():
        bart = str(Path(bart) / "bart")
    folder = model_folder(bart, "BART", (_CONFIG_FILE, *_TOKENIZER_FILES))
    return _load_tokenizer(folder, read_bart_config(folder) if (folder / _CONFIG_FILE).exists() else None)


def read_bart_config(folder: Path) -> BartConfig:
    """Read and check the architecture in a BART's ``config.json``.

    Args:
        folder: Folder of the BART.

    Raises:
        ModelFileError: The file is missing, corrupt, or belongs to another model.
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
    except Exception as error:  # transformers 5 raises exceptions that it does not export
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
    except Exception as error:  # transformers and tokenizers raise many classes; each means the same to the user
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
    """Read the weights in a folder, in safetensors or PyTorch's format, in one file or several."""
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
                    raise ModelFileError(f"{folder / file} is missing: the folder was copied in part")
                weights |= read_weights(folder / file)
            return weights
    raise ModelFileError(f"{folder} holds no weights: it needs {' or '.join(_WEIGHTS_FILES)}")


def _build(folder: Path, config: BartConfig, weights: dict[str, Tensor]) -> BartForConditionalGeneration:
    """Build a BART from its weights; names and shapes are compared before memory is allocated."""
    try:
        with torch.device("meta"):
            model = BartForConditionalGeneration(config)
    except Exception as error:  # the class depends on the entry that is wrong
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
                f"{weights[name].dtype}, not {list(value.shape)} and floats as its {_CONFIG_FILE} states"
            )
    model.load_state_dict({name: weights[name].float() for name in expected}, assign=True)
    model.tie_weights()
    return model.eval()


def _share_embeddings(folder: Path, config: BartConfig, weights: dict[str, Tensor]) -> None:
    """Add the shared embedding under all its names, of which a file may hold one or more."""
    shared = _EMBEDDINGS if config.tie_word_embeddings else _EMBEDDINGS[:-1]
    present = [name for name in shared if name in weights]
    for name in present:
        if not torch.equal(weights[name], weights[present[0]]):
            raise ModelFileError(f"the weights in {folder} are not a BART's: {name} differs from {present[0]}")
    if present:
        weights.update((name, weights[present[0]]) for name in shared)


def differs_from(bart: str, model: BartForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> str:
    """Describe how the architecture or vocabulary of a BART differs from a loaded one.

    Args:
        bart: Folder, or name on the Hugging Face hub; its weights are not read.
        model: BART that is loaded.
        tokenizer: Tokenizer of ``model``.

    Returns:
        The first difference as text; empty if the weights of ``bart`` fit ``model``.

    Raises:
        FileNotFoundError: Neither the folder nor the name exists.
        ModelFileError: The configuration or tokenizer is missing, corrupt, or belongs to another model.
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
    """Copy a tokenizer without the padding and truncation that calls leave in a fast tokenizer."""
    clean = copy.deepcopy(tokenizer)
    if clean.is_fast:
        clean.backend_tokenizer.no_padding()
        clean.backend_tokenizer.no_truncation()
    return clean
