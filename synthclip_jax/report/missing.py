"""Parts of a run that are not there, or cannot be read: each leaves a sentence, and the page shows the rest."""

from typing import Any

from synthclip_jax.errors import UserError


class Missing(UserError, LookupError):
    """A part of the run is not there (yet); the text is a sentence for the reader."""


# What reading a part that is damaged, or of another version, can raise.
UNREADABLE = (UserError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError)


def optional(part: Any, *arguments: Any) -> Any:
    """What a part of the run gives, or None if it is missing or damaged (its own section says so)."""
    try:
        return part(*arguments)
    except (Missing, *UNREADABLE):
        return None


def outside(what: str, place: str) -> Missing:
    """Images that a workdir names and does not hold: one from somebody else could name any folder of this machine."""
    return Missing(
        f"{what} lies outside this workdir ({place}). --allow-outside shows its pictures, where this workdir is your"
        " own."
    )
