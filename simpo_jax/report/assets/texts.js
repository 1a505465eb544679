// Texts of prompts and answers: where they are packed, how they are shown, and searching all.

const CONTROL = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;

/** Makes visible what would show as nothing, or turn the letters around. */
function visible(text) {
  return text.replace(CONTROL, (c) => {
    const code = c.codePointAt(0);
    if (c === "\u200d" || c === "\u200c") return c; // joins emoji and letters
    return code < 0x20 ? String.fromCodePoint(0x2400 + code) : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

const partOf = (run, prompt) => Math.floor(prompt / run.samples.part_size);

/** The text of a prompt; undefined if the report has left it out. */
async function promptText(run, prompt) {
  const id = `r${runs.indexOf(run)}-q${partOf(run, prompt)}`;
  return has(id) ? (await unpack(id))[prompt] : undefined;
}

/** The text of an answer; undefined if it is left out or does not exist. */
async function answerText(run, generation, prompt, sample) {
  const id = `r${runs.indexOf(run)}-g${generation}-p${partOf(run, prompt)}`;
  return has(id) ? (await unpack(id))[prompt]?.[sample] : undefined;
}

/** Whether the report holds the answers of this generation to this prompt. */
function holds(run, generation, prompt) {
  return run.samples.parts[generation].includes(partOf(run, prompt));
}

/**
 * Looks through all texts of a run, part by part.
 *
 * found(prompt) is called for each prompt in which the text stands, progress(done, all) after
 * each part; it ends early when still() is false.
 */
async function searchTexts(run, wanted, found, progress, still) {
  const number = runs.indexOf(run);
  const parts = [...new Set(run.samples.parts.flat())].sort((a, b) => a - b);
  const needle = wanted.toLowerCase();
  const within = (text) => text.toLowerCase().includes(needle);
  let done = 0;
  for (const part of parts) {
    const hits = new Set();
    const ids = [`r${number}-q${part}`, ...run.samples.parts.map((_, g) => `r${number}-g${g}-p${part}`)].filter(has);
    for (const id of ids) {
      // Not `unpack`, which would keep what is only looked through.
      for (const [prompt, value] of Object.entries(await (opened.get(id) ?? inflate(id)))) {
        if (hits.has(prompt)) continue;
        if (typeof value === "string" ? within(value) : Object.values(value).some(within)) hits.add(prompt);
      }
      if (!still()) return;
    }
    for (const prompt of hits) found(Number(prompt));
    progress(++done, parts.length);
  }
}

/** The text with every place where `wanted` stands marked. */
function highlighted(text, wanted) {
  if (!wanted) return [text];
  const out = [];
  const [low, needle] = [text.toLowerCase(), wanted.toLowerCase()];
  let from = 0;
  for (let at = low.indexOf(needle); at >= 0 && out.length < 2000; at = low.indexOf(needle, from)) {
    out.push(text.slice(from, at), el("mark", {}, text.slice(at, at + needle.length)));
    from = at + needle.length;
  }
  return [...out, text.slice(from)];
}
