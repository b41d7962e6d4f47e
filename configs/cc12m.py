"""The paper's real baseline: CLIP on CC12M, 8.8M pairs that were still online, with SynthCLIP's recipe.

    python -m synthclip_jax.train --config=configs/cc12m.py --workdir=W --config.data.sources=wds:/data/cc12m
    python -m synthclip_jax.train --config=configs/cc12m.py:2M --workdir=W      a nested part of it: 0.5M, 2M, 3M, ...

CC12M is a list of addresses; img2dataset fetches what is still there (its formats `webdataset` and `tfrecord` are both
read as they are; see `data.sources`), short side resized to 256, as in the paper. Set DATA below, or override it.

The paper reports for its 8.8M: linear probe 76.7, few-shot 84.9, image/text retrieval 58.9/71.7 (recall@5), ImageNet
zero-shot 33.6.
"""

import pathlib
import runpy

DATA = "wds:data/cc12m"

_synthci_30m = runpy.run_path(str(pathlib.Path(__file__).with_name("synthci_30m.py")))


def pairs(size: str) -> int:
    """Pairs that a size such as 500k, 0.5M or 2M stands for."""
    units = {"k": 1_000, "M": 1_000_000}
    if size[-1:] not in units:
        raise ValueError(f"size: given {size!r}, allowed: a number of thousands or millions, such as 500k or 8.8M")
    return round(float(size[:-1]) * units[size[-1]])


def get_config(size: str = "all"):
    config = _synthci_30m["get_config"]()
    config.name = "cc12m"
    config.data.sources = (DATA,)
    if size != "all":
        config.data.part = pairs(size)
    return config
