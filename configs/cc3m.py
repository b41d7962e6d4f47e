"""The paper's small real baseline: CLIP on CC3M with SynthCLIP's recipe.

    python -m synthclip_jax.train --config=configs/cc3m.py --workdir=W --config.data.sources=wds:/data/cc3m
    python -m synthclip_jax.train --config=configs/cc3m.py:500k --workdir=W     a nested part of it

The paper reports: linear probe 63.3, few-shot 74.2, image/text retrieval 33.7/42.9 (recall@5), ImageNet zero-shot 14.9.
"""

import pathlib
import runpy

DATA = "wds:data/cc3m"

_cc12m = runpy.run_path(str(pathlib.Path(__file__).with_name("cc12m.py")))


def get_config(size: str = "all"):
    config = _cc12m["get_config"](size)
    config.name = "cc3m"
    config.data.sources = (DATA,)
    return config
