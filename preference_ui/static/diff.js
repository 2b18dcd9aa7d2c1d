// Which words of two texts the other does not have, in order: the shortest edit script of Myers (1986).

const MOST_EDITS = 2500; // more, and the texts have so little in common that marking words says nothing

// Words, numbers, and single other signs; scripts without spaces sign by sign.
const WORDS = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]|[\p{L}\p{M}\p{N}_]+|\s+|[^\s]/gu;

export const words = (text) => text.match(WORDS) ?? [];

// For each of the two texts its pieces in order: [text, whether the other lacks it]. Null where there are too many.
export function difference(first, second) {
  const texts = [words(first), words(second)];
  const seen = texts.map((all) => all.flatMap((word, at) => (word.trim() ? [at] : [])));
  const [one, two] = texts.map((all, side) => seen[side].map((at) => all[at]));
  let start = 0;
  while (start < one.length && start < two.length && one[start] === two[start]) start += 1;
  let end = 0;
  while (end < one.length - start && end < two.length - start && one.at(-1 - end) === two.at(-1 - end)) end += 1;
  const common = shared(one.slice(start, one.length - end), two.slice(start, two.length - end));
  if (common === null) return null;
  const same = [one, two].map((all, side) => {
    const marks = all.map((_, at) => at < start || at >= all.length - end);
    for (const pair of common) marks[start + pair[side]] = true;
    return marks;
  });
  return texts.map((all, side) => pieces(all, new Map(seen[side].map((at, place) => [at, same[side][place]]))));
}

// Pairs of places of a longest common subsequence. Null where it takes more than MOST_EDITS edits to find.
function shared(one, two) {
  const most = Math.min(one.length + two.length, MOST_EDITS);
  const furthest = new Int32Array(2 * most + 3);
  const middle = most + 1;
  const trace = []; // what each step began with, diagonals -edits - 1 to edits + 1
  for (let edits = 0; edits <= most; edits += 1) {
    trace.push(furthest.slice(middle - edits - 1, middle + edits + 2));
    for (let diagonal = -edits; diagonal <= edits; diagonal += 2) {
      const at = middle + diagonal;
      const down = diagonal === -edits || (diagonal !== edits && furthest[at - 1] < furthest[at + 1]);
      let x = down ? furthest[at + 1] : furthest[at - 1] + 1;
      while (x < one.length && x - diagonal < two.length && one[x] === two[x - diagonal]) x += 1;
      furthest[at] = x;
      if (x >= one.length && x - diagonal >= two.length) return back(trace, one.length, two.length);
    }
  }
  return null;
}

function back(trace, x, y) {
  const pairs = [];
  for (let edits = trace.length - 1; edits > 0; edits -= 1) {
    const before = (diagonal) => trace[edits][diagonal + edits + 1];
    const diagonal = x - y;
    const down = diagonal === -edits || (diagonal !== edits && before(diagonal - 1) < before(diagonal + 1));
    const from = down ? diagonal + 1 : diagonal - 1;
    while (x > before(from) && y > before(from) - from) pairs.push([x -= 1, y -= 1]);
    [x, y] = [before(from), before(from) - from];
  }
  while (x > 0 && y > 0) pairs.push([x -= 1, y -= 1]);
  return pairs.toReversed();
}

// The text in runs of marked and unmarked; what is between two marked words is marked with them.
function pieces(all, same) {
  const runs = [];
  let gap = "";
  all.forEach((word, at) => {
    if (!same.has(at)) { gap += word; return; }
    const marked = !same.get(at);
    const last = runs.at(-1);
    if (last && last[1] === marked) last[0] += gap + word;
    else {
      if (gap) runs.push([gap, false]);
      runs.push([word, marked]);
    }
    gap = "";
  });
  return gap ? [...runs, [gap, false]] : runs;
}
