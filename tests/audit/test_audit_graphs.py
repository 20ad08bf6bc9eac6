"""The audit of networks that are no chain, and the changes it proposes: the attack as judge."""

import pytest
import torch
from graphs import Block, Random, conv, seeded
from small import observe, uniform
from torch import nn

from rconv.attack.attack import Attack
from rconv.audit import GRADIENT, HYBRID, NOT_UNIQUE, WEIGHT, audit, examine
from rconv.audit.generic import random_problems
from rconv.audit.layers import judge
from rconv.audit.widths import parameters, tied, with_filters
from rconv.linalg import dense
from rconv.model.nodes import UnsupportedModelError
from rconv.model.read import read

SHAPE = (1, 8, 8)


class Blocks(nn.Module):
    """A stem of 4 filters, and blocks as `graphs.Block` takes them."""

    def __init__(self, *blocks, activation=torch.tanh):
        super().__init__()
        self.act, self.stem, width = activation, conv(1, 4, 5), 4
        self.blocks = nn.Sequential()
        for kind, filters in blocks:
            self.blocks.append(Block(kind, activation, width, filters, 1, False, True))
            width = self.blocks[-1].width
        self.fc = nn.Linear(64 * width, 3)

    def forward(self, x):
        return self.fc(self.blocks(self.act(self.stem(x))).flatten(1))


def found(model, **options):
    """The attack's report on one image, without what signs close."""
    options = {"signs": False, **options}
    return Attack(model, SHAPE, **options)(observe(model, uniform(1, *SHAPE)))


@pytest.mark.parametrize("seed", [0, 2, 6, 7, 10, 14, 21])
def test_the_ranks_are_the_attacks_where_the_maps_are_a_clients(seed):
    """Additions, concatenations and BatchNorm in any order; some ranks are full, some short."""
    model, x = seeded(lambda: Random(seed), seed), uniform(1, *SHAPE)
    network, sent = read(model, SHAPE), observe(model, x)
    maps = [x]
    for node in network.nodes[1:]:
        maps.append(node.evaluate([maps[i] for i in node.inputs]))
    cotangent = (sent["fc.bias"] @ network.head.weight).reshape(maps[-1].shape)
    judged = [judge(met) for met in random_problems(network, maps, cotangent)]
    reports = Attack(model, SHAPE, signs=False)(sent).layers[1:]
    for own, report in zip(judged, reports, strict=True):
        assert (own.name, own.hybrid_rank) == (report.name, int(report.rank))
        if own.open:
            break  # what is below it, the attack gets wrong


def test_every_kind_of_verdict_in_one_network():
    judged = {a.name: a for a in audit(seeded(lambda: Blocks(("residual", 8))), SHAPE)}
    one, two = judged["blocks.0.one and blocks.0.shortcut"], judged["blocks.0.two"]
    assert (two.verdict, two.gradient_rank, two.weight_rows) == (GRADIENT, 512, 0)
    assert (one.verdict, one.unknowns, one.open) == (GRADIENT, 256, 0)
    few = {a.name: a for a in audit(seeded(lambda: Blocks(("dense", 2))), SHAPE)}
    assert few["blocks.0.one"].verdict == WEIGHT, "a concatenation hands it out"
    narrow = seeded(lambda: Blocks(("plain", 6), ("plain", 8), activation=torch.relu))
    judged = {a.name: a.verdict for a in audit(narrow, SHAPE)}
    assert judged["blocks.0.one"] == HYBRID and judged["stem"] == GRADIENT
    short = {a.name: a for a in audit(seeded(lambda: Blocks(("parallel", 4))), SHAPE)}
    both = short["blocks.0.one and blocks.0.two"]
    assert both.verdict == NOT_UNIQUE
    assert both.gradient_rank == both.hybrid_rank == 4 * 36, "one Ō, and its rows but once"


@pytest.mark.parametrize("filters, verdict, rank", [(5, HYBRID, 256), (1, NOT_UNIQUE, None)])
def test_a_rank_too_large_for_a_factorisation_is_told_where_it_is_full(
    filters, verdict, rank, monkeypatch
):
    monkeypatch.setattr(dense, "MAX_UNKNOWNS", 250)
    model = seeded(lambda: Blocks(("residual", filters), activation=torch.relu))
    judged = {a.name: a for a in audit(model, SHAPE)}["blocks.0.one and blocks.0.shortcut"]
    assert (judged.verdict, judged.hybrid_rank) == (verdict, rank)


