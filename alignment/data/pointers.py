"""Files that stand for others: what Git LFS and git-annex leave in the place of a large file until it is fetched."""

POINTER_BYTES = 64  # from a file's beginning, by which :func:`pointer_kind` tells
_STARTS = {b"version https://git-lfs": "Git LFS", b"/annex/objects/": "git-annex"}


def pointer_kind(start: bytes) -> str | None:
    """Whose pointer a file is by its first bytes; None for a file of its own."""
    return next((name for text, name in _STARTS.items() if start.startswith(text)), None)
