"""One interactive figure in plain HTML: two sliders, reconstructions, and what they are worth.

Every frame is computed beforehand. The figure needs no kernel, no network and no library: all
frames lie in one picture inside the HTML, and the sliders choose which part of it is shown.
"""

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from string import Template

import torch
from PIL import Image

from rconv.lab import metrics


def explorer(
    frames: torch.Tensor,
    original: torch.Tensor,
    ranks: torch.Tensor,
    sliders: dict[str, Sequence[str]],
    methods: Sequence[str],
    start: tuple[int, int] = (0, 0),
) -> str:
    """The figure as HTML, for a notebook's ``HTML(…)``.

    Parameters
    ----------
    frames
        Axes (first slider, second slider, method, channel, row, column), reconstructions. They
        are clipped to [0, 1] before they are shown and judged.
    original
        Axes (channel, row, column): the truth, shown beside them and used for their PSNR.
    ranks
        int64, axes (first slider, second slider, method): rank of the image's equations. The
        bar is full where it equals the number of the image's entries.
    sliders
        Name of each of the two sliders → a text for each of its positions.
    methods
        Name of each method.
    start
        Positions of the sliders at first.

    Returns
    -------
    str
        One ``<figure>``; without scripts it shows all frames in one static picture.

    Raises
    ------
    ValueError
        If the shapes, sliders and methods do not fit together.
    """
    wanted = (*(len(texts) for texts in sliders.values()), len(methods))
    if len(sliders) != 2 or frames.shape != wanted + original.shape or ranks.shape != wanted:
        raise ValueError(
            f"{tuple(frames.shape)} frames, {tuple(ranks.shape)} ranks and an image of "
            f"{tuple(original.shape)} do not fit sliders and methods of {wanted}"
        )
    seen = frames.detach().cpu().double().nan_to_num(0.5).clamp(0, 1)
    flat = seen.reshape(-1, *original.shape)
    psnr = metrics.psnr(flat, original.expand_as(flat).cpu(), data_range=1.0)
    data = {
        "texts": list(sliders.values()),
        "ranks": ranks.tolist(),
        "psnr": psnr.clamp(max=400).round(decimals=1).reshape(wanted).tolist(),
        "unknowns": original.numel(),
        "methods": list(methods),
        "grid": [wanted[1] * wanted[2], wanted[0]],
    }
    sprite = _png(seen.permute(0, 4, 1, 2, 5, 3).flatten(2, 4).flatten(0, 1))
    first, second = (
        _SLIDER.substitute(name=escape(name), last=len(texts) - 1, value=position)
        for (name, texts), position in zip(sliders.items(), start, strict=True)
    )
    return _FIGURE.substitute(
        controls=first + second,
        original=_png(original.detach().cpu().double().clamp(0, 1).permute(1, 2, 0)),
        panels="".join(_PANEL.substitute(name=escape(name)) for name in methods),
        sprite=sprite,
        data=json.dumps(data).replace("<", "\\u003c"),
        script=_SCRIPT,
        style=_STYLE,
    )


def _png(pixels: torch.Tensor) -> str:
    """Pixels (row, column, channel) in [0, 1] as the data URI of a PNG."""
    values = (255 * pixels).round().to(torch.uint8).squeeze(-1).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


_SLIDER = Template("""<label><span>$name: <output></output></span>
<input type="range" min="0" max="$last" step="1" value="$value"></label>
""")

_PANEL = Template("""<div><b>$name</b><div class="frame" role="img"></div>
<div class="bar" aria-hidden="true"><i></i></div><span class="fact"></span></div>
""")

_FIGURE = Template("""<figure class="rconv-explorer" data-sprite="$sprite">
<style>$style</style>
<div class="controls" hidden>$controls</div>
<div class="panels" hidden>
<div><b>original</b><img class="frame" alt="The original image" src="$original"></div>
$panels</div>
<p class="said" aria-live="polite"></p>
<noscript><img class="all" src="$sprite"
alt="All reconstructions, a row for each position of the first slider"></noscript>
<script type="application/json">$data</script>
<script>$script</script>
</figure>""")

_STYLE = """
.rconv-explorer { background: #fff; color: #222; padding: 1rem; margin: 0; border-radius: .4rem }
.rconv-explorer [hidden] { display: none !important }
.rconv-explorer .controls { display: grid; gap: .8rem; margin-bottom: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)) }
.rconv-explorer label, .rconv-explorer label span { display: block; margin: 0 }
.rconv-explorer output { font-weight: bold; color: inherit; padding: 0 }
.rconv-explorer input { width: 100%; height: 2rem; accent-color: #1a5fb4; cursor: pointer }
.rconv-explorer .panels { display: grid; gap: .6rem; grid-auto-flow: column;
  grid-auto-columns: minmax(0, 1fr) }
.rconv-explorer .panels b { display: flex; align-items: end; min-height: 2.6em; line-height: 1.2;
  font-size: .9rem; padding-bottom: .2rem }
.rconv-explorer .frame { display: block; width: 100%; aspect-ratio: 1; margin: 0;
  image-rendering: pixelated; background-color: #fff }
.rconv-explorer img.frame { padding: 0 !important; border: 0; border-radius: 0 }
.rconv-explorer .bar { background: #ddd; height: .7rem; margin: .5rem 0 .2rem }
.rconv-explorer .bar i { display: block; height: 100%; background: #c01c28 }
.rconv-explorer .bar i.full { background: #26763a }
.rconv-explorer .fact { display: block; font-size: .85rem; line-height: 1.3; min-height: 2.6em }
.rconv-explorer .said { position: absolute; width: 1px; height: 1px; margin: 0; overflow: hidden;
  clip-path: inset(50%) }
.rconv-explorer .all { width: 100% }
"""

_SCRIPT = """
(() => {
  for (const root of document.querySelectorAll(".rconv-explorer:not([data-ready])")) {
    const all = (selector) => [...root.querySelectorAll(selector)];
    const data = JSON.parse(all("script[type='application/json']")[0].textContent);
    const [columns, rows] = data.grid, inputs = all("input"), bars = all(".bar i");
    const at = (n, count) => (count > 1 ? (100 * n) / (count - 1) : 0) + "%";
    const show = () => {
      const [i, j] = inputs.map((input) => Number(input.value));
      inputs.forEach((input, n) => {
        const text = data.texts[n][input.value];
        input.setAttribute("aria-valuetext", text);
        all("output")[n].textContent = text;
      });
      const facts = data.methods.map((method, m) => {
        const rank = data.ranks[i][j][m], full = rank === data.unknowns;
        const fact = `rank ${rank} of ${data.unknowns}, ${data.psnr[i][j][m].toFixed(0)} dB`;
        const frame = all("div.frame")[m];
        frame.style.backgroundPosition =
          at(j * data.methods.length + m, columns) + " " + at(i, rows);
        frame.setAttribute("aria-label", `Reconstruction, ${method}: ${fact}`);
        bars[m].style.width = (100 * rank) / data.unknowns + "%";
        bars[m].className = full ? "full" : "";
        all(".fact")[m].textContent = fact;
        return `${method}: ${fact}`;
      });
      all(".said")[0].textContent = facts.join("; ");
    };
    for (const frame of all("div.frame")) {
      frame.style.backgroundImage = `url("${root.dataset.sprite}")`;
      frame.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
    }
    root.dataset.ready = "yes";
    all("[hidden]").forEach((part) => (part.hidden = false));
    inputs.forEach((input) => input.addEventListener("input", show));
    show();
  }
})();
"""
