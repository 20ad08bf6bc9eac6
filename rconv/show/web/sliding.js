// The window slides and A fills; or one row of A is chosen, or pointed at.
play("sliding", ({ form, data, all, one, render }) => {
  const [pixels, outputs] = [all(".image rect"), all(".output rect")];
  const entries = all("[data-p]");
  let pointed = null;

  const chosen = (state) => pointed ?? state.row ?? null;

  const show = (state) => {
    const row = chosen(state);
    const whole = row !== null;
    pixels.forEach((pixel, q) => {
      const met = data.places.filter((places, t) => (whole ? t === row : true)).map((p) => p[q]);
      const p = whole ? met[0] : met.find((own) => own === state.window) ?? -1;
      pixel.style.fill = p < 0 ? "" : data.tints[p];
      pixel.classList.toggle("now", p >= 0);
    });
    outputs.forEach((output, p) => output.classList.toggle("now", !whole && p === state.window));
    for (const entry of entries) {
      const [t, p] = [Number(entry.dataset.t), Number(entry.dataset.p)];
      entry.classList.toggle("now", whole ? t === row : p === state.window);
      entry.classList.toggle("later", !whole && p > state.window);
      entry.classList.toggle("aside", whole && t !== row);
    }
    return whole ? data.rows[row] : data.windows[state.window];
  };

  const choose = (row) => {
    for (const radio of form.elements.row) radio.checked = Number(radio.value) === row;
    render();
  };
  const point = (row) => {
    pointed = row;
    render();
  };
  all("[data-row]").forEach((band, t) => {
    band.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && point(t));
    band.addEventListener("click", () => {
      pointed = null;
      choose(form.elements.row.value === String(t) ? null : t);
    });
  });
  one(".matrix").addEventListener("pointerleave", () => point(null));
  // The window's controls take the figure back from a row.
  const back = (event) => {
    const own = event.target.closest("[name='window'], .steps");
    if (own) for (const radio of form.elements.row) radio.checked = false;
  };
  form.addEventListener("input", back, true);
  form.addEventListener("click", back, true);
  return show;
});
