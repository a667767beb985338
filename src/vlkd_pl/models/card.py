"""The card of a model folder, its ``README.md``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from huggingface_hub import ModelCard, ModelCardData

from vlkd_pl.clip.openai import ModifiedResNet

if TYPE_CHECKING:
    from vlkd_pl.models.vlkd import VLKDModel

_IMAGE_FEATURES = {
    "pooled": "CLIP's pooled embedding",
    "patches": "CLIP's patches, without its pooled embedding",
    "all": "CLIP's pooled embedding and its patches",
}
_DATA = ModelCardData(
    language="en",
    library_name="vlkd_pl",
    pipeline_tag="image-to-text",
    tags=["vision-language", "knowledge-distillation", "image-captioning", "visual-question-answering"],
)
_CARD = """\
---
{data}
---

# A VLKD model

CLIP sees, BART writes: this model captions images, answers questions about them, and finds images by text. It was made
by Vision-Language Knowledge Distillation (VLKD), which distils a frozen CLIP into a BART, with the package `vlkd_pl`.

| part | |
|---|---|
| CLIP | {clip} |
| BART | {bart} |
| image features | `{image_features}`: {image_features_text} |
{limits}
## Use

In Python, in the folder of this file:

```python
import vlkd_pl
model = vlkd_pl.VLKD.from_pretrained(".")
print(model.caption("image.jpg"), model.answer("image.jpg", "what is this?"))
```

On the command line:

```shell
vlkd-pl caption image.jpg --model .
```

## Licence

CLIP's and BART's weights have licences of their publishers, which also hold for this model.

## Paper

Wenliang Dai, Lu Hou, Lifeng Shang, Xin Jiang, Qun Liu and Pascale Fung:
[Enabling Multimodal Generation on CLIP via Vision-Language Knowledge Distillation](https://arxiv.org/abs/2203.06386).
Findings of the Association for Computational Linguistics: ACL 2022.
"""


def model_card(model: VLKDModel) -> ModelCard:
    """Write the card of a model: what it is, which CLIP and BART it holds, its limits, its use, and its licences.

    Args:
        model: The model. The limits are those that its CLIP states.

    Example:
        >>> from vlkd_pl.sample import sample_model
        >>> "twelve kinds of pictograms" in model_card(sample_model()).text
        True
    """
    clip, bart = model.clip, model.bart.config
    visual = clip.clip.visual
    kind = (
        "ResNet" if isinstance(visual, ModifiedResNet) else f"ViT with patches of {visual.conv1.kernel_size[0]} pixels"
    )
    card = _CARD.format(
        data=_DATA.to_yaml(),
        clip=f"{kind}, images of {clip.image_size} pixels, {clip.embedding_dim} dimensions; "
        f"fingerprint of its weights `{clip.fingerprint}`",
        bart=f"{bart.encoder_layers} + {bart.decoder_layers} layers, width {bart.d_model}, {bart.vocab_size:,} tokens",
        image_features=model.image_features,
        image_features_text=_IMAGE_FEATURES[model.image_features],
        limits=f"\n## Limits\n\n{clip.limits}\n" if clip.limits else "",
    )
    return ModelCard(card)
