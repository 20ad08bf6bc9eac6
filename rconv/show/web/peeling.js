// Maps appear from the head down to the image, at first none; a layer's button goes to its step.
play("peeling", ({ data, all, choose }) => {
  const panels = all(".peels li");
  all("[data-step]").forEach((button, n) => {
    button.disabled = false;
    button.addEventListener("click", () => choose({ step: n + 1 }));
  });
  const show = ({ step }) => {
    panels.forEach((panel, n) => {
      panel.classList.toggle("done", n < step);
      panel.classList.toggle("open", n >= step);
      panel.classList.toggle("now", n === step - 1);
    });
    return data.said[step];
  };
  return Object.assign(show, { first: { step: 0 } });
});
