"""Sphinx extension: the list of works is labelled and sorted as the text cites them.

The text cites by author and year, which `bibtex_reference_style` sets. pybtex has no style whose
list does the same; this one labels each work with what stands in the text. Two works of the same
authors and year need a letter behind the year in `references.bib`, and the build says so.
"""

from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style
from pybtex.style.labels import BaseLabelStyle


def label(entry):
    """Authors, as sphinxcontrib-bibtex shortens them in the text, and the year."""
    last = [str(name) for person in entry.persons["author"] for name in person.rich_last_names[-1:]]
    names = " and ".join(last) if len(last) <= 2 else f"{last[0]} et al."
    return f"{names}, {entry.fields['year']}"


class AuthorYearLabels(BaseLabelStyle):
    """Labels that differ."""

    def format_labels(self, sorted_entries):
        labels = [label(entry) for entry in sorted_entries]
        twice = {own for own in labels if labels.count(own) > 1}
        if twice:
            raise ValueError(f"references.bib: a letter behind the year of {', '.join(twice)}")
        return labels


class AuthorYearStyle(Style):
    """Sorted by author and year, labelled by them."""

    default_label_style = AuthorYearLabels


def setup(app):
    """Make the style known by the name that `_config.yml` gives."""
    register_plugin("pybtex.style.formatting", "author_year", AuthorYearStyle)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
