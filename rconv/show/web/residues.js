// The chosen layer's classes, and the rank of each one's equations.
play("residues", ({ data, all, one }) => {
  const percent = (part, whole) => `${(100 * part) / Math.max(whole, 1)}%`;

  const grid = (name, side, shift, own) => {
    const pattern = one(`.${name} pattern`);
    for (const key of ["width", "height"]) {
      pattern.setAttribute(key, own.stride);
      one(`.${name} .area`).setAttribute(key, side);
    }
    pattern.setAttribute("x", shift);
    pattern.setAttribute("y", shift);
    one(`.${name} svg`).setAttribute("viewBox", `0 0 ${side} ${side}`);
    all(`.${name} [data-class]`).forEach((tile, k) => {
      tile.setAttribute("x", (k % own.stride) + 0.04);
      tile.setAttribute("y", Math.floor(k / own.stride) + 0.04);
    });
  };

  return (state) => {
    const own = data.settings[[state.size, state.kernel, state.stride]];
    const [ranks, filters] = [own.ranks[state.filters], data.filters[state.filters]];
    const unknowns = own.size ** 2;
    const equations = filters * own.kernel ** 2;
    grid("pixels", own.size, -own.padding, own);
    grid("offsets", own.kernel, 0, own);
    for (let k = 0; k < data.classes; k++) {
      const known = k < own.stride ** 2;
      const [pixels, offsets, rank] = known ? [own.pixels[k], own.offsets[k], ranks[k]] : [0, 0, 0];
      for (const tile of all(`[data-class="${k}"]`)) {
        tile.style.display = known ? "" : "none";
        tile.style.fillOpacity = rank === pixels ? 1 : 0.2 + (0.4 * rank) / pixels;
      }
      const line = all(".shares li:not(.muted)")[k];
      const texts = [offsets, offsets * filters, pixels, rank];
      line.hidden = !known;
      line.classList.toggle("open", rank < pixels);
      all("span", line).forEach((span, n) => (span.textContent = texts[n]));
      const part = all(".ranks > div")[k];
      part.style.width = percent(pixels, unknowns);
      one("i", part).style.width = percent(rank, pixels);
    }
    one(".count").style.width = `${Math.min(100, (data.scale * equations) / unknowns)}%`;
    one(".counted").textContent = equations;
    one(".ranked").textContent = ranks.reduce((sum, rank) => sum + rank);
    one(".unknown").textContent = unknowns;
    return own.said[state.filters];
  };
});
