"""How numbers are said in lines of the log and on pages."""


def duration(seconds: float) -> str:
    """`42s`, `3m07s`, `5h02m`, `3d04h`; `?` for what is not a number."""
    if seconds != seconds:
        return "?"
    seconds = round(seconds)
    for unit, part, size, small in (("d", "h", 86400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // small:02d}{part}"
    return f"{seconds}s"
