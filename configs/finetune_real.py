"""A model trained on synthetic pairs goes on with real ones: the paper's table 2.

    python -m synthclip_jax.train --config=configs/finetune_real.py:2M,epochs=10 --workdir=W2 \
        --config.train.init_from=W --config.data.sources=wds:/data/cc12m

Sizes 0.5M, 2M and 8.8M (all of the CC12M that was still online), 5 or 10 epochs; the parts are nested. `init_from` is
the workdir of a run of synthci_30m.py, or of weights that `synthclip_jax.import_weights` has brought in: its averaged
parameters if it has them, a new optimizer, a new schedule.

What the paper does not say, and what we chose: learning rate, warm-up and the optimizer's state are not stated and no
script is public. Here the peak is a tenth of the one for training from scratch, and half an epoch warms up. Batch,
weight decay, augmentation and loss stay those of SynthCI.

The paper reports, against CC12M from scratch (Delta_MTL): 5 epochs +4.4% (0.5M), +6.2% (2M), +9.0% (8.8M); 10 epochs
+5.4%, +7.0%, +9.3%.
"""

import pathlib
import runpy

_cc12m = runpy.run_path(str(pathlib.Path(__file__).with_name("cc12m.py")))
START = "runs/synthci_30m"


def get_config(size: str = "8.8M", epochs: str = "5"):
    config = _cc12m["get_config"]("all" if size == "8.8M" else size)
    config.name = "finetune_real"
    config.train.update(init_from=START, epochs=float(epochs), warmup_epochs=0.5)
    config.train.update(learning_rate=5e-5, lr_start=1e-7, lr_end=1e-6)
    return config
