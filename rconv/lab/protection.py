"""How much of an image survives each defence: many images, several draws of the noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rconv.attack.attack import Attack
from rconv.data import datasets
from rconv.data.datasets import Images
from rconv.lab import architectures, defences, metrics
from rconv.lab.experiment import model_settings
from rconv.lab.masked import masked_attack
from rconv.lab.privacy import DELTA, epsilon_of_release
from rconv.lab.records import QUALITY, Record, finite
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients, per_sample_gradients

DOUBTFUL = 1e-2
"""Gradient residual above which an image is no explanation, and the attacker tries again."""

EXPLAINS = 1e-6
"""Residual of the surviving entries up to which a masked reconstruction counts as the image: far
above the rounding of an exact one, 1e-15 to 1e-12, and far below those that fail, 0.1 and more."""


@dataclass(frozen=True)
class Sent:
    """What the clients send under one defence.

    Parameters
    ----------
    defence, strength : str, float or str
        Its name, and how much of it.
    seed : int
        Of its noise.
    gradients : dict of str to Tensor
        Name → (N, *parameter shape).
    told : Noise, optional
        What the attacker is told of the noise.
    epsilon : float, optional
        What this one release has of differential privacy.
    """

    defence: str
    strength: float | str
    seed: int
    gradients: Gradients
    told: Noise | None = None
    epsilon: float | None = None

    @property
    def settings(self) -> Record:
        """What a record says of it."""
        return {"defence": self.defence, "strength": self.strength, "noise_seed": self.seed}


def grey(data: Images) -> Images:
    """The same images in grey, one channel: the mean over the channels."""
    return replace(data, images=data.images.mean(dim=1, keepdim=True))


def protect(
    dataset: str,
    indices: Sequence[int],
    architecture: str,
    filters: Sequence[int],
    *,
    noise: Sequence[float] = (),
    multipliers: Sequence[float] = (),
    shares: Sequence[float] = (),
    dtypes: Sequence[str] = (),
    masked: Sequence[float] = (),
    seeds: Sequence[int] = (0,),
    data_dir: str | None = None,
    progress: bool = False,
) -> list[Record]:
    """Attack defended gradients of grey images, by ReLU networks in float64.

    Parameters
    ----------
    dataset, indices, data_dir : str, sequence of int, str
        As `datasets.load` takes them.
    architecture, filters : str, sequence of int
        As `architectures.build` takes them.
    noise : sequence of float
        Strengths of `defences.add_noise`; the attacker is told them.
    multipliers : sequence of float
        σ of `defences.clip_and_noise`, each client by itself, with a bound of half the smallest
        norm, so that every client clips; the attacker is told the size of the noise. 0 clips only.
    shares : sequence of float
        Of `defences.prune`, against an attacker who takes the zeros for measured.
    dtypes : sequence of str
        Keys of `defences.DTYPES`.
    masked : sequence of float
        Shares of `defences.prune`, against `masked_attack`.
    seeds : sequence of int
        Draws of the noise. What is not random is attacked once.
    progress : bool
        Show a progress bar over the settings.

    Returns
    -------
    list of dict
        One record per attacked gradient: the settings; "attacker", which is the constraints,
        "paper" and "auto" by equations alone (against pruning "hybrid"), or "masked"; the quality
        of the image,
        clipped to [0, 1] before it is judged; "epsilon" of this one release at `DELTA`, None where
        there is none (`rconv.lab.privacy`); "unique", the attacker's verdict, for "masked"
        whether its image explains what survives up to `EXPLAINS`. "paper" uses the noise that it
        is told. "auto" first finds the noise itself, and where its image does not explain the
        gradients tries again with what it is told, and keeps what explains them better.
    """
    truth = grey(datasets.load(dataset, indices, data_dir=data_dir))
    model = architectures.build(architecture, 1, datasets.CLASSES[dataset], "ReLU", filters=filters)
    gradients = per_sample_gradients(model, truth.images, truth.labels)
    settings = {
        "kind": "attack",
        "dataset": dataset,
        **model_settings(architecture, "ReLU", filters=filters),
    }
    plan = [
        *_noisy(gradients, noise, multipliers, seeds),
        *(Sent("prune", s, 0, defences.prune(gradients, s)) for s in shares),
        *(Sent("round", t, 0, defences.round_to(gradients, defences.DTYPES[t])) for t in dtypes),
    ]
    records = []
    for sent in tqdm(plan, disable=not progress, unit="setting"):
        for attacker, images, unique in _answers(model, sent):
            own = {**sent.settings, "attacker": attacker, "epsilon": sent.epsilon}
            records += _judge(images, unique, truth, {**settings, **own})
    for share in tqdm(masked, disable=not progress, unit="share"):
        sent = Sent("prune", share, 0, defences.prune(gradients, share))
        records += _masked(model, sent, truth, settings)
    return records


def _noisy(
    gradients: Gradients, noise: Sequence[float], multipliers: Sequence[float], seeds: Sequence[int]
) -> Iterator[Sent]:
    bound = float(defences.norms(gradients).min()) / 2
    bought = {sigma: epsilon_of_release(sigma, DELTA) if sigma else None for sigma in multipliers}
    for seed in seeds:
        for s in noise:
            generator = torch.Generator().manual_seed(seed)
            sent = defences.add_noise(gradients, s, generator)
            yield Sent("noise", s, seed, sent, Noise(spread=s))
        for sigma in multipliers if seed == seeds[0] else [m for m in multipliers if m]:
            generator = torch.Generator().manual_seed(seed)
            sent = defences.clip_and_noise(gradients, sigma, bound, generator)
            told = Noise(deviations=dict.fromkeys(gradients, sigma * bound)) if sigma else None
            yield Sent("clip", sigma, seed, sent, told, bought[sigma])


def _answers(model: nn.Sequential, sent: Sent) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Attacker, images (N, C, H, W), verdicts (N,)."""
    shape = (1, 32, 32)
    result = Attack(model, shape, constraints="paper")(sent.gradients, noise=sent.told)
    yield "paper", result.images, result.unique
    kind = "hybrid" if sent.defence == "prune" else "auto"
    attack = Attack(model, shape, constraints=kind, signs=False)
    result = attack(sent.gradients)
    images, unique, residual = result.images, result.unique, result.gradient_residual
    doubtful = (residual > DOUBTFUL).nonzero()[:, 0]
    if sent.told is not None and len(doubtful):
        part = {name: g[doubtful] for name, g in sent.gradients.items()}
        again = attack(part, noise=sent.told)
        better = again.gradient_residual < residual[doubtful]
        images[doubtful[better]] = again.images[better]
        unique[doubtful[better]] = again.unique[better]
    yield kind, images, unique


def _masked(model: nn.Sequential, sent: Sent, truth: Images, settings: Record) -> list[Record]:
    """Records of the attacker who takes zeros for missing."""
    found = masked_attack(model, (1, 32, 32), sent.gradients)
    own = {**settings, **sent.settings, "attacker": "masked"}
    judged = _judge(found.images, found.residual < EXPLAINS, truth, own)
    more = zip(judged, found.gap.tolist(), found.unseen.tolist(), strict=True)
    return [{**record, "gap": gap, "unseen": unseen} for record, gap, unseen in more]


def _judge(images: Tensor, unique: Tensor, truth: Images, settings: Record) -> list[Record]:
    quality = metrics.quality(images.clamp(0, 1), truth.images)
    return [
        {
            **settings,
            "index": int(truth.indices[n]),
            **{key: finite(quality[key][n]) for key in QUALITY},
            "unique": bool(unique[n]),
        }
        for n in range(len(truth))
    ]
