// Elements, numbers as people read them, and the packed texts.

const page = JSON.parse(document.getElementById("data").textContent);
const runs = page.runs;
const several = runs.length > 1;

/** An element. Strings among the children become text, never markup. */
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(3).filter((c) => c != null && c !== false));
  return node;
}

const section = (id) => document.getElementById(id);

/** Calls `build(run, number)` for each run, and titles what it gives if there are several. */
function eachRun(parent, build) {
  runs.forEach((run, number) => {
    const built = build(run, number);
    if (!built) return;
    parent.append(el("div", { class: "of-run" }, several && el("h3", {}, runName(run, number)), built));
  });
}

/** A label that is of this run alone. */
const of = (run, label) => (several ? `${label}, ${run.label}` : label);

function runName(run, number) {
  return [el("span", { class: `swatch c${number % 6}`, "aria-hidden": "true" }), " ", run.label];
}

// --- numbers -------------------------------------------------------------------------------

const grouped = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });
const MISSING = "–";

const isNumber = (x) => typeof x === "number" && Number.isFinite(x);

function count(x) {
  return isNumber(x) ? grouped.format(x) : MISSING;
}

/** Three or four significant digits. */
function number(x, digits = 4) {
  if (!isNumber(x)) return MISSING;
  const size = Math.abs(x);
  const text = size !== 0 && (size < 1e-3 || size >= 1e7) ? x.toExponential(Math.max(0, digits - 2))
    : size >= 10 ** (digits - 1) ? grouped.format(x) : String(Number(x.toPrecision(digits)));
  return text.replace(/\.?0+e/, "e").replaceAll("-", "−");
}

function share(x) {
  if (!isNumber(x)) return MISSING;
  if (x > 0 && x < 0.0005) return "< 0.1%";
  return x > 0 && x < 0.0995 ? `${(100 * x).toFixed(1)}%` : `${Math.round(100 * x)}%`;
}

function seconds(x) {
  if (!isNumber(x)) return MISSING;
  if (x === 0) return "0 s";
  if (x < 0.0995) return `${number(1000 * x, 2)} ms`;
  if (x < 9.95) return `${x.toFixed(x < 1 ? 2 : 1)} s`;
  if (x < 59.5) return `${Math.round(x)} s`;
  const two = (n) => String(n).padStart(2, "0");
  const whole = Math.round(x);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  const minutes = Math.round(x / 60);
  if (minutes < 2880) return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
  return `${(minutes / 1440).toFixed(1)} days`;
}

function bytes(x) {
  if (!isNumber(x)) return MISSING;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (x >= 1024 && power < units.length - 1) [x, power] = [x / 1024, power + 1];
  return `${power ? x.toFixed(x < 10 ? 2 : x < 100 ? 1 : 0) : x} ${units[power]}`;
}

function rate(x, unit) {
  if (!isNumber(x)) return MISSING;
  for (const [size, name] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"]]) {
    if (x >= size) return `${number(x / size, 3)} ${name}${unit}`;
  }
  return `${number(x, 3)} ${unit}`;
}

function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

function when(text) {
  const time = new Date(text);
  return text && !isNaN(time) ? time.toISOString().slice(0, 16).replace("T", " ") + " UTC" : MISSING;
}

// --- packed texts ------------------------------------------------------------------------

const has = (id) => document.getElementById(id) !== null;
const opened = new Map(); // the parts used last, as promises
const KEPT = 24;

/** What `pack` of samples.py packed under this name. */
function unpack(id) {
  if (!opened.has(id)) {
    opened.set(id, inflate(id));
    if (opened.size > KEPT) opened.delete(opened.keys().next().value);
  }
  const found = opened.get(id);
  opened.delete(id);
  opened.set(id, found);
  return found;
}

async function inflate(id) {
  const letters = document.getElementById(id).textContent;
  const packed = Uint8Array.fromBase64 ? Uint8Array.fromBase64(letters) : fromBase64(letters);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

function fromBase64(letters) {
  const text = atob(letters);
  const out = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) out[i] = text.charCodeAt(i);
  return out;
}
