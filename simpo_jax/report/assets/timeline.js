// The timeline: one lane per mode, and a table of what took how long.

const LANES = ["compile", "train", "generate", "evaluate", "checkpoint"];
const LANE = { height: 18, gap: 8, label: 76 };
const LONG_GAP = 0.08; // of the busy time: a longer pause (a run that was resumed) is cut short
const CUT = 0.02;

function drawTimeline() {
  eachRun(section("timeline"), (run) => {
    const { timeline } = run;
    const spans = timeline.spans
      .map(([mode, start, took, step, times]) => ({ mode, start, took, step, times }))
      .concat(timeline.saves.map(([start, took, step]) => ({ mode: "checkpoint", start, took, step, times: 1 })))
      .sort((a, b) => a.start - b.start);
    if (!spans.length) return el("p", {}, "Nothing was launched yet.");
    const launches = spans.filter((s) => s.mode !== "compile");
    const compiling = spans.filter((s) => s.mode === "compile").reduce((sum, s) => sum + s.took, 0);
    const mostly = launches.length > 0 && compiling > 0.3 * folded(spans).total;
    const holder = el("div", {}, lanes(run, spans));
    const choice = mostly && el("label", { class: "check" }, el("input", { type: "checkbox", change: (e) => {
      holder.replaceChildren(...lanes(run, e.target.checked ? launches : spans).filter(Boolean));
    } }), "without compiling");
    return [choice, holder, sums(run, spans)];
  });
}

/** Where a time lies on an axis whose long pauses are cut: {at(t), total, cuts}. */
function folded(spans) {
  const busy = spans.reduce((sum, s) => sum + s.took, 0);
  const pieces = [];
  const cuts = [];
  let [end, shown] = [spans[0].start, 0];
  for (const s of spans) {
    const pause = s.start - end;
    if (pause > LONG_GAP * busy && pause > 30) {
      pieces.push([end, shown]);
      shown += CUT * busy;
      cuts.push({ at: shown - (CUT * busy) / 2, pause });
      pieces.push([s.start, shown]);
    } else if (pause > 0) {
      pieces.push([end, shown]);
      shown += pause;
    }
    if (s.start + s.took > end) {
      pieces.push([Math.max(s.start, end), shown]);
      shown += s.start + s.took - Math.max(s.start, end);
      end = s.start + s.took;
    }
  }
  pieces.push([end, shown]);
  const times = pieces.map((p) => p[0]);
  const at = (t) => {
    const i = Math.max(0, before(times, t));
    const next = pieces[i + 1];
    const inside = next && next[0] > times[i] ? ((t - times[i]) / (next[0] - times[i])) * (next[1] - pieces[i][1]) : 0;
    return pieces[i][1] + inside;
  };
  return { at, total: shown || 1, cuts };
}

function lanes(run, spans) {
  const names = LANES.concat([...new Set(spans.map((s) => s.mode))].filter((m) => !LANES.includes(m)))
    .filter((m) => spans.some((s) => s.mode === m));
  const holder = el("div", { class: "plot" });
  const output = el("output", {});
  const slider = el("input", { type: "range", min: 0, max: spans.length - 1, step: 1, value: 0, input: () => read() });
  const axis = folded(spans);
  let drawn;

  function draw() {
    const width = Math.max(280, Math.floor(holder.clientWidth));
    const inner = width - LANE.label - 8;
    const height = names.length * (LANE.height + LANE.gap) + 24;
    const place = (t) => LANE.label + (axis.at(t) / axis.total) * inner;
    const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `Timeline of ${plural(spans.length, "launch or save", "launches and saves")} over ${seconds(axis.total)}` });
    names.forEach((name, lane) => {
      const y = lane * (LANE.height + LANE.gap) + 2;
      root.append(
        svg("text", { class: "tick", x: LANE.label - 8, y: y + 13, "text-anchor": "end" }, name),
        svg("line", { class: "grid", x1: LANE.label, x2: width - 8, y1: y + LANE.height, y2: y + LANE.height }),
        svg("path", { class: `span ${name}`, d: spans.filter((s) => s.mode === name).map((s) => box(s, place, y)).join("") }),
      );
    });
    const bottom = height - 22;
    for (const cut of axis.cuts) {
      const x = LANE.label + (cut.at / axis.total) * inner;
      root.append(svg("path", { class: "cut", d: `M${fixed(x - 4)} ${bottom}l3-${bottom}M${fixed(x + 1)} ${bottom}l3-${bottom}` },
        svg("title", {}, `${seconds(cut.pause)} in which nothing ran`)));
    }
    if (!axis.cuts.length) {
      for (const t of timeTicks(axis.total, Math.max(2, Math.min(8, inner / 80)))) {
        root.append(svg("text", { class: "tick", x: place(spans[0].start + t), y: height - 6, "text-anchor": t ? "middle" : "start" }, clock(t)));
      }
    } else {
      root.append(svg("text", { class: "tick", x: LANE.label, y: height - 6 },
        `${seconds(axis.total)}; ${plural(axis.cuts.length, "pause")} of ${axis.cuts.map((c) => seconds(c.pause)).join(", ")} left out`));
    }
    const ring = svg("rect", { class: "ring", height: LANE.height + 4, rx: 2 });
    root.append(ring);
    holder.replaceChildren(root);
    const pick = (e) => {
      const x = e.clientX - root.getBoundingClientRect().left;
      const y = e.clientY - root.getBoundingClientRect().top;
      slider.value = nearest(spans, names[Math.floor(y / (LANE.height + LANE.gap))], x, place);
      read();
    };
    root.addEventListener("pointermove", pick);
    root.addEventListener("pointerdown", pick);
    drawn = { ring, place };
  }

  function read() {
    const s = spans[slider.value];
    const y = names.indexOf(s.mode) * (LANE.height + LANE.gap);
    const [x, end] = [drawn.place(s.start), drawn.place(s.start + s.took)];
    for (const [name, value] of Object.entries({ x: x - 2, y, width: Math.max(2, end - x) + 4 })) drawn.ring.setAttribute(name, fixed(value));
    const text = describe(s, run);
    output.textContent = text;
    slider.setAttribute("aria-valuetext", text);
  }

  requestAnimationFrame(() => {
    let width = holder.clientWidth;
    draw();
    read();
    new ResizeObserver(() => {
      if (holder.clientWidth === width) return;
      width = holder.clientWidth;
      draw();
      read();
    }).observe(holder);
  });
  return [
    el("div", { class: "toolbar" }, el("label", { class: "wide" }, el("span", {}, "Launch: ", output), slider)),
    holder,
    !run.timeline.timed && el("p", { class: "sub" }, "This run did not keep when its launches began: they are laid end to end."),
  ];
}

