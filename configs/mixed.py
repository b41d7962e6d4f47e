"""Real and synthetic pairs together, from scratch: 8.8M of CC12M and 11.2M of SynthCI, the paper's appendix D.

    python -m synthclip_jax.train --config=configs/mixed.py --workdir=W
    python -m synthclip_jax.train --config=configs/mixed.py:real=2M,synthetic=8M --workdir=W
    python -m synthclip_jax.train --config=configs/mixed.py:weight=0.7 --workdir=W

Without a weight both are one dataset, of which every pair is seen once an epoch. With one, `weight` is the share of
real pairs in every batch on average, and the smaller set is repeated. The parts are nested (2M of real pairs are inside
8.8M of them). Set REAL and SYNTHETIC below, or all of it: --config.data.sources="('wds:/a', 'tfrecord:/b')".

The paper reports: linear probe 78.7, few-shot 87.0, image/text retrieval 64.7/79.6 (recall@5), ImageNet zero-shot 39.1.
"""

import pathlib
import runpy

REAL, SYNTHETIC = "wds:data/cc12m", "tfrecord:runs/synthci_30m/dataset/synthci_30m/1.0.0"

_cc12m = runpy.run_path(str(pathlib.Path(__file__).with_name("cc12m.py")))


def get_config(real: str = "all", synthetic: str = "11.2M", weight: str = ""):
    config = _cc12m["get_config"]()
    config.name = "mixed"
    shares = (float(weight), 1 - float(weight)) if weight else (None, None)
    places, sizes = (REAL, SYNTHETIC), (real, synthetic)
    config.data.sources = tuple(
        (place, share, None, None, None if size == "all" else _cc12m["pairs"](size))
        for place, share, size in zip(places, shares, sizes, strict=True)
    )
    return config
