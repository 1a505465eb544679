// The samples: a list of all prompts, and the chosen one's answers beside each other.

const ROW = 58; // pixels of a prompt in the list
const MOST = 4; // columns shown unless more are asked for
const REPEATS = 0.4;
const GROWS = 1.5;
const browse = { run: 0, order: [], at: 0, sample: "0", base: "off", wanted: "", hits: null, only: "any", sort: "order", shown: null };
const indexes = [];
let list, detail, drawing = 0, searching = 0;

async function drawSamples() {
  const parent = section("samples");
  const some = runs.findIndex((r) => r.generations.length);
  if (some < 0) {
    parent.append(el("p", {}, "Nothing was generated yet."));
    return;
  }
  if (typeof DecompressionStream === "undefined") {
    parent.append(el("p", { class: "note" }, "This browser is too old to unpack the texts; they are in samples/ of the run's folder."));
    return;
  }
  browse.run = some;
  for (let i = 0; i < runs.length; i++) {
    indexes[i] = await inflate(`r${i}-index`);
    indexes[i].shared = sharedBeginning(indexes[i].prompts.map(([, head]) => head));
  }
  list = promptList((at) => choose(at));
  detail = el("article", { class: "detail", "aria-labelledby": "prompt-title" });
  parent.append(...leftOut(), filters(), list.status, el("div", { class: "browser" }, list.node, detail));
  refresh();
  addEventListener("hashchange", followHash);
  followHash();
}

const current = () => ({ run: runs[browse.run], index: indexes[browse.run] });

/** How many letters all prompts begin with alike, in whole words: the list leaves them out. */
function sharedBeginning(heads) {
  if (heads.length < 2) return 0;
  const [a, b] = heads.reduce(([low, high], h) => [h < low ? h : low, h > high ? h : high], [heads[0], heads[0]]);
  let n = 0;
  while (n < a.length && a[n] === b[n]) n++;
  const words = a.slice(0, n).lastIndexOf(" ") + 1;
  return words > 16 ? words : 0;
}

/** Goes to the prompt that the address names. */
function followHash() {
  const named = /^#prompt-(\d+)$/.exec(location.hash);
  if (!named) return;
  const at = browse.order.findIndex((p) => current().index.prompts[p][0] === Number(named[1]));
  if (at >= 0) choose(at);
  section("samples").scrollIntoView();
}

function leftOut() {
  const short = runs.filter((r) => r.generations.length && !r.samples.complete);
  return short.map((r) => el("p", { class: "note" },
    `${several ? `${r.label}: ` : ""}The report takes ${bytes(r.samples.max_bytes)} of packed text, and this run's answers are more. ` +
    `All of them are counted; the texts that are left out are in ${r.folder}/samples/. More fit with --max_mib (or --config.report.max_mib).`));
}

// --- what is in the list -------------------------------------------------------------------

/** Figures of the prompt at this place of the index, by generation. */
function figuresOf(index, p) {
  const at = [...Array(index.samples).keys()].map((s) => p * index.samples + s);
  const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);
  const each = index.generations.map((g) => {
    const there = at.filter((i) => isNumber(g.tokens[i]));
    return {
      answers: there.length,
      tokens: mean(there.map((i) => g.tokens[i])),
      cut: there.filter((i) => g.finish[i] === 1).length,
      empty: there.filter((i) => g.empty[i]).length,
      repetition: there.reduce((most, i) => Math.max(most, g.repetition[i] ?? 0), 0),
      logprob: mean(there.map((i) => g.logprob[i]).filter(isNumber)),
    };
  });
  const told = each.filter((g) => g.answers);
  return { each, end: told.at(-1) ?? each.at(-1), growth: told.length > 1 ? told.at(-1).tokens / told[0].tokens : 1 };
}

const ONLY = {
  any: ["all prompts", () => true],
  cut: ["cut off", (f) => f.end.cut > 0],
  ended: ["ended by themselves", (f) => f.end.cut === 0],
  repeats: [`repetitive, ${share(REPEATS)} or more`, (f) => f.end.repetition >= REPEATS],
  grows: [`grown × ${GROWS} or more`, (f) => f.growth >= GROWS],
  shrinks: [`shrunk to ${share(1 / GROWS)} or less`, (f) => f.growth <= 1 / GROWS],
  empty: ["empty", (f) => f.end.empty > 0],
};
const SORTS = {
  order: ["prompt", null],
  longest: ["longest", (f) => -f.end.tokens],
  shortest: ["shortest", (f) => f.end.tokens],
  growth: ["growth", (f) => -f.growth],
  repetition: ["repetition", (f) => -f.end.repetition],
  unlikely: ["least likely", (f) => f.end.logprob ?? 0],
};

