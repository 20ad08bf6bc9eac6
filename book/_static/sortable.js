// The first table of the page can be sorted by its columns and filtered by words.
addEventListener("DOMContentLoaded", () => {
  const table = document.querySelector("article table");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const value = (row, n) => row.cells[n].textContent.trim();
  const compare = new Intl.Collator("en", { numeric: true }).compare;

  [...table.tHead.rows[0].cells].forEach((head, n) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      rows.sort((a, b) => (down ? -1 : 1) * compare(value(a, n), value(b, n)));
      body.append(...rows);
    });
  });

  const filter = document.createElement("input");
  filter.type = "search";
  filter.placeholder = "Filter, such as CIFAR10 lenet";
  filter.setAttribute("aria-label", "Filter the table");
  filter.className = "rconv-filter";
  table.closest(".cell_output, .pst-scrollable-table-container, div").before(filter);
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
});
