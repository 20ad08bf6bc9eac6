// Draws the formulas that Sphinx leaves as TeX, \(...\) or \[...\], in elements of the class "math".
document.addEventListener("DOMContentLoaded", () => {
  const macros = { "\\bm": "\\boldsymbol{#1}" };
  for (const element of document.querySelectorAll(".math")) {
    // An equation's number is an element, the TeX is text beside it.
    for (const node of [...element.childNodes].filter(({ nodeType }) => nodeType === Node.TEXT_NODE)) {
      const tex = node.data.trim();
      if (!/^\\[([]/.test(tex)) continue;
      const drawn = document.createElement("span");
      katex.render(tex.slice(2, -2), drawn, { displayMode: tex[1] === "[", macros, throwOnError: false });
      node.replaceWith(...drawn.childNodes);
    }
  }
});
