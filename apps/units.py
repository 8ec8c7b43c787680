"""Numbers as people read them. Pure."""


def size_of(count: float) -> str:
    """So many bytes, in the unit that suits them.

    >>> size_of(12), size_of(4_500_000), size_of(16.4e9), size_of(36e15)
    ('12 B', '4.5 MB', '16.4 GB', '36,000.0 TB')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count:,.0f} B"
