"""R-GAP's rank analysis: equations counted against unknowns, layer by layer."""

from dataclasses import dataclass

from torch import nn

from rconv.model.read import read


@dataclass(frozen=True)
class Count:
    """What R-GAP counts for one layer.

    `unknowns` are the entries of its input, `|x|`; `gradient` its gradient constraints, `|∇W|`, one
    per weight; `weight` its weight constraints, `|Z|`, one per output. `virtual` are `|V|`: a layer
    below with more outputs than inputs cannot reach every output, and the difference constrains all
    that lies above.
    """

    name: str
    unknowns: int
    gradient: int
    weight: int
    virtual: int

    @property
    def index(self) -> int:
        """RA-i = `|x|` - `|∇W|` - `|Z|` - `|V|`: negative or zero where the count suffices."""
        return self.unknowns - self.gradient - self.weight - self.virtual


def rank_analysis(model: nn.Sequential, input_shape: tuple[int, int, int]) -> tuple[Count, ...]:
    """Count the constraints of every layer as R-GAP's rank analysis does.

    The network counts as insecure where no layer's index is positive. Counting is necessary and not
    sufficient: equations that say the same thing twice count twice (the border, strides). Returns
    one count per convolution, from the image upwards, and one for the first Linear. Raises
    UnsupportedModelError for a layer that R-GAP cannot pass.

    References
    ----------
    Zhu and Blaschko, ICLR 2021, arXiv 2010.07733, "Rank analysis".
    """
    network = read(model, input_shape).required_chain("rank analysis", norms=False)
    counts, virtual = [], 0
    for stage in network.stages:
        g = stage.geometry
        counts.append(Count(stage.name, g.unknowns, g.gradient_rows, g.weight_rows, virtual))
        virtual += max(g.weight_rows - g.unknowns, 0)
    outputs, inputs = network.head.weight.shape
    counts.append(Count(network.head.name, inputs, outputs * inputs, outputs, virtual))
    return tuple(counts)