@pytest.mark.parametrize("kind", ["parallel", "plain", "residual"])
def test_the_attack_confirms_how_many_filters_are_needed(kind):
    """Full rank with as many, short with one less; the others stay as they are."""
    wide = examine(seeded(lambda: Blocks((kind, 12))), SHAPE)
    width = next(w for w in wide.widths if w.convolution == f"blocks.0.{LAST[kind]}")
    for filters, full in ((width.needed, True), (width.needed - 1, False)):
        report = found(seeded(lambda d=filters: Blocks((kind, d)))).layers
        rank = {r.name: r.unknowns - int(r.rank) for r in report}
        assert (rank[width.layer] == 0) == full, filters


LAST = {"parallel": "one", "plain": "one", "residual": "two"}


def test_the_cheapest_change_makes_the_attack_fall_short():
    wide = examine(seeded(lambda: Blocks(("parallel", 9))), SHAPE)
    assert wide.verdict == "leaks" and not bool(found(seeded(lambda: Blocks(("parallel", 9)))).gap)
    change = wide.change
    assert (change.width.convolution, change.width.tied) == ("blocks.0.one", ("blocks.0.two",))
    assert change.filters == change.width.needed - 1 and change.layer.open > 0
    narrow = seeded(lambda: Blocks(("parallel", change.filters)))
    assert int(found(narrow).gap) > 0
    before, after = (sum(p.numel() for p in m.parameters())
                     for m in (seeded(lambda: Blocks(("parallel", 9))), narrow))  # fmt: skip
    assert change.parameters == before - after


def test_where_the_rank_is_short_no_change_is_looked_for():
    assert examine(seeded(lambda: Blocks(("parallel", 4))), SHAPE).change is None


# The changed network


def nodes_of(network):
    return {node.name: i for i, node in enumerate(network.nodes)}


def test_as_many_filters_as_before_leave_the_network_as_it_is():
    network = read(seeded(lambda: Random(6), 6), SHAPE)
    same = with_filters(network, 1, network.nodes[1].shape[0])
    x = uniform(2, *SHAPE)
    torch.testing.assert_close(same.evaluate(x), network.evaluate(x))
    assert parameters(same) == parameters(network)


def test_fewer_filters_are_the_first_ones_in_all_that_is_tied():
    """Behind a concatenation too: the channels that are left are those of the same maps."""
    model = seeded(lambda: Blocks(("dense", 3), ("parallel", 5)))
    network = read(model, SHAPE)
    places = nodes_of(network)
    fewer = with_filters(network, places["blocks.0.one"], 2)
    fewer = with_filters(fewer, places["blocks.1.two"], 4)
    with torch.no_grad():
        for own in (model.blocks[1].one, model.blocks[1].two):
            own.weight, own.bias = (nn.Parameter(p[:4].clone()) for p in (own.weight, own.bias))
        for own in (model.blocks[1].one, model.blocks[1].two):
            own.weight[:, 6] = 0  # the channel that is gone
    x = uniform(2, *SHAPE)
    expected = model.blocks(torch.tanh(model.stem(x)))
    torch.testing.assert_close(fewer.evaluate(x), expected)


def test_what_is_added_is_as_wide_and_the_image_is_not_widened():
    network = read(seeded(lambda: Blocks(("residual", 4))), SHAPE)
    places = nodes_of(network)
    assert tied(network, places["blocks.0.two"]) == (places["stem"], places["blocks.0.two"])
    assert tied(network, places["blocks.0.one"]) == (places["blocks.0.one"],)

    class ToTheImage(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.fc = conv(1, 3), conv(3, 1), nn.Linear(64, 2)

        def forward(self, x):
            return self.fc((self.two(self.one(x).tanh()) + x).tanh().flatten(1))

    network = read(seeded(ToTheImage), SHAPE)
    with pytest.raises(
        UnsupportedModelError, match="two is added to the image, which keeps its channels"
    ):
        with_filters(network, nodes_of(network)["two"], 2)
