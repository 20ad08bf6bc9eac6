"""Pictures and tables of what the lab found. Computes nothing that an experiment would report."""

from rconv.lazy import TYPE_CHECKING, lazy

if TYPE_CHECKING:
    from rconv.show import audit, charts, comparison_tables, figures, pages, tables
    from rconv.show.diagram import attack_diagram
    from rconv.show.explorer import explorer as explorer_figure
    from rconv.show.numbers import scientific
    from rconv.show.pages import glue, link, origin, results
    from rconv.show.peeling import peeling as peeling_figure
    from rconv.show.residues import COLOURS as RESIDUE_COLOURS
    from rconv.show.residues import residues as residues_figure
    from rconv.show.sliding import sliding as sliding_figure

__getattr__, __dir__ = lazy(__name__)
