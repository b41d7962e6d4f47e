"""A self-contained HTML page made of sections, each of which may be missing or damaged without harm to the others."""

import datetime
import importlib.resources
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from synthclip_jax import __version__
from synthclip_jax.files.storage import write_atomic
from synthclip_jax.report.markup import Html, tag
from synthclip_jax.report.missing import UNREADABLE, Missing
from synthclip_jax.report.workdir import Run

# Whatever a caption may try: a page runs no script but its own, if it has one, and asks for nothing from anywhere.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

# (id, title, a line beside it, content)
Section = tuple[str, str, str, Callable[[Run], Html]]


def page(
    run: Run,
    title: str,
    header: Html,
    sections: Iterable[Section],
    navigation: Mapping[str, str],
    policy: str = "",
    script: Html | None = None,
) -> str:
    """The page as text.

    Args:
      navigation: words of the links at the top, by the ids of sections.
      policy: what is allowed beside `POLICY`.
      script: the page's own; the policy must allow it.
    """
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    main = tag(
        "main",
        tag("nav", (tag("a", word, href=f"#{name}") for name, word in navigation.items()), aria_label="Sections"),
        header,
        (_section(run, *section) for section in sections),
    )
    footer = tag("footer", tag("p", f"synthclip_jax {__version__}, {now}"))
    return whole_page(title, main, footer, tag("script", script) if script else None, policy=policy)


def whole_page(title: str, *body: Html | None, policy: str = "") -> str:
    """The page around its body, with the style sheet inside; `policy` as in `page`."""
    style = importlib.resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content="; ".join(filter(None, (POLICY, policy)))),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(style)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', *body), lang='en')}\n"


def _section(run: Run, name: str, title: str, about: str, content: Callable[[Run], Html]) -> Html:
    try:
        body = content(run)
    except Missing as missing:
        body = tag("p", str(missing), class_="absent")
    except UNREADABLE as error:
        # A report is most wanted where a run went wrong: a damaged part must not take the others with it.
        body = tag("p", f"This part cannot be read: {type(error).__name__}: {error}", class_="absent")
    heading = tag("div", tag("h2", title), tag("p", about) if about else None, class_="heading")
    return tag("section", heading, body, id=name)


def write_page(workdir: str | os.PathLike, name: str, build: Callable[[Run], str], **options: Any) -> pathlib.Path:
    """Writes a page into a workdir, whole or not at all.

    Args:
      options: see `Run`.

    Returns:
      Its path.

    Raises:
      Missing: there is no such workdir.
      StoreError: it cannot be written.
    """
    folder = pathlib.Path(workdir).expanduser()
    if not folder.is_dir():
        raise Missing(f"{folder}: no such workdir. Check --workdir")
    path = folder / name
    write_atomic(path, build(Run(folder, **options)).encode("utf-8", errors="replace"))
    return path
