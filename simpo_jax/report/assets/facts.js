// The masthead, the run at a glance, and the warning signs.

const last = (values) => (values ?? []).findLast(isNumber);
const first = (values) => (values ?? []).find(isNumber);
const STALE = 15 * 60 * 1000; // milliseconds after which a run in progress should have written

function stateOf(run) {
  return run.record.status ?? "unknown";
}

/** A run that says that it goes on, but had written nothing for long when the report was made. */
function isStale(run) {
  const age = new Date(page.written) - new Date(run.written);
  return !["done", "failed", "stopped", "unknown"].includes(stateOf(run)) && age > STALE;
}

function drawMasthead() {
  const [run] = runs;
  const shown = (r) => (isStale(r) ? "silent" : stateOf(r));
  section("title").append(several ? `${runs.length} runs compared` : run.name);
  section("lead").append(
    ...runs.flatMap((r, i) => [
      several && el("span", {}, runName(r, i), " "),
      el("span", { class: `state ${shown(r)}` }, shown(r)),
      " ",
      sentence(r),
      several && el("br"),
    ]).filter(Boolean),
  );
  const alerts = runs.flatMap((r) => {
    const name = several ? `${r.label}: ` : "";
    const out = [];
    if (r.record.error) out.push(["bad", `${name}${r.record.error}`]);
    if (isStale(r)) {
      const text = `run.json was last written at ${when(r.written)}: the run has probably been killed. ` +
        "The same command with the same --workdir goes on where it was.";
      out.push(["bad", name + text]);
    }
    if (r.notes.length) out.push(["", `${name}Not all could be read: ${r.notes.join("; ")}.`]);
    return out;
  });
  section("alerts").append(...alerts.map(([kind, text]) => el("p", { class: `note ${kind}` }, text)));
  const folder = several ? "" : ` of ${run.folder}`;
  section("colophon").append(
    el("p", {}, `Written ${when(page.written)} from the files${folder}. `,
      "One file that needs no network; it holds what the run's prompts and answers say, as text."),
  );
}

function sentence(run) {
  const { record, config, curves } = run;
  const parts = [];
  const device = record.devices ? ` on ${record.devices.kind} × ${record.devices.count}` : "";
  parts.push(`${modelName(run) ?? "a model"}${device}`);
  const steps = last(curves.train.step) ?? 0;
  const total = config.train?.steps;
  parts.push(`${steps === total ? plural(steps, "training step") : `${count(steps)} of ${plural(total, "training step")}`}`);
  const generated = run.generations.length;
  if (generated) {
    parts.push(`${plural(generated, "generation")} of ${plural(run.generations[0].answers, "answer")}`);
  }
  if (isNumber(run.timeline.total)) parts.push(seconds(run.timeline.total));
  return parts.join(" · ");
}

// --- at a glance ---------------------------------------------------------------------------

/** [label, value, note] of what a run came to. */
function keyFigures(run) {
  const { train, evaluate, generate } = run.curves;
  const held = (evaluate.step ?? []).length > 0;
  const from = held ? evaluate : train;
  const of = held ? "held out" : "last step";
  const change = (name, form) => {
    const [a, b] = [first(train[name]), last(train[name])];
    return train.step.length > 1 && isNumber(a) ? `training ${form(a)} → ${form(b)}` : "";
  };
  const { train_floor: least, train_seconds: took } = run.floors;
  const generation = run.generations.at(-1);
  return [
    [`Loss, ${of}`, number(last(from.loss)), change("loss", number)],
    [`Margin, ${of}`, signed(last(from["rewards/margins"])), change("rewards/margins", signed)],
    [`Accuracy, ${of}`, share(last(from["rewards/accuracies"])), change("rewards/accuracies", share)],
    ["Training", `${number(median(train.tokens_per_second), 3)} tok/s`, ofFloor(least, took)],
    ["Generation", `${number(generation?.tokens_per_second ?? last(generate.tokens_per_second), 3)} tok/s`,
      ofFloor(generation?.floor_seconds, generation?.seconds)],
  ];
}

function ofFloor(least, took) {
  if (!isNumber(least) || !isNumber(took) || took <= 0) return "floor not known";
  return least > took ? "at the floor, as measured here" : `${share(least / took)} of the floor`;
}

/** A model's name, without the folders that a file of weights lies in. */
function modelName(run) {
  const name = run.record.model?.name ?? run.config.model?.source;
  return name && /^[./~]/.test(name) ? name.split("/").at(-1) : name;
}

function signed(x) {
  return isNumber(x) && x > 0 ? `+${number(x, 3)}` : number(x, 3);
}

function median(values) {
  const sorted = (values ?? []).filter(isNumber).sort((a, b) => a - b);
  return sorted.length ? sorted[sorted.length >> 1] : undefined;
}

