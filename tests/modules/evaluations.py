"""Runs the evaluation of the configurations under configs/sample with tiny models."""

import json
from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"


def arguments(name, world, model_folder, folder, command="test", **options):
    """The command line of ``configs/{name}.yaml`` and its sample overlay, in miniature."""
    images = {"zeroshot_vqav2": "images/test", "zeroshot_okvqa": "images/test", "classification": "classes/test"}
    files = {
        "zeroshot_coco": {"annotations": "dataset_coco.json"},
        "retrieval_coco": {"annotations": "dataset_coco.json"},
        "zeroshot_nocaps": {"annotations": "nocaps_val_captions.json"},
        "zeroshot_vqav2": {"questions": "vqa_questions_test.json", "annotations": "vqa_annotations_test.json"},
        "zeroshot_okvqa": {"questions": "okvqa_questions_test.json", "annotations": "okvqa_annotations_test.json"},
        "classification": {"class_names": "class_names.txt"},
        "predict_captions": {},
    }
    settings = {
        "model.init_args.init_from": str(model_folder),
        "model.init_args.decoding.max_new_tokens": 5,
        "data.init_args.images": str(world.folder / images.get(name, "images")),
        "data.init_args.num_workers": 0,
        "data.init_args.batch_size": 4,
        "trainer.enable_progress_bar": "false",
        "trainer.logger.init_args.save_dir": str(folder),
        "trainer.logger.init_args.name": "",
        "trainer.callbacks": "[]",
    }
    settings |= {f"data.init_args.{key}": str(world.folder / file) for key, file in files[name].items()}
    settings |= {key.replace("__", "."): value for key, value in options.items()}
    configs = [f"--config={CONFIGS / part / f'{name}.yaml'}" for part in ("", "sample")]
    return [command, *configs, *(f"--{key}={value}" for key, value in settings.items())]


def written(folder, name):
    return json.loads((Path(folder) / name).read_text())
