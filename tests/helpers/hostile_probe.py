"""Load hostile files one after the other, and print the result of each and the actions of the process."""

import json
import os
import resource
import sys
from pathlib import Path

import torch

from vlkd_pl.clip.frozen import FrozenCLIP
from vlkd_pl.clip.tokenizer import load_clip_tokenizer
from vlkd_pl.clip.weights import clip_image_size
from vlkd_pl.errors import ModelFileError
from vlkd_pl.models.bart import load_bart_tokenizer
from vlkd_pl.models.text import TextModel
from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.pipeline import VLKD
from vlkd_pl.training.checkpoint import load_model

FORBIDDEN = (
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty"),
    *("socket.__new__", "socket.connect", "socket.getaddrinfo", "os.mkdir", "os.remove", "os.rename", "os.rmdir"),
    *("shutil.rmtree", "os.symlink", "os.link", "os.truncate", "os.chmod", "webbrowser.open"),
)
events = []


def watch(event, arguments):
    if event == "open":
        _, mode, flags = arguments
        writes = (isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and arguments[0] != os.devnull:
            events.append(f"open {arguments[0]} {mode}")
    elif event in FORBIDDEN:
        events.append(f"{event} {arguments!r}"[:200])


def main():
    folder, clip, bart, model = map(Path, sys.argv[1:])
    loads = []
    for path in sorted((folder / "clips").iterdir()):
        loads.append((path.name, lambda path=path: FrozenCLIP.load(path)))
        if path.suffix != ".pt":
            loads.append((f"{path.name}, tokenizer", lambda path=path: load_clip_tokenizer(str(path))))
    for path in sorted((folder / "barts").iterdir()):
        loads.append((f"bart {path.name}", lambda path=path: VLKDModel.load(str(clip), str(path))))
        loads.append((f"text {path.name}", lambda path=path: TextModel.load(str(path))))
    for path in sorted((folder / "models").iterdir()):
        loads.append((f"model {path.name}", lambda path=path: VLKD.from_pretrained(path, "cpu")))
        loads.append((f"init_from {path.name}", lambda path=path: load_model(None, None, init_from=str(path))))
    for path in sorted((folder / "checkpoints").iterdir()):
        loads.append(
            (f"checkpoint {path.name}", lambda path=path: load_model(str(clip), str(bart), init_from=str(path)))
        )
    VLKD.from_pretrained(model, "cpu")  # imports and allocates what every load needs
    load_bart_tokenizer(str(bart))
    assert clip_image_size(str(clip)) == 64
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.addaudithook(watch)
    wrong = {}
    for name, load in loads:
        try:
            load()
            if not name.endswith("may_load"):
                wrong[name] = "was loaded"
        except ModelFileError as error:
            if "\n" in str(error) or not str(error):
                wrong[name] = f"not one line: {error}"
        except BaseException as error:
            wrong[name] = f"{type(error).__name__}: {error}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    print(json.dumps({"loads": len(loads), "wrong": wrong, "events": events, "grown_mb": grown >> 10}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
