"""For the book's notebooks: a number that the text quotes comes from the cell that computed it."""

from typing import Any

from IPython.display import display

PREFIX = "application/papermill.record/"


def glue(name: str, value: Any) -> None:
    """Give a value a name by which this page, or another one, can quote it.

    Quoted as ``{glue:text}`name``` in the same page, ``{glue:text}`file.md::name``` from another
    one, with a format behind it where the value is a number: ``{glue:text}`name:.1f```. What
    MyST-NB's own function of this name does, without Sphinx behind it.

    Parameters
    ----------
    name : unique within its page.
    value : a number or a text.
    """
    metadata = {"scrapbook": {"name": name, "mime_prefix": PREFIX}}
    data = {f"{PREFIX}text/plain": repr(value)}
    display(data, metadata=metadata, raw=True)