function filters() {
  const options = (table) => Object.entries(table).map(([value, [name]]) => el("option", { value }, name));
  const select = (label, key, table) => el("label", {}, `${label} `,
    el("select", { change: (e) => { browse[key] = e.target.value; refresh(true); } }, options(table)));
  let pause;
  const find = el("input", { type: "search", id: "find", autocomplete: "off", spellcheck: "false", input: () => {
    clearTimeout(pause);
    pause = setTimeout(() => search(find.value.trim()), 250);
  } });
  return el("div", { class: "toolbar", role: "search", "aria-label": "Prompts and answers" },
    several && el("label", {}, "Run ", el("select", { change: (e) => {
      browse.run = Number(e.target.value);
      browse.shown = null;
      search(browse.wanted);
    } }, runs.map((r, i) => el("option", { value: i, selected: i === browse.run, disabled: !r.generations.length }, r.label)))),
    el("label", { class: "wide" }, "Find in prompts and answers ", find),
    select("Show", "only", ONLY), select("Sort by", "sort", SORTS));
}

/** Makes the list anew; the chosen prompt stays chosen if it is still there, unless `top`. */
function refresh(top = false) {
  const { index } = current();
  const chosen = top ? null : browse.order[browse.at];
  const figures = index.prompts.map((_, p) => figuresOf(index, p));
  const keep = ONLY[browse.only][1];
  browse.order = figures.map((_, p) => p).filter((p) => keep(figures[p]) && (!browse.hits || browse.hits.has(index.prompts[p][0])));
  const rank = SORTS[browse.sort][1];
  if (rank) browse.order.sort((a, b) => rank(figures[a]) - rank(figures[b]) || a - b);
  list.draw(figures);
  choose(Math.max(0, browse.order.indexOf(chosen)), false);
}

async function search(wanted) {
  const mine = ++searching;
  const still = () => mine === searching;
  browse.wanted = wanted;
  browse.hits = wanted ? new Set() : null;
  if (!wanted) return refresh();
  list.say("looking through all texts…");
  const { run, index } = current();
  for (const [prompt, head] of index.prompts) {
    if (head.toLowerCase().includes(wanted.toLowerCase())) browse.hits.add(prompt);
  }
  refresh();
  let changed = false;
  await searchTexts(run, wanted, (prompt) => {
    changed = changed || !browse.hits.has(prompt);
    browse.hits.add(prompt);
  }, (done, all) => {
    if (changed || done === all) refresh();
    changed = false;
    if (done < all) list.say(`${plural(browse.order.length, "prompt")} so far; looked through ${done} of ${all} parts`);
  }, still);
}

// --- the list, of which only what is seen exists ---------------------------------------------

function promptList(pick) {
  const status = el("p", { class: "status", role: "status" });
  const inside = el("div", { class: "list-inside", role: "presentation" });
  const node = el("div", { class: "list", role: "listbox", tabindex: "0", "aria-label": "Prompts", scroll: () => show(), keydown: key });
  node.append(inside);
  let figures = [];

  function key(e) {
    const page = Math.max(1, Math.floor(node.clientHeight / ROW) - 1);
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[e.key];
    if (move === undefined || e.ctrlKey || e.metaKey || e.altKey) return;
    e.preventDefault();
    pick(Math.min(browse.order.length - 1, Math.max(0, browse.at + move)));
  }

  function show() {
    const from = Math.max(0, Math.floor(node.scrollTop / ROW) - 4);
    const to = Math.min(browse.order.length, Math.ceil((node.scrollTop + node.clientHeight) / ROW) + 4);
    const rows = [];
    for (let at = from; at < to; at++) rows.push(item(at));
    if (browse.at < browse.order.length && (browse.at < from || browse.at >= to)) rows.push(item(browse.at));
    inside.replaceChildren(...rows);
    if (browse.order.length) node.setAttribute("aria-activedescendant", `at-${browse.at}`);
    else node.removeAttribute("aria-activedescendant");
  }

  function item(at) {
    const { index } = current();
    const p = browse.order[at];
    const [number, head] = index.prompts[p];
    const f = figures[p];
    const row = el("div", { class: "item", role: "option", id: `at-${at}`, "aria-selected": String(at === browse.at),
      "aria-posinset": at + 1, "aria-setsize": browse.order.length, click: () => pick(at) },
      el("span", { class: "item-head" }, el("span", { class: "item-number" }, count(number)), " ", el("bdi", {}, (index.shared ? "… " : "") + visible(head.slice(index.shared)).replace(/\s+/g, " "))),
      el("span", { class: "item-foot" }, lengths(f), flags(f)));
    row.style.top = `${at * ROW}px`;
    return row;
  }

  return {
    node, status,
    say(text) { status.textContent = text; },
    draw(all) {
      figures = all;
      inside.style.height = `${browse.order.length * ROW}px`;
      const total = current().index.prompts.length;
      status.textContent = browse.order.length === total ? plural(total, "prompt") : `${count(browse.order.length)} of ${plural(total, "prompt")}`;
      show();
    },
    reveal() {
      const [top, bottom] = [browse.at * ROW, (browse.at + 1) * ROW];
      if (top < node.scrollTop) node.scrollTop = top;
      else if (bottom > node.scrollTop + node.clientHeight) node.scrollTop = bottom - node.clientHeight;
      show();
    },
  };
}

