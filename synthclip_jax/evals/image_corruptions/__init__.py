"""The 15 corruptions of Hendrycks and Dietterich (arXiv 1903.12261, section 4.1 and appendix B), at 5 severities.

Each is a function `(image, severity, rng) -> image` of float32 pixels in [0, 1]; the result may leave that range, and
`corrupt` clips it. Kinds and strengths are those of ImageNet-C, which were chosen for images of 224 x 224 pixels. Frost
is not the original's: its six photographs are not ours to ship, so a texture is drawn instead.

Other definitions that differ, all of them small: images are not stored as JPEG afterwards; "glass blur" exchanges
pixels, where the original's program copies one over the other; zooming is OpenCV's. `tests/parity` compares with the
package imagecorruptions.

A kind is a line in `config.registry.CORRUPTIONS`, and belongs to the group that its module is called by.
"""

import hashlib
import pkgutil

import numpy as np
from jaxtyping import UInt8

from synthclip_jax.config.registry import CORRUPTIONS

SIDE = 224  # pixels, what the strengths are made for
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(image: UInt8[np.ndarray, "h w 3"], kind: str, severity: int, key: str = "") -> UInt8[np.ndarray, "h w 3"]:
    """A corrupted image, always the same for the same `key`.

    Args:
      kind: a name of `config.registry.CORRUPTIONS`.
      severity: 1 to 5.
      key: what the image is called; what is drawn at random depends on it, the kind and the severity alone.
    """
    seed = int.from_bytes(hashlib.sha256(f"{kind} {severity} {key}".encode("utf-8", "surrogateescape")).digest()[:8])
    function = pkgutil.resolve_name(CORRUPTIONS[kind])
    pixels = function(image.astype(np.float32) / 255, severity, np.random.default_rng(seed))
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def group_of(kind: str) -> str:
    """The group of a kind: noise, blur, weather or digital, or that of one's own."""
    return CORRUPTIONS[kind].partition(":")[0].rpartition(".")[2]
