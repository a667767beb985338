"""What a model of the sample world gets right, by kind: captions, answers about pictures, answers about passages.

python benchmarks/sample_world.py --model runs/sample/distill/model
"""

from __future__ import annotations

import argparse
import random
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

warnings.filterwarnings("ignore", message="pkg_resources is deprecated")

import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402

from vlkd_pl.data.sample.language import Question, captions, questions  # noqa: E402
from vlkd_pl.data.sample.scenes import Scene, Split, distinct_scenes  # noqa: E402
from vlkd_pl.data.transforms import clip_transform  # noqa: E402
from vlkd_pl.models.vlkd import VLKDModel  # noqa: E402

BATCH_SIZE = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--world", type=Path, default=Path("runs/sample/world"), help="folder of vlkd-pl sample")
    parser.add_argument("--num-evaluation", type=int, default=400, help="as given to vlkd-pl sample")
    parser.add_argument("--num-masks", type=int, default=3, help="masks in the prompt of captions")
    parser.add_argument("--seed", type=int, default=0, help="as given to vlkd-pl sample")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    model = VLKDModel.from_pretrained(options.model).eval()
    splits: tuple[Split, ...] = ("test", "unseen")
    for split in splits:
        scenes = distinct_scenes(random.Random(f"{split} {options.seed}"), split, options.num_evaluation)
        files = sorted((options.world / "images" / split).glob("*.jpg"))
        transform = clip_transform(model.clip.image_size)
        tokens = model.clip.encode_image(torch.stack([transform(Image.open(file)) for file in files]))
        shuffled = tokens.roll(len(tokens) // 2, 0)
        said = [text for part in tokens.split(BATCH_SIZE) for text in model.caption(part, options.num_masks)]
        exact = [(scene.layout, text in captions(scene)) for scene, text in zip(scenes, said, strict=True)]
        print_shares(f"{split}: exact captions", exact)
        asked = [
            (row, scene, question)
            for row, scene in enumerate(scenes)
            for question in questions(scene, random.Random(row))
        ]
        asked = random.Random(0).sample(asked, min(600, len(asked)))
        print_shares(f"{split}: answers about pictures", answered(model, asked, tokens))
        print_shares(f"{split}: answers about pictures, shuffled", answered(model, asked, shuffled))
        print_shares(f"{split}: answers about passages", answered(model, asked, None))


def answered(
    model: VLKDModel, asked: Sequence[tuple[int, Scene, Question]], tokens: torch.Tensor | None
) -> list[tuple[str, bool]]:
    """Asks each question with its picture, or without pictures after its scene's caption."""
    prompts = [
        f"{captions(scene)[0] + '. ' if tokens is None else ''}{question.text} Answer: <mask>."
        for _, scene, question in asked
    ]
    results = []
    for prompt, (row, _, question) in zip(prompts, asked, strict=True):
        prefix = prompt.removesuffix(" <mask>.")
        picture = None if tokens is None else tokens[row : row + 1]
        text = model.generate(picture, [prompt], prefix=prefix, max_new_tokens=8)[0]
        results.append((question.kind, text.split(".")[0].strip() == question.answer))
    return results


def print_shares(title: str, results: Sequence[tuple[str, bool]]) -> None:
    by_kind = defaultdict(list)
    for kind, right in results:
        by_kind[kind].append(right)
    parts = [f"{kind} {sum(rights) / len(rights):.2f}" for kind, rights in sorted(by_kind.items())]
    print(f"{title}: {sum(right for _, right in results) / len(results):.3f} ({', '.join(parts)})")


if __name__ == "__main__":
    main()
