// Which words of one text are not in another: the longest common subsequence of their words.

const LARGEST = 3e7; // cells of the table; beyond it texts count as wholly different

// A word with the white space after it; scripts that put no spaces are cut letter by letter.
const WORD = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]|[^\s\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]+\s*|\s+/gu;

function words(text) {
  return text.match(WORD) ?? [];
}

/** What counts when words are compared: not the white space after them. */
const core = (word) => word.trimEnd() || word;

/** [["same" | "gone" | "new", text], ...] that leads from `before` to `after`. */
function diff(before, after) {
  // The last words, too, have white space after them, should another one follow.
  const [a, b] = [words(`${before} `), words(`${after} `)];
  let head = 0;
  while (head < a.length && head < b.length && core(a[head]) === core(b[head])) head++;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && core(a.at(-1 - tail)) === core(b.at(-1 - tail))) tail++;
  const out = [];
  const add = (kind, word) => {
    if (out.length && out.at(-1)[0] === kind) out.at(-1)[1].push(word);
    else out.push([kind, [word]]);
  };
  for (let j = 0; j < head; j++) add("same", b[j]);
  middle(a.slice(head, a.length - tail), b.slice(head, b.length - tail), add);
  for (let j = b.length - tail; j < b.length; j++) add("same", b[j]);
  return out.map(([kind, list]) => [kind, list.join("")]);
}

function middle(a, b, add) {
  const [n, m] = [a.length, b.length];
  if (!n || !m || n * m > LARGEST) {
    a.forEach((w) => add("gone", w));
    b.forEach((w) => add("new", w));
    return;
  }
  const ids = new Map();
  const id = (word) => {
    const w = core(word);
    if (!ids.has(w)) ids.set(w, ids.size);
    return ids.get(w);
  };
  const [x, y] = [a, b].map((list) => Int32Array.from(list, id));
  // common[i][j]: words that a from i on and b from j on have in common.
  const width = m + 1;
  const common = new Uint16Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      const k = i * width + j;
      const [down, right] = [common[k + width], common[k + 1]];
      common[k] = x[i] === y[j] ? common[k + width + 1] + 1 : down > right ? down : right;
    }
  }
  let [i, j] = [0, 0];
  while (i < n || j < m) {
    if (i < n && j < m && x[i] === y[j]) add("same", b[j++], i++);
    else if (j >= m || (i < n && common[(i + 1) * width + j] >= common[i * width + j + 1])) add("gone", a[i++]);
    else add("new", b[j++]);
  }
}