const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400, 172800, 604800];

function timeTicks(total, most) {
  const step = STEPS.find((s) => total / s <= most) ?? total;
  return [...Array(Math.floor(total / step) + 1).keys()].map((k) => k * step);
}

/** 0, 0.2 s, 12 s, 5:00, 1:20:00, 2 d */
function clock(t) {
  if (t === 0) return "0";
  if (t < 60) return `${number(t)} s`;
  if (t >= 172800) return `${number(t / 86400)} d`;
  const two = (n) => String(Math.floor(n) % 60).padStart(2, "0");
  return t < 3600 ? `${Math.floor(t / 60)}:${two(t)}` : `${Math.floor(t / 3600)}:${two(t / 60)}:${two(t)}`;
}

function box(s, place, y) {
  const x = place(s.start);
  const w = Math.max(1, place(s.start + s.took) - x);
  return `M${fixed(x)} ${y}h${fixed(w)}v${LANE.height}h${-fixed(w)}z`;
}

/** The span of a lane that is nearest to x; of all lanes if there is no such lane. */
function nearest(spans, lane, x, place) {
  let [best, least] = [0, Infinity];
  spans.forEach((s, i) => {
    if (lane && s.mode !== lane) return;
    const [a, b] = [place(s.start), place(s.start + s.took)];
    const away = x < a ? a - x : x > b ? x - b : 0;
    if (away < least) [best, least] = [i, away];
  });
  return best;
}

function describe(s, run) {
  const what = {
    train: s.times > 1 ? `${s.times} training steps up to ${s.step}` : `training step ${s.step}`,
    checkpoint: `checkpoint of step ${s.step}, waited for`,
    compile: "compiling",
    stop: `stop asked for after step ${s.step}`,
  }[s.mode] ?? `${s.mode} after step ${s.step}${s.times > 1 ? `, ${s.times} launches` : ""}`;
  const began = run.timeline.timed ? `, began at ${seconds(s.start)}` : "";
  return `${what}, ${seconds(s.took)}${began}`;
}

function sums(run, spans) {
  const by = new Map();
  for (const s of spans) {
    const row = by.get(s.mode) ?? { times: 0, took: 0, longest: 0 };
    row.times += s.times;
    row.took += s.took;
    row.longest = Math.max(row.longest, s.took / s.times);
    by.set(s.mode, row);
  }
  if (!by.has("checkpoint") && run.timeline.saved_seconds) {
    by.set("checkpoint", { times: 1, took: run.timeline.saved_seconds, longest: NaN });
  }
  const total = axisTotal(run, spans);
  const rows = [...by].sort((a, b) => b[1].took - a[1].took);
  const rest = total - rows.reduce((sum, [, r]) => sum + r.took, 0);
  if (rest > 0) rows.push(["everything else", { took: rest }]);
  return scrolling(of(run, "What took how long"), el("table", { class: "sums" },
    el("thead", {}, el("tr", {}, ["", "launches", "in all", "share", "each", "longest"].map((t, i) => i ? el("th", { scope: "col" }, t) : el("td", {}, t)))),
    el("tbody", {}, rows.map(([mode, r]) => el("tr", {},
      el("th", { scope: "row" }, mode), el("td", {}, count(r.times)), el("td", {}, seconds(r.took)),
      el("td", {}, share(r.took / total)), el("td", {}, seconds(r.took / r.times)), el("td", {}, seconds(r.longest)))))));
}

function axisTotal(run, spans) {
  const busy = spans.reduce((sum, s) => sum + s.took, 0);
  return run.record.resumes?.length ? folded(spans).total : Math.max(run.timeline.total ?? 0, busy);
}
