"""Command lines that evaluate the configurations under configs/sample with tiny models."""

import csv
import json
from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = {
    "scst_coco": ["scst_coco", "sample/captioning_coco", "sample/scst_coco"],
    "vqa_vqav2_1percent": ["vqa_vqav2", "overlays/vqav2_1percent", "sample/vqa_vqav2", "sample/vqav2_1percent"],
}


def configs(name):
    """The options that name a run's configuration files and their sample overlays."""
    return [f"--config={CONFIGS / part}.yaml" for part in FILES.get(name, [name, f"sample/{name}"])]


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
        "data.init_args.images": str(world.folder / images.get(name, "images")),
        "data.init_args.num_workers": 0,
        "data.init_args.batch_size": 4,
        "trainer.enable_progress_bar": "false",
        "run_dir": str(folder),
    }
    settings |= {f"data.init_args.{key}": str(world.folder / file) for key, file in files[name].items()}
    if name not in ("retrieval_coco", "classification"):
        settings["model.init_args.decoding.max_new_tokens"] = 5
    settings |= {key.replace("__", "."): value for key, value in options.items()}
    return [command, *configs(name), *(f"--{key}={value}" for key, value in settings.items())]


def written(folder, name):
    return json.loads((Path(folder) / name).read_text())


def captioning_arguments(name, world, model_folder, folder, command="fit", **options):
    """The command line of ``configs/{name}.yaml`` and its sample overlay, in miniature: on six scenes."""
    files = {"annotations": str(world.folder / "dataset_coco.json"), "images": str(world.folder / "images")}
    loggers = [{"class_path": "CSVLogger", "init_args": {"save_dir": str(folder), "name": None, "version": ""}}]
    callbacks = [
        {
            "class_path": "ModelCheckpoint",
            "init_args": {
                "dirpath": str(Path(folder) / "steps"),
                "filename": "{step}",
                "every_n_train_steps": 1,
                "save_top_k": -1,
            },
        },
        {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/cider", "mode": "max", "save_last": True}},
        {"class_path": "vlkd_pl.ExportModel"},
    ]
    settings = {
        "model.init_args.init_from": str(model_folder),
        "model.init_args.decoding.num_beams": 2,
        "model.init_args.decoding.max_new_tokens": 6,
        **{f"data.init_args.{key}": value for key, value in files.items()},
        "data.init_args.val": json.dumps({**files, "split": "val"}),
        "data.init_args.train": json.dumps({**files, "split": ["val"]}),
        "data.init_args.train_batch_size": 2 if name == "scst_coco" else 10,
        "data.init_args.num_workers": 0,
        "data.init_args.batch_size": 4,
        "trainer.max_epochs": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.default_root_dir": str(folder),
        "trainer.logger": json.dumps(loggers),
        "trainer.callbacks": json.dumps(callbacks),
    } | {key.replace("__", "."): value for key, value in options.items()}
    return [command, *configs(name), *(f"--{key}={value}" for key, value in settings.items())]


def column(folder, name):
    """The values of a name in a run's ``metrics.csv``."""
    with (Path(folder) / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def weights(module):
    """A copy of a module's weights."""
    return {name: value.clone() for name, value in module.state_dict().items()}
