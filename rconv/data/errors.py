"""What goes wrong with images."""


class DatasetError(ValueError):
    """A dataset cannot be had. The message is one line: what is wrong, and what would help."""
