// One cell is chosen in all maps at once, by the sliders, a click or the arrow keys.
play("explorer", ({ data, all, one, form, choose }) => {
  const [columns, rows, methods] = data.shape;
  const at = (place, count) => `${(100 * place) / Math.max(count - 1, 1)}%`;

  for (const map of all(".map")) {
    map.addEventListener("click", (event) => {
      const cell = event.target.dataset.cell;
      if (!cell) return;
      const [column, row] = cell.split(",");
      choose({ column, row });
    });
    map.addEventListener("keydown", (event) => {
      const [key, by] = {
        ArrowLeft: ["column", -1],
        ArrowRight: ["column", 1],
        ArrowUp: ["row", -1],
        ArrowDown: ["row", 1],
      }[event.key] ?? [];
      if (!key) return;
      event.preventDefault();
      choose({ [key]: Number(form.elements[key].value) + by }); // a slider keeps within its ends
    });
  }

  return ({ column, row }) => {
    for (const cell of all("[data-cell]")) {
      cell.classList.toggle("now", cell.dataset.cell === `${column},${row}`);
    }
    const said = all(".chosen").map((card, m) => {
      const fact = data.facts[(column * rows + row) * methods + m];
      const [psnr, rank, share, certificate, digits, verdict] = fact;
      const texts = { psnr, rank, certificate, verdict };
      for (const [name, text] of Object.entries(texts)) one(`.${name}`, card).textContent = text;
      one(".share", card).style.width = `${100 * share}%`;
      one(".digits", card).style.width = `${100 * digits}%`;
      one(".verdict", card).classList.toggle("doubt", verdict !== data.trusted);
      const text = `${data.methods[m]}: ${psnr}, ${rank}, ${certificate}, ${verdict}`;
      const frame = one(".frame", card);
      frame.style.backgroundPosition = `${at(row * methods + m, rows * methods)} ${at(column, columns)}`;
      frame.setAttribute("aria-label", `Reconstruction, ${text}`);
      return text;
    });
    return said.join("; ");
  };
});
