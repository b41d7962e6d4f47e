"""HTML that is safe by construction: whatever is not `Html` already is escaped when it becomes part of a page.

Captions come from a language model and concepts from anyone's list, so the page treats every text as hostile.
"""

import base64
import html
import io
from collections.abc import Iterable
from typing import Any

from PIL import Image

from synthclip_jax.images.decoding import ImageError, open_image

VOID = frozenset({"br", "hr", "img", "link", "meta"})
THUMBNAIL = 144  # side of the largest picture put in the page, pixels
QUALITY = 90  # of JPEG


class Html(str):
    """Text that is markup already."""


def text(value: Any) -> Html:
    """A value as markup: `Html` as it is, everything else escaped; None is nothing, iterables are joined."""
    if isinstance(value, Html):
        return value
    if value is None:
        return Html("")
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return Html("".join(text(item) for item in value))
    return Html(html.escape(str(value), quote=True))


def tag(element: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. Attributes: a trailing underscore is dropped and others are hyphens (`class_`, `aria_label`); None
    and False leave an attribute out."""
    parts = [f"<{element}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{html.escape(str(value), quote=True)}"')
    parts.append(">")
    return Html("".join(parts) + ("" if element in VOID else f"{text(children)}</{element}>"))


def table(head: Iterable[Any], rows: Any, style: str = "", **body: Any) -> Html:
    """A table, which scrolls where it is too wide for the page.

    Args:
      head: what the columns are called.
      rows: see `row`.
      style: a class beside `scroll`.
      body: attributes of the table's body.
    """
    columns = tag("thead", tag("tr", (tag("th", word) for word in head)))
    return tag("div", tag("table", columns, tag("tbody", rows, **body)), class_=f"scroll {style}".strip(), tabindex=0)


def row(name: Any, *cells: Any, class_: str | None = None) -> Html:
    """A row of a table: what it is about, and its cells."""
    return tag("tr", tag("th", name, scope="row"), (tag("td", cell) for cell in cells), class_=class_)


def thumbnail(data: bytes | None) -> Html:
    """A picture inside the page, made smaller if it is too large; a sign in its place if it is missing or damaged."""
    if data is None:
        return tag("span", "no picture", class_="nopicture")
    try:
        image = open_image(data).convert("RGB")
    except ImageError:
        return tag("span", "no picture", class_="nopicture", title="this picture does not decode")
    # Only pixels matter here: a file that is copied as it is could carry anything else beside them.
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)  # leaves a smaller one as it is
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return tag("img", src=source, alt="", width=image.width, height=image.height, loading="lazy")


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 caption`, `2,000 captions`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def percent(share: float, digits: int = 1) -> str:
    """A share as percent."""
    return f"{100 * share:.{digits}f}%"


def with_interval(share: float, low: float, high: float) -> Html:
    """A share as percent, with its bounds."""
    return text((percent(share), tag("small", f"{100 * low:.1f} to {100 * high:.1f}")))
