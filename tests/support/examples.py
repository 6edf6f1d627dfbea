"""How many examples hypothesis tries."""

from hypothesis import settings


def examples(count: int) -> int:
    """So many, and ten times as many with --hypothesis-profile=nightly."""
    return count * settings.default.max_examples // 100
