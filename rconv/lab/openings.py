"""What equations leave open, what signs close of it, and what a prior shows of the rest."""

import time
from collections.abc import Sequence

from tqdm import tqdm

from rconv.attack.attack import Attack
from rconv.data import datasets
from rconv.lab import architectures, hunt, metrics
from rconv.lab.experiment import client_gradients, model_settings, shared_model
from rconv.lab.records import Record, finite
from rconv.observe.observation import Gradients


def openings(
    dataset: str = datasets.DEFAULT,
    indices: Sequence[int] = (0,),
    architecture: str = "lenet_all_relu",
    activation: str | None = None,
    *,
    widths: Sequence[int],
    layer: int = 0,
    seeds: Sequence[int] = (architectures.SEED,),
    initialisation: str | None = None,
    dtype: str = "float64",
    data_dir: str | None = None,
    progress: bool = False,
) -> list[Record]:
    """Attack networks one of whose layers has fewer and fewer filters.

    Parameters
    ----------
    dataset, indices, architecture, activation, initialisation, dtype, data_dir
        As `rconv.lab.experiment.run` takes them.
    widths : sequence of int
        Filters of the layer; the others keep the architecture's own.
    layer : int
        Index of the convolution, from the image on.
    seeds : sequence of int
        One network for each seed and width.
    progress : bool
        Show a progress bar over the networks.

    Returns
    -------
    list of Record
        One per network and image: the settings, "width", what `rconv.lab.hunt.judge` says,
        "by_rank", whether equations alone determine every layer, "open", the directions that
        equations and signs leave, and PSNR in dB: "psnr" of the answer, "least" without what the
        prior chose, "flat" of the image's own mean grey. "seconds" is CPU time of this process.

    Raises
    ------
    ValueError
        If a setting does not fit, with the reason.
    """
    usual = architectures.ARCHITECTURES[architecture].filters
    if not 0 <= layer < len(usual):
        raise ValueError(f"layer {layer} of {len(usual)} convolutions: use 0 to {len(usual) - 1}")
    truth = datasets.load(dataset, indices, data_dir=data_dir)
    networks = [(width, seed) for width in widths for seed in seeds]
    records: list[Record] = []
    for width, seed in tqdm(networks, disable=not progress, unit="network"):
        filters = (*usual[:layer], width, *usual[layer + 1 :])
        options = {"seed": seed, "filters": filters, "initialisation": initialisation}
        model = shared_model(dataset, architecture, activation, dtype=dtype, **options)
        shared = {
            "dataset": dataset,
            **model_settings(architecture, activation, **options),
            "dtype": dtype,
            "width": width,
        }
        attack = Attack(model, tuple(truth.images.shape[1:]), loss="cross-entropy")
        sent = client_gradients(model, architecture, truth, dtype)
        for n in range(len(truth)):
            records.append(attacked(attack, sent, truth, n, shared))
    return records


def attacked(
    attack: Attack, sent: Gradients, truth: datasets.Images, n: int, shared: Record
) -> Record:
    """One image, attacked and judged.

    Parameters
    ----------
    attack : Attack
        On the shared model.
    sent : dict of str to Tensor
        Name → (N, *parameter shape), gradients of N clients.
    truth : Images
        The N originals.
    n : int
        Which of them.
    shared : Record
        Entries of the record that are known already.

    Returns
    -------
    Record
        As `openings` says.
    """
    start = time.process_time()
    found = attack({name: g[n : n + 1] for name, g in sent.items()})
    seconds = time.process_time() - start
    image = truth.images[n : n + 1].double()
    (judged,) = hunt.judge(found, image, shared)
    least = (found.images - found.guess).clamp(0, 1)
    quality = {"least": least, "flat": metrics.flat(image)}
    return {
        **judged,
        "image": int(truth.indices[n]),
        "by_rank": all(int(own.rank) == own.unknowns for own in found.layers),
        "open": int(found.gap),
        **{key: finite(metrics.psnr(x, image, data_range=1.0)) for key, x in quality.items()},
        "seconds": seconds,
    }
