// One small line chart: axes, lines or points, marks, and a cursor that reads it.

const HEIGHT = 168;
const EDGE = { left: 48, right: 10, top: 10, bottom: 24 };

/** Round numbers between two limits, about `most` of them. */
function ticks(low, high, most = 4) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((m) => m * power >= rough * 0.999);
  const out = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) out.push(Number((k * step).toPrecision(12)));
  return out;
}

function logTicks(low, high) {
  const out = [];
  for (let p = Math.floor(Math.log10(low)); 10 ** p <= high * 1.001; p++) {
    const many = high / low < 100 ? [1, 2, 5] : [1];
    for (const m of many) if (m * 10 ** p >= low * 0.999 && m * 10 ** p <= high * 1.001) out.push(m * 10 ** p);
  }
  return out.length > 1 ? out : [low, high];
}

/** A moving average that forgets; `keep` of the past at each step, unbiased at the start. */
function smoothed(values, keep) {
  let [sum, weight] = [0, 0];
  return values.map((v) => {
    if (!isNumber(v)) return v;
    sum = keep * sum + (1 - keep) * v;
    weight = keep * weight + (1 - keep);
    return sum / weight;
  });
}

/**
 * Draws a chart into `holder`.
 *
 * spec: { title, form, series: [{ name, x, y, low, high, kind: "line" | "dots", color, dash }],
 *   range: [least, most] of x, marks: [x], log, keep }
 * Returns { at(x) }, which moves the cursor and gives each series' value there.
 */
function drawChart(holder, spec) {
  const width = Math.max(220, Math.floor(holder.clientWidth));
  const inner = { w: width - EDGE.left - EDGE.right, h: HEIGHT - EDGE.top - EDGE.bottom };
  const lines = spec.series.map((s) => ({ ...s, shown: s.kind === "line" && spec.keep ? smoothed(s.y, spec.keep) : s.y }));
  const all = lines.flatMap((s) => [s.y, s.low ?? [], s.high ?? []].flat()).filter(isNumber);
  const log = spec.log && all.length > 0 && all.every((v) => v > 0);
  let [low, high] = all.length ? [all.reduce((a, b) => Math.min(a, b)), all.reduce((a, b) => Math.max(a, b))] : [0, 1];
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  if (log) [low, high] = [low / 1.05, high * 1.05];
  else [low, high] = [low - 0.04 * (high - low), high + 0.04 * (high - low)];

  const [from, to] = spec.range;
  const place = (x) => EDGE.left + (to > from ? (x - from) / (to - from) : 0.5) * inner.w;
  const scale = log ? Math.log : (v) => v;
  const rise = (v) => EDGE.top + (1 - (scale(v) - scale(low)) / (scale(high) - scale(low))) * inner.h;

  const root = svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": spec.label });
  for (const v of log ? logTicks(low, high) : ticks(low, high)) {
    root.append(
      svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: rise(v), y2: rise(v) }),
      svg("text", { class: "tick", x: EDGE.left - 6, y: rise(v) + 3.5, "text-anchor": "end" }, (spec.form === seconds ? clock : spec.form)(v)),
    );
  }
  const whole = ticks(from, to, Math.max(2, Math.min(6, inner.w / 60))).filter(Number.isInteger);
  for (const x of whole) {
    root.append(svg("text", { class: "tick", x: place(x), y: HEIGHT - 8, "text-anchor": "middle" }, count(x)));
  }
  root.append(svg("line", { class: "axis", x1: EDGE.left, x2: width - EDGE.right, y1: HEIGHT - EDGE.bottom, y2: HEIGHT - EDGE.bottom }));
  for (const x of spec.marks) {
    root.append(
      svg("line", { class: "generation", x1: place(x), x2: place(x), y1: EDGE.top, y2: HEIGHT - EDGE.bottom }),
      svg("path", { class: "generation-head", d: `M${place(x) - 4} ${EDGE.top - 6}h8l-4 6z` }),
    );
  }
  for (const s of lines) root.append(...drawSeries(s, place, rise, spec.keep));

  const cursor = svg("line", { class: "cursor", y1: EDGE.top, y2: HEIGHT - EDGE.bottom });
  const dots = lines.map((s) => svg("circle", { class: `dot ${s.color}`, r: 3.5 }));
  root.append(cursor, ...dots);
  holder.replaceChildren(root);

  function at(x) {
    cursor.setAttribute("x1", place(x));
    cursor.setAttribute("x2", place(x));
    return lines.map((s, k) => {
      const i = before(s.x, x);
      const value = i < 0 ? undefined : s.shown[i];
      dots[k].toggleAttribute("hidden", !isNumber(value));
      dots[k].setAttribute("visibility", isNumber(value) ? "visible" : "hidden");
      if (isNumber(value)) {
        dots[k].setAttribute("cx", place(s.x[i]));
        dots[k].setAttribute("cy", rise(value));
      }
      return value;
    });
  }
  const toX = (pixels) => from + ((pixels - EDGE.left) / inner.w) * (to - from);
  return { at, root, toX };
}

function drawSeries(s, place, rise, keep) {
  const out = [];
  const points = (values) => s.x.map((x, i) => (isNumber(values[i]) ? [place(x), rise(values[i])] : null));
  if (s.kind === "dots" || s.x.length === 1) {
    const d = points(s.y).filter(Boolean).map(([x, y]) => `M${fixed(x)} ${fixed(y - 4)}l4 4l-4 4l-4-4z`).join("");
    out.push(svg("path", { class: `marks ${s.color}`, d }));
  }
  if (s.low && s.high) {
    const up = points(s.high).filter(Boolean);
    const down = points(s.low).filter(Boolean).reverse();
    out.push(svg("path", { class: `band ${s.color}`, d: `M${[...up, ...down].map((p) => p.map(fixed).join(" ")).join("L")}Z` }));
  }
  if (s.kind === "line" && keep) out.push(svg("path", { class: `line raw ${s.color}`, d: path(points(s.y)) }));
  if (s.x.length > 1) {
    const kind = s.kind === "dots" ? "thin" : "";
    out.push(svg("path", { class: `line ${kind} ${s.color} ${s.dash ?? ""}`, d: path(points(s.shown)) }));
  }
  return out;
}

const fixed = (v) => Math.round(v * 10) / 10;

/** A line through the points, with a gap where one is missing. */
function path(points) {
  let pen = "M";
  let d = "";
  for (const p of points) {
    if (p) d += `${pen}${fixed(p[0])} ${fixed(p[1])}`;
    pen = p ? "L" : "M";
  }
  return d;
}

/** The index of the last x that is at most this one; -1 if there is none. */
function before(xs, x) {
  let [low, high] = [0, xs.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}
