// Memory, data, generations and settings.

function drawMemory() {
  eachRun(section("memory"), (run) => {
    const peaks = run.record.peak_bytes;
    if (!peaks) return el("p", {}, "Known once the program is compiled.");
    const state = run.record.memory?.aliased;
    const limit = run.chip?.hbm_bytes;
    const widest = Math.max(limit ?? 0, ...Object.values(peaks));
    const bar = (name, size) => {
      const fill = el("span", { class: "bar-fill" });
      fill.style.width = `${(100 * size) / widest}%`;
      const kept = el("span", { class: "bar-state" });
      kept.style.width = `${(100 * Math.min(state ?? 0, size)) / widest}%`;
      return el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "figure" }, bytes(size)),
        el("td", { class: "bar-cell" }, el("span", { class: "bar", "aria-hidden": "true" }, fill, kept)));
    };
    const names = ["program", "train", "generate", "evaluate", "abort"].filter((n) => n in peaks);
    return [
      el("table", { class: "bars" }, el("caption", {}, "Peak memory per device, by the compiler's account"),
        el("tbody", {}, names.map((n) => bar(n === "program" ? "whole program" : n, peaks[n])))),
      el("p", { class: "sub" },
        isNumber(state) ? `Dark: the train state, ${bytes(state)}, updated in place and there in every mode. ` : "",
        limit ? `A ${run.chip.name} has ${bytes(limit)}: ${share(peaks.program / limit)} is used. ` : "",
        `The process held at most ${bytes(run.record.peak_rss_bytes)} on the host.`),
    ];
  });
}

function drawData() {
  eachRun(section("data-rows"), (run) => {
    const reports = Object.entries(run.record.data ?? {});
    const wait = last(run.curves.train.data_wait_seconds);
    const rows = reports.map(([name, r]) => el("tr", {}, el("th", { scope: "row" }, name),
      el("td", {}, count(r.total)), el("td", {}, count(r.kept)), el("td", {}, reasons(r.skipped, r.examples)), el("td", {}, reasons(r.truncated))));
    return [
      reports.length
        ? scrolling(of(run, "Rows of the data"), el("table", { class: "rows" },
          el("thead", {}, el("tr", {}, ["", "rows", "kept", "left out", "cut to fit"].map((t, i) => i ? el("th", { scope: "col" }, t) : el("td", {}, t)))),
          el("tbody", {}, rows)))
        : el("p", {}, "No rows are counted yet."),
      el("p", { class: "sub" }, isNumber(wait) ? `The last step waited ${seconds(wait)} for its batch. ` : "",
        run.bad_steps.length ? `Steps that were left out because they were not finite: ${run.bad_steps.map((b) => `${b.step} (${b.pairs.join(", ")})`).join("; ")}.` : ""),
    ];
  });
}

function reasons(counts, examples = {}) {
  const some = Object.entries(counts ?? {}).filter(([, n]) => n);
  if (!some.length) return "none";
  return el("ul", { class: "plain" }, some.map(([reason, n]) =>
    el("li", {}, `${count(n)} ${reason.replaceAll("_", " ")}`, examples[reason] && el("span", { class: "sub" }, ` such as ${[examples[reason]].flat().join(", ")}`))));
}

function drawGenerations() {
  const parent = section("generations");
  eachRun(parent, (run) => {
    if (!run.generations.length) return el("p", {}, "Nothing was generated yet.");
    const heads = ["after step", "answers", "mean tokens", "lengths", "cut off", "repetition", "log-prob. per token", "tokens/s", "of the floor"];
    const start = run.generations[0];
    return [
      scrolling(of(run, "Table of generations"), el("table", { class: "generations" },
        el("thead", {}, el("tr", {}, heads.map((t) => el("th", { scope: "col" }, t)))),
        el("tbody", {}, run.generations.map((g) => el("tr", {},
          el("th", { scope: "row" }, count(g.step)), el("td", {}, count(g.answers)),
          el("td", {}, number(g.mean_tokens), g !== start && el("span", { class: "sub" }, ` × ${(g.mean_tokens / start.mean_tokens).toFixed(2)}`)),
          el("td", {}, bins(g)), el("td", {}, share(g.cut_share)), el("td", {}, share(g.repetition)),
          el("td", {}, number(g.logprob, 3)), el("td", {}, number(g.tokens_per_second, 3)),
          el("td", {}, g.floor_seconds && g.seconds ? share(Math.min(1, g.floor_seconds / g.seconds)) : MISSING)))))),
    ];
  });
  parent.append(el("p", { class: "sub" },
    "Lengths: how many answers have 0 tokens up to the longest allowed. Cut off: ended at max_new_tokens. ",
    "Repetition: the share of an answer's 4-grams of tokens that stood in it before."));
}

/** A histogram of lengths, small enough for a table. */
function bins(g) {
  const [w, h] = [4, 22];
  const most = Math.max(...g.histogram, 1);
  const d = g.histogram.map((n, i) => (n ? `M${i * w} ${h}v${-fixed(Math.max(1, (n / most) * h))}h${w - 1}V${h}z` : "")).join("");
  return svg("svg", { class: "bins", width: w * g.histogram.length, height: h + 1, role: "img",
    "aria-label": `Lengths from 0 to ${g.histogram_to} tokens, in ${g.histogram.length} steps: ${g.histogram.join(", ")}` },
    svg("path", { class: "bins-bars", d }), svg("path", { class: "axis", d: `M0 ${h + 0.5}H${w * g.histogram.length}` }));
}

// --- settings ------------------------------------------------------------------------------

function flat(value, prefix = "", out = {}) {
  for (const [name, v] of Object.entries(value)) {
    if (v && typeof v === "object" && !Array.isArray(v)) flat(v, `${prefix}${name}.`, out);
    else out[prefix + name] = Array.isArray(v) ? (v.length ? v.join(", ") : "()") : String(v === "" ? "“”" : v);
  }
  return out;
}

function drawSettings() {
  const parent = section("settings");
  const all = runs.map((r) => flat(r.config));
  const names = [...new Set(all.flatMap(Object.keys))];
  const differs = (n) => new Set(all.map((c) => c[n])).size > 1;
  const row = (n) => el("tr", { "data-name": n.toLowerCase() }, el("th", { scope: "row" }, n),
    all.map((c) => el("td", {}, c[n] ?? MISSING)));
  const table = (label, wanted) => scrolling(label, el("table", { class: "settings" },
    several && el("thead", {}, el("tr", {}, el("td"), runs.map((r, i) => el("th", { scope: "col" }, runName(r, i))))),
    el("tbody", {}, wanted.map(row))));
  if (several) {
    const changed = names.filter(differs);
    parent.append(el("h3", {}, "What differs"), changed.length ? table("Settings that differ", changed) : el("p", {}, "No setting."));
  }
  const body = table("All settings", names);
  const find = el("input", { type: "search", id: "find-setting", input: () => {
    for (const r of body.querySelectorAll("tbody tr")) r.hidden = !r.dataset.name.includes(find.value.trim().toLowerCase());
  } });
  parent.append(el("details", {}, el("summary", {}, `All ${names.length} settings`),
    el("p", { class: "toolbar" }, el("label", {}, "Find a setting ", find)), body));
}
