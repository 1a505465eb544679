// The curves: which there are, one cursor and one smoothing for all, and the numbers as a table.

// title, unit or form, log offered, [[name, mode, column, dash]]
const CHARTS = [
  ["Loss", number, true, [["training", "train", "loss"], ["held out", "evaluate", "loss"]]],
  ["Reward margin", signed, false, [["training", "train", "rewards/margins"], ["held out", "evaluate", "rewards/margins"]]],
  ["Accuracy", share, false, [["training", "train", "rewards/accuracies"], ["held out", "evaluate", "rewards/accuracies"]]],
  ["Accuracy beyond gamma", share, false, [["training", "train", "rewards/accuracies_gamma"], ["held out", "evaluate", "rewards/accuracies_gamma"]]],
  ["Log-probability per token, nats", number, false, [["chosen", "train", "logps/chosen"], ["rejected", "train", "logps/rejected", "dashed"]]],
  ["Held-out log-probability per token, nats", number, false, [["chosen", "evaluate", "logps/chosen"], ["rejected", "evaluate", "logps/rejected", "dashed"]]],
  ["Response length in the data, tokens", number, false, [["chosen", "train", "length/chosen"], ["rejected", "train", "length/rejected", "dashed"]]],
  ["Answer length, tokens", number, false, [["generated, mean", "generate", "mean_tokens"]]],
  ["Answer log-probability per token, nats", number, false, [["generated", "generate", "mean_logprob_per_token"]]],
  ["Supervised loss of the chosen", number, true, [["training", "train", "nll_loss"], ["held out", "evaluate", "nll_loss"]]],
  ["Gradient norm", number, true, [["before clipping", "train", "grad_norm"]]],
  ["Learning rate", number, true, [["", "train", "learning_rate"]]],
  ["Training speed, tokens/s", number, false, [["", "train", "tokens_per_second"]]],
  ["Seconds of a step", seconds, true, [["step", "train", "step_seconds"], ["waited for data", "train", "data_wait_seconds", "dashed"]]],
];
const view = { keep: 0, log: new Set(), hidden: new Set(), at: 0 };

function drawCurves() {
  const parent = section("curves");
  const steps = [...new Set(runs.flatMap((r) => Object.values(r.curves).flatMap((c) => c.step ?? [])))].sort((a, b) => a - b);
  if (!steps.length) {
    parent.append(el("p", {}, "No step is done yet."));
    return;
  }
  view.at = steps.length - 1;
  const figures = CHARTS.map((chart) => figure(chart, steps)).filter(Boolean);
  const read = () => {
    slider.value = view.at;
    slider.setAttribute("aria-valuetext", `step ${steps[view.at]}`);
    output.textContent = count(steps[view.at]);
    for (const f of figures) f.read(steps[view.at]);
  };
  const redraw = () => {
    for (const f of figures) f.draw(move);
    read();
  };
  const move = (x) => {
    const i = before(steps, x);
    view.at = i < 0 ? 0 : i + 1 < steps.length && steps[i + 1] - x < x - steps[i] ? i + 1 : i;
    read();
  };
  const slider = el("input", { type: "range", id: "cursor", min: 0, max: steps.length - 1, step: 1,
    input: () => { view.at = Number(slider.value); read(); } });
  const output = el("output", { for: "cursor" });
  const smooth = el("select", { id: "smooth", change: () => { view.keep = Number(smooth.value); redraw(); } },
    [["none", 0], ["a little", 0.6], ["more", 0.9], ["much", 0.97]].map(([name, value]) => el("option", { value }, name)));
  const long = runs.some((r) => (r.curves.train.step ?? []).length >= 20);
  parent.append(
    el("div", { class: "toolbar" },
      el("label", { class: "wide" }, el("span", {}, "Step ", output), slider),
      long && el("label", {}, "Smoothing ", smooth),
      several && el("fieldset", { class: "chips" }, el("legend", {}, "Runs"), runs.map((r, i) =>
        el("label", {}, el("input", { type: "checkbox", checked: true, change: (e) => {
          view.hidden[e.target.checked ? "delete" : "add"](i);
          redraw();
        } }), runName(r, i))))),
    el("p", { class: "sub" }, "▾ marks a generation. ", el("span", { "aria-hidden": "true" }, "◇"), " held-out pairs. ",
      "The numbers are those at the chosen step, or the last ones before it.", thinned()),
    el("div", { class: "charts" }, figures.map((f) => f.node)),
    el("details", { toggle: (e) => e.target.open && numbers(e.target) }, el("summary", {}, "The same as a table")),
  );
  redraw();
  let width = parent.clientWidth;
  new ResizeObserver(() => {
    if (parent.clientWidth !== width) {
      width = parent.clientWidth;
      redraw();
    }
  }).observe(parent);
}