function lengths(f) {
  const each = f.each.map((g) => (isNumber(g.tokens) ? count(g.tokens) : MISSING));
  return `${(each.length > 3 ? [each[0], "…", each.at(-1)] : each).join(" → ")} tok`;
}

function flags(f) {
  const out = [];
  if (f.end.cut) out.push(f.end.answers > 1 ? `${f.end.cut}/${f.end.answers} cut` : "cut off");
  if (f.end.repetition >= REPEATS) out.push("repeats");
  if (f.end.empty) out.push("empty");
  if (f.growth >= GROWS) out.push("grown");
  return out.map((text) => el("span", { class: "flag" }, text));
}

// --- one prompt ------------------------------------------------------------------------------

function choose(at, told = true) {
  browse.at = at;
  list.reveal();
  drawDetail();
  if (!told || !browse.order.length) return;
  try {
    history.replaceState(null, "", `#prompt-${current().index.prompts[browse.order[at]][0]}`);
  } catch {
    // Some browsers refuse for local files.
  }
}

/** Every run's generations of the chosen prompt: which columns there are. */
function columnsOf(key) {
  return runs.flatMap((run, r) => {
    const index = indexes[r];
    const p = r === browse.run ? browse.order[browse.at] : index.prompts.findIndex(([, , k]) => k === key);
    if (p < 0) return [];
    return run.generations.map((g, number) => ({ run, r, index, p, number, step: g.step, prompt: index.prompts[p][0] }));
  });
}

async function drawDetail() {
  const mine = ++drawing;
  const { run, index } = current();
  if (!browse.order.length) {
    detail.replaceChildren(el("h3", { id: "prompt-title" }, "No prompt"), el("p", {}, "Nothing fits the filter."));
    return;
  }
  const [prompt, head, key] = index.prompts[browse.order[browse.at]];
  const columns = columnsOf(key);
  const names = columns.map((c) => `${c.r}-${c.number}`);
  if (!browse.shown) {
    const ends = columns.filter((c, i) => columns[i + 1]?.run !== c.run);
    const few = several ? ends.slice(0, MOST) : columns.length > MOST ? [columns[0], ...columns.slice(1 - MOST)] : columns;
    browse.shown = new Set(few.map((c) => `${c.r}-${c.number}`));
  }
  const shown = columns.filter((c, i) => browse.shown.has(names[i]));
  const samples = browse.sample === "all" ? [...Array(index.samples).keys()] : [Math.min(Number(browse.sample), index.samples - 1)];
  const text = await promptText(run, prompt);
  const cells = await Promise.all(samples.map((s) => Promise.all(shown.map((c) => answerText(c.run, c.number, c.prompt, s)))));
  if (mine !== drawing) return;
  const body = el("div", { class: "answers" });
  detail.replaceChildren(
    el("div", { class: "detail-head" }, el("h3", { id: "prompt-title" }, `Prompt ${count(prompt)}`),
      el("span", { class: "steps" }, stepButton("previous", -1), stepButton("next", 1))),
    el("div", { class: "prompt", dir: "auto" }, highlighted(visible(text ?? `${head}…`), browse.wanted)),
    choices(index, columns, names), body);
  for (const [k, s] of samples.entries()) {
    if (samples.length > 1) body.append(el("h4", {}, `Sample ${s}`));
    const row = el("div", { class: "columns" });
    row.style.setProperty("--columns", shown.length);
    body.append(scrolling(`Answers, sample ${s}`, row));
    for (const [i, c] of shown.entries()) {
      const base = browse.base === "off" || i === 0 ? null : browse.base === "first" ? 0 : i - 1;
      row.append(answer(c, s, cells[k][i], base === null ? null : [shown[base], cells[k][base]]));
      // Long texts take a while to compare: show each as it is ready.
      if (base !== null && (cells[k][i] ?? "").length > 4000) await new Promise((done) => setTimeout(done));
      if (mine !== drawing) return;
    }
  }
}

