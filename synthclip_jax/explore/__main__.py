"""Serves a page to look at a dataset through a trained model.

    python -m synthclip_jax.explore --workdir=runs/quickstart

Type a text and see the nearest images; drop an image and see its zero-shot scores over class names that can be
edited; walk through the dataset concept by concept. The page is for this machine alone unless --host says otherwise:
anyone who reaches it can read the dataset.
"""

import argparse
import pathlib
import signal
import sys
from collections.abc import Sequence

from synthclip_jax.errors import UserError, command
from synthclip_jax.explore.guard import UPLOAD, Guard, own_names, private_files
from synthclip_jax.wording import make_parser

CLASSES = 100  # concepts that the field of class names starts with


class ExploreError(UserError, ValueError):
    """The page cannot be shown as asked; the text says what to do."""


@command("explore")
def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, embeds a sample of the dataset once, and serves until interrupted."""
    parser = make_parser("synthclip_jax.explore", __doc__)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument("--data", type=pathlib.Path, help="dataset folder; default: the run's training data")
    parser.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    parser.add_argument("--images", type=int, default=20_000, help="maximum of images to load; 0: all (default 20000)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port (default 7860)")
    arguments = parser.parse_args(argv)
    # A TERM ends the page as Ctrl-C does: its temporary files go with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with private_files():
        return _serve(arguments)


def _serve(arguments: argparse.Namespace) -> int:
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise ExploreError("the page needs Gradio: pip install 'synthclip_jax[explore]'") from None
    from starlette.middleware import Middleware

    from synthclip_jax.explore.collection import Collection, trained_on
    from synthclip_jax.explore.page import Explorer, build_page
    from synthclip_jax.model.checkpoint_files import checkpoint_digest, find_checkpoint
    from synthclip_jax.model.encoder import load_encoder

    workdir = arguments.workdir.expanduser()
    checkpoint = find_checkpoint(workdir, arguments.step)
    step = int(checkpoint.name)
    encoder = load_encoder(workdir, step)
    config = encoder.config
    collection = Collection(trained_on(config, workdir, arguments.data), arguments.images)
    collection.embed(encoder, workdir / "explore" / str(step), checkpoint_digest(checkpoint))
    classes = collection.concepts[:: max(1, len(collection.concepts) // CLASSES)][:CLASSES]
    page = build_page(Explorer(collection, encoder), f"{config.name}, step {step:,}", classes)
    page.launch(
        server_name=arguments.host,
        server_port=arguments.port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=UPLOAD,
        app_kwargs={"middleware": [Middleware(Guard, names=own_names(arguments.host))]},
    )
    print(f"Open http://{arguments.host}:{arguments.port} (Ctrl-C ends it)", flush=True)
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