function thinned() {
  const most = Math.max(...runs.map((r) => r.curves.train.each ?? 1));
  return most > 1 ? ` A point is the mean of ${most} steps, in a band from the least to the largest.` : "";
}

function figure([title, form, logOffered, wanted], steps) {
  const series = runs.flatMap((run, number) => wanted.map(([name, mode, column, dash], k) => ({
    name, number, dash, mode,
    kind: mode === "train" ? "line" : "dots",
    color: `c${several ? number % 6 : mode === "evaluate" && k === 1 && wanted[0][1] === "train" ? 1 : k % 6}`,
    x: run.curves[mode].step ?? [],
    y: run.curves[mode][column],
    low: run.curves[mode][`${column}/low`],
    high: run.curves[mode][`${column}/high`],
  }))).filter((s) => s.y?.some(isNumber));
  if (!series.length) return null;
  const holder = el("div", { class: "plot" });
  const values = el("p", { class: "values" });
  const log = logOffered && el("button", { type: "button", class: "small", "aria-pressed": "false", "aria-label": `Logarithmic axis: ${title}`, click: () => {
    view.log[view.log.has(title) ? "delete" : "add"](title);
    log.setAttribute("aria-pressed", view.log.has(title));
    draw(mover);
    read(steps[view.at]);
  } }, "log");
  const node = el("figure", { class: "chart" },
    el("figcaption", {}, el("span", { class: "chart-title" }, title), log || null, values), holder);
  let chart, mover, shown;

  function draw(move) {
    mover = move;
    shown = series.filter((s) => !view.hidden.has(s.number));
    const marks = [...new Set(runs.filter((_, i) => !view.hidden.has(i)).flatMap((r) => r.generations.map((g) => g.step)))];
    chart = drawChart(holder, {
      title, form, series: shown, marks, keep: view.keep, log: view.log.has(title),
      range: [Math.min(1, steps[0]), steps.at(-1)],
      label: `${title} by step, from ${steps[0]} to ${steps.at(-1)}`,
    });
    const point = (e) => mover(chart.toX(e.clientX - chart.root.getBoundingClientRect().left));
    chart.root.addEventListener("pointermove", point);
    chart.root.addEventListener("pointerdown", point);
  }

  function read(x) {
    const found = chart.at(x);
    values.replaceChildren(...shown.map((s, k) => el("span", { class: "value" },
      el("span", { class: `key ${s.color} ${s.dash ?? ""} ${s.kind}`, "aria-hidden": "true" }),
      ` ${[several && runs[s.number].label, s.name].filter(Boolean).join(" ")} `, el("b", {}, form(found[k])))));
  }
  return { node, draw, read };
}

/** Fills the table of all rows, once. */
function numbers(details) {
  if (details.childElementCount > 1) return;
  for (const [i, run] of runs.entries()) {
    for (const [mode, columns] of Object.entries(run.curves)) {
      const names = Object.keys(columns).filter((n) => Array.isArray(columns[n]) && !/\/(low|high)$/.test(n));
      if (!columns.step?.length) continue;
      const title = `${several ? `${run.label}, ` : ""}${mode}`;
      details.append(scrolling(title, el("table", { class: "numbers" },
        el("caption", {}, several ? runName(run, i) : "", ` ${mode}`),
        el("thead", {}, el("tr", {}, names.map((n) => el("th", { scope: "col" }, n)))),
        el("tbody", {}, columns.step.map((_, k) => el("tr", {}, names.map((n) => el("td", {}, number(columns[n][k])))))))));
    }
  }
}
