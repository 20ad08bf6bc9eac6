// What all figures share: the values of the controls are the state, and nothing else is.
const play = (name, start) => {
  for (const root of document.querySelectorAll(`.rconv-play.${name}:not([data-ready])`)) {
    root.dataset.ready = "yes";
    // Without :scope, a class of the page around the figure would count too.
    const all = (selector, within = root) => [...within.querySelectorAll(`:scope ${selector}`)];
    const one = (selector, within = root) => all(selector, within)[0];
    const form = one("form");
    const data = JSON.parse(one("script[type='application/json']").textContent);
    let timer = null;

    const state = () =>
      Object.fromEntries([...new FormData(form)].map(([key, value]) => [key, Number(value)]));

    const stop = () => {
      clearInterval(timer);
      timer = null;
      one(".said").setAttribute("aria-live", "polite");
      all("[data-run]").forEach((button) => (button.textContent = "play"));
    };

    const render = () => {
      for (const input of all("input[type='range']")) {
        const text = JSON.parse(input.dataset.texts)[input.value];
        input.setAttribute("aria-valuetext", text);
        one("output", input.parentElement).textContent = text;
      }
      for (const button of all("[data-by]")) {
        const input = form.elements[button.parentElement.dataset.of];
        button.disabled = input.value === (button.dataset.by < 0 ? input.min : input.max);
      }
      one(".said").textContent = show(state());
    };

    // What a figure's own script may do: choose a state as if by its controls.
    const choose = (changes) => {
      for (const [key, value] of Object.entries(changes)) form.elements[key].value = value;
      render();
    };

    const run = (input) => {
      const next = () => {
        choose({ [input.name]: Number(input.value) + 1 });
        if (input.value === input.max) stop();
      };
      if (timer) return stop();
      if (input.value === input.max) choose({ [input.name]: 0 });
      timer = setInterval(next, 12000 / Math.max(10, input.max)); // twelve seconds at most
      one(".said").setAttribute("aria-live", "off");
      all("[data-run]").forEach((button) => (button.textContent = "pause"));
    };

    for (const button of all(".steps button")) {
      const input = form.elements[button.parentElement.dataset.of];
      button.addEventListener("click", () => {
        if (button.dataset.by === undefined) return run(input);
        stop();
        choose({ [input.name]: Number(input.value) + Number(button.dataset.by) });
      });
    }
    form.addEventListener("input", () => {
      stop();
      render();
    });
    const show = start({ root, form, data, all, one, choose, render });
    all(".controls[hidden]").forEach((part) => (part.hidden = false));
    all("input:disabled").forEach((input) => (input.disabled = false));
    choose(show.first ?? {});
  }
};