/** [label, value, note] of what ran, where and how. */
function facts(run) {
  const { record, config, timeline } = run;
  const { model, devices = {}, memory, timings } = record;
  const train = config.train ?? {};
  const mesh = Object.entries(devices.mesh ?? {}).map(([k, v]) => `${k} ${v}`).join(", ");
  const steps = run.curves.train;
  const compile = timeline.spans.filter(([mode]) => mode === "compile").at(-1);
  const out = [
    ["Model", modelName(run) ?? MISSING, model &&
      `${model.type}, ${number(model.params / 1e6)}M parameters; ${model.param_dtype} weights, ${model.compute_dtype} compute` +
      (train.lora_rank ? `; adapters of rank ${train.lora_rank}` : "")],
    ["Devices", devices.kind ? `${devices.kind} × ${devices.count}` : MISSING,
      `${plural(record.processes ?? 1, "process", "processes")}; mesh ${mesh || MISSING}`],
    ["Program", record.compiles ? `${plural(record.compiles, "compile")}, ${plural(record.executables ?? 0, "executable")}` : MISSING,
      `${record.program ?? ""}${compile ? `, compiled in ${seconds(compile[2])}` : ""}`],
    ["Data", record.pairs ? plural(record.pairs.train, "pair") : MISSING,
      `${count(record.pairs?.held_out)} held out; ${count(train.batch_size)} pairs a step`],
    ["Objective", `β ${number(config.simpo?.beta)}, γ/β ${number(config.simpo?.gamma_beta_ratio)}`,
      [config.simpo?.loss_type, `learning rate ${number(train.learning_rate)}`, train.schedule].filter(Boolean).join(", ")],
    ["Step", seconds(median(steps.step_seconds)),
      `median of ${plural(steps.step.length, "point")}` + floorNote(run.floors)],
    ["Peak memory", record.peak_bytes ? bytes(record.peak_bytes.program) : MISSING,
      `per device; host ${bytes(record.peak_rss_bytes)}`],
    ["Time", seconds(timeline.total), beginnings(run)],
    ["Folder", run.folder, Object.entries(record.versions ?? {}).map(([k, v]) => `${k} ${v}`).join(", ")],
  ];
  return out;
}

function floorNote({ train_floor: least, train_seconds: took, steps }) {
  return isNumber(least) && least <= took ? `; the floor is ${seconds(least / steps)}` : "";
}

function beginnings(run) {
  const out = [];
  if (run.timeline.origin) out.push(`began ${when(new Date(1000 * run.timeline.origin))}`);
  const resumed = run.record.resumes?.length;
  if (resumed) out.push(`resumed ${plural(resumed, "time")}, last after step ${run.record.resumes.at(-1).step}`);
  if (run.attempts) out.push(`${plural(run.attempts, "attempt")} without a checkpoint before`);
  if (run.record.began_with) out.push(`began with ${run.record.began_with}`);
  return out.join("; ");
}

function drawGlance() {
  const parent = section("glance");
  if (several) {
    parent.append(comparison(runs.map((r) => [...keyFigures(r), ...facts(r)])));
    return;
  }
  const [run] = runs;
  parent.append(
    el("dl", { class: "figures" }, keyFigures(run).map(([label, value, note]) =>
      el("div", {}, el("dt", {}, label), el("dd", { class: "big" }, value), note && el("dd", { class: "sub" }, note)))),
    el("dl", { class: "facts" }, facts(run).map(([label, value, note]) =>
      el("div", {}, el("dt", {}, label), el("dd", {}, value), note && el("dd", { class: "sub" }, note)))),
    floorExplained(run),
  );
}

function comparison(columns) {
  const head = el("tr", {}, el("td"), runs.map((r, i) => el("th", { scope: "col" }, runName(r, i))));
  const rows = columns[0].map(([label], k) =>
    el("tr", {}, el("th", { scope: "row" }, label), columns.map((c) =>
      el("td", {}, c[k][1], c[k][2] && el("div", { class: "sub" }, c[k][2])))));
  return scrolling("Runs compared", el("table", { class: "compare" }, el("thead", {}, head), el("tbody", {}, rows)));
}

/** A box that a wide table scrolls in, by keyboard too. */
function scrolling(label, ...children) {
  return el("div", { class: "scroll", role: "region", "aria-label": label, tabindex: "0" }, children);
}

function floorExplained(run) {
  const { rates } = run;
  if (!rates) {
    return el("p", { class: "sub" }, "Floors are not known: nothing is known of what these devices can do.");
  }
  return el("p", { class: "sub" },
    `The floor is the least time that the work can take: matrix products of the weights at ${rate(rates.flops, "FLOP/s")} ` +
    `a device, or reading weights and cache at ${rate(rates.bytes_per_second, "B/s")} (${rates.source}).`);
}

// --- warning signs -------------------------------------------------------------------------

const MARKS = { warning: "▲", watch: "◆", unknown: "○", ok: "✓" };

function drawSigns() {
  eachRun(section("signs"), (run) => {
    const loud = run.signs.filter((s) => s.state === "warning" || s.state === "watch");
    const quiet = run.signs.filter((s) => !loud.includes(s));
    const fine = quiet.filter((s) => s.state === "ok").length;
    const rest = quiet.length - fine;
    return [
      loud.length
        ? el("ul", { class: "signs" }, loud.map(sign))
        : el("p", {}, el("span", { class: "mark ok", "aria-hidden": "true" }, MARKS.ok), " None."),
      el("details", {},
        el("summary", {}, `${plural(fine, "sign")} ${fine === 1 ? "is" : "are"} fine` +
          (rest ? `, ${rest} cannot be told yet` : "")),
        el("ul", { class: "signs" }, quiet.map(sign))),
    ];
  });
}

function sign(s) {
  return el("li", { class: `sign ${s.state}` },
    el("p", { class: "sign-head" },
      el("span", { class: `mark ${s.state}` }, el("span", { "aria-hidden": "true" }, MARKS[s.state]), ` ${s.state}`),
      el("strong", {}, s.title), el("span", { class: "sign-value" }, s.value.replace(/-(?=\d)/g, "−"))),
    el("p", { class: "sub" }, `${s.meaning} Limits: ${s.limits}.`),
    (s.state === "warning" || s.state === "watch") && el("p", { class: "advice" }, s.advice));
}