function stepButton(name, move) {
  const to = browse.at + move;
  return el("button", { type: "button", class: "small", disabled: to < 0 || to >= browse.order.length, click: () => {
    choose(to);
    detail.querySelector(`.steps button:${move < 0 ? "first" : "last"}-child`)?.focus();
  } }, name);
}

function choices(index, columns, names) {
  const option = (value, name, chosen) => el("option", { value, selected: chosen }, name);
  const set = (key) => (e) => {
    browse[key] = e.target.value;
    drawDetail().then(() => detail.querySelector(`[data-choice="${key}"]`)?.focus());
  };
  return el("div", { class: "toolbar" },
    index.samples > 1 && el("label", {}, "Sample ", el("select", { "data-choice": "sample", change: set("sample") },
      [...Array(index.samples).keys()].map((s) => option(s, s, browse.sample === String(s))), option("all", "all", browse.sample === "all"))),
    columns.length > 1 && el("label", {}, "Differences ", el("select", { "data-choice": "base", change: set("base") },
      [["off", "not shown"], ["before", "from the column before"], ["first", "from the first column"]].map(([v, n]) => option(v, n, browse.base === v)))),
    columns.length > 1 && el("fieldset", { class: "chips" }, el("legend", {}, "Columns"), columns.map((c, i) =>
      el("label", {}, el("input", { type: "checkbox", checked: browse.shown.has(names[i]), "data-choice": names[i], change: (e) => {
        browse.shown[e.target.checked ? "add" : "delete"](names[i]);
        drawDetail().then(() => detail.querySelector(`[data-choice="${names[i]}"]`)?.focus());
      } }), columnName(c)))));
}

function columnName(c) {
  return several ? [...runName(c.run, c.r), `, step ${count(c.step)}`] : `step ${count(c.step)}`;
}

function answer(c, sample, text, base) {
  const g = c.index.generations[c.number];
  const at = c.p * c.index.samples + sample;
  const tokens = g.tokens[at];
  const title = el(browse.sample === "all" ? "h5" : "h4", { class: "answer-title" }, columnName(c));
  if (!isNumber(tokens)) return el("div", { class: "answer" }, title, el("p", { class: "sub" }, "no answer in the files"));
  const finish = c.run.samples.finish[g.finish[at]];
  const facts = [
    plural(tokens, "token"),
    finish === "stop" ? "ended by itself" : finish === "length" ? el("span", { class: "flag" }, "cut off") : "ended otherwise",
    isNumber(g.logprob[at]) && `${number(g.logprob[at], 3)} nats a token`,
    isNumber(g.repetition[at]) && el("span", { class: g.repetition[at] >= REPEATS ? "flag" : "" }, `${share(g.repetition[at])} repeated`),
  ].filter(Boolean);
  const body = el("div", { class: "text", dir: "auto" });
  let changed = null;
  if (text === undefined) {
    body.append(el("span", { class: "sub" }, `The text is left out here; it is in ${c.run.samples.files[c.number]} of the run's folder.`));
  } else if (!text) {
    body.append(el("span", { class: "sub" }, "(no text)"));
  } else if (base && base[1] !== undefined) {
    const pieces = diff(visible(base[1]), visible(text));
    body.append(...pieces.map(([kind, t]) => (kind === "same" ? t : el(kind === "new" ? "ins" : "del", {}, t))));
    const size = (kind) => pieces.filter(([k]) => k === kind).reduce((n, [, t]) => n + words(t).length, 0);
    const total = size("same") + size("new");
    changed = el("p", { class: "sub" }, size("new") || size("gone")
      ? `${share(total ? size("new") / total : 0)} of the words are not in step ${count(base[0].step)}${several ? ` of ${base[0].run.label}` : ""}`
      : "the same words");
  } else {
    body.append(...highlighted(visible(text), browse.wanted));
  }
  return el("div", { class: "answer" }, title,
    el("p", { class: "answer-facts" }, facts.flatMap((f, i) => (i ? [" · ", f] : [f]))), changed, body);
}
