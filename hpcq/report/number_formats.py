"""Texts of counts and durations, in reports and on the terminal."""

from __future__ import annotations

MISSING = "\N{EN DASH}"


def format_count(count: float) -> str:
    """Format with an SI prefix: '987', '310 k', '1.2 M'."""
    for power, prefix in ((9, "G"), (6, "M"), (3, "k")):
        # A count that rounds up to 1000 of a prefix gets the next larger prefix.
        if count >= 10**power - 10 ** (power - 3) / 2:
            scaled = count / 10**power
            return f"{scaled:.1f} {prefix}" if round(scaled, 1) < 10 else f"{scaled:.0f} {prefix}"  # noqa: PLR2004
    return f"{count:.0f}"


def format_token_savings(asked: float, computed: float) -> str:
    """Format the effect of prefix sharing: '1.2 M requested, 310 k computed (3.9x fewer)'."""
    ratio = f"{asked / computed:.1f}" if computed else "1.0"
    fewer = "" if ratio == "1.0" else f" ({ratio}x fewer)"
    return f"{format_count(asked)} requested, {format_count(computed)} computed{fewer}"


def format_duration(seconds: float | None) -> str:
    """Format seconds as '45 s', '3 min 05 s' or '2 h 10 min'."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, rest_minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {rest_minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def format_gigabytes(size: int | None) -> str:
    """Format bytes in units of 10^9, with three digits after the point."""
    return MISSING if size is None else f"{size / 1e9:.3f}"
