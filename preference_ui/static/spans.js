// One answer as it is written, of which the rater marks parts, each with a label and perhaps a comment.
// Places are counted in UTF-16 here and in whole characters (code points) on the wire.
import { words } from "./diff.js";
import { h, key } from "./dom.js";
import { t } from "./words.js";

const MOST = 100; // marks of an answer, as the server takes them
const EXCERPT = 60;

export function spansView(screen, draft, changed, answerCard) {
  const { labels } = screen.queue;
  const whole = screen.answers[0].text;
  const points = [];
  for (let at = 0; at < whole.length; at += whole.codePointAt(at) > 0xffff ? 2 : 1) points.push(at);
  points.push(whole.length);
  const toPoints = (place) => points.indexOf(place) >= 0 ? points.indexOf(place) : points.findIndex((one) => one > place) - 1;
  let marks = (draft?.spans ?? []).map((one) => ({ ...one, start: points[one.start], end: points[one.end] }));
  let before = null; // what was marked last
  let chosen = null, span = null; // what is selected: [start, end] of the text, and [where it began, where it grows] in words

  const places = []; // [start, end] of every word
  let place = 0;
  for (const word of words(whole)) { if (word.trim()) places.push([place, place + word.length]); place += word.length; }

  const text = h("div", { class: "marking as-written", dir: "auto", tabIndex: 0, role: "textbox", "aria-readonly": "true", "aria-multiline": "true",
    "aria-label": t("The answer, to be marked") });
  const said = h("p", { class: "said", role: "status" });
  const list = h("ol", { class: "marks" });
  const buttons = labels.map(({ name, rubric }, at) => h("button", { type: "button", class: "label", title: rubric,
    onmousedown: (event) => event.preventDefault(), onclick: () => mark(at) }, h("bdi", { dir: "auto" }, name), " ", key(String(at + 1))));

  // ---- what is selected
  function offset(node, at) {
    const range = document.createRange();
    range.setStart(text, 0);
    range.setEnd(node, at);
    return range.toString().length;
  }

  function read() {
    const found = getSelection();
    if (!found || found.isCollapsed || !text.contains(found.anchorNode) || !text.contains(found.focusNode)) return false;
    const [start, end] = [offset(found.anchorNode, found.anchorOffset), offset(found.focusNode, found.focusOffset)].toSorted((a, b) => a - b);
    const inside = whole.slice(start, end);
    if (!inside.trim()) return false;
    chosen = [start + inside.length - inside.trimStart().length, end - inside.length + inside.trimEnd().length];
    span = null;
    return true;
  }

  // By words: `more` has the selection grow, or shrink, at the end that moved last.
  function step(forward, more) {
    if (!places.length) return;
    const last = places.length - 1;
    const from = chosen ?? before; // after a mark it goes on from there
    const [first, end] = from ? [places.findIndex((one) => one[1] > from[0]), places.findLastIndex((one) => one[0] < from[1])] : [last + 1, -1];
    if (!chosen || !more) {
      span = [Math.min(Math.max(forward ? end + 1 : first - 1, 0), last)];
      span.push(span[0]);
    } else {
      span ??= forward ? [first, end] : [end, first]; // what the mouse had selected
      span[1] = Math.min(Math.max(span[1] + (forward ? 1 : -1), 0), last);
    }
    chosen = [places[Math.min(...span)][0], places[Math.max(...span)][1]];
    getSelection()?.removeAllRanges();
    draw();
    text.querySelector(".chosen")?.scrollIntoView({ block: "nearest" });
  }

  // ---- marks
  function mark(at) {
    if (!chosen) { said.textContent = t("Select some words of the answer first"); return; }
    const [start, end] = chosen;
    const label = labels[at].name;
    if (marks.length < MOST && !marks.some((one) => one.start === start && one.end === end && one.label === label)) {
      marks = [...marks, { start, end, label, comment: "" }].toSorted((one, other) => one.start - other.start || one.end - other.end);
    }
    [before, chosen] = [chosen, null];
    getSelection()?.removeAllRanges();
    draw();
    rows();
    changed();
  }

  function remove(one) {
    const at = marks.indexOf(one);
    marks = marks.filter((other) => other !== one);
    draw();
    rows();
    changed();
    (list.querySelectorAll("button")[Math.min(at, marks.length - 1)] ?? text).focus();
  }

  const short = (start, end) => { const part = whole.slice(start, end); return part.length > EXCERPT ? `${part.slice(0, EXCERPT)}…` : part; };

  function rows() {
    list.replaceChildren(...marks.map((one, at) => h("li", {},
      h("span", { class: "mark-words" }, h("span", { class: "number", "aria-hidden": "true" }, String(at + 1)), h("strong", {}, h("bdi", { dir: "auto" }, one.label)),
        h("q", { dir: "auto" }, short(one.start, one.end))),
      h("input", { type: "text", maxLength: 500, value: one.comment, placeholder: t("Why? (optional)"), "aria-label": t("Comment on mark {n}", { n: at + 1 }),
        oninput: (event) => { one.comment = event.target.value; changed(); } }),
      h("button", { type: "button", "aria-label": t("Remove mark {n}", { n: at + 1 }), onclick: () => remove(one) }, t("Remove")))));
    if (!marks.length) list.replaceChildren(h("li", { class: "quiet" }, t("Nothing is marked yet.")));
  }

  function draw() {
    const edges = [...new Set([0, whole.length, ...marks.flatMap(({ start, end }) => [start, end]), ...(chosen ?? [])])].toSorted((a, b) => a - b);
    text.replaceChildren(...edges.slice(1).map((end, at) => {
      const start = edges[at];
      const part = whole.slice(start, end);
      const over = marks.filter((one) => one.start <= start && one.end >= end);
      const here = chosen && chosen[0] <= start && chosen[1] >= end;
      if (!over.length && !here) return part;
      const ends = over.filter((one) => one.end === end).map((one) => marks.indexOf(one) + 1).join(" ");
      return h(over.length ? "mark" : "span", { class: here ? "chosen" : "", title: over.map(({ label }) => label).join(", ") || null, "data-ends": ends || null }, part);
    }));
    said.textContent = chosen ? t("“{words}” is selected: choose a label", { words: short(...chosen) })
      : marks.length ? t("{n} marked. Select more words, or send", { n: marks.length }) : t("Select words with the mouse or with ← and →, then choose a label");
  }

  text.addEventListener("mouseup", () => {
    if (read()) getSelection().removeAllRanges();
    else if (chosen) chosen = null; // a click beside it lets go
    else return;
    draw();
  });
  const touched = () => { // a finger goes on selecting: nothing is drawn anew under it
    if (!text.isConnected) document.removeEventListener("selectionchange", touched);
    else if (matchMedia("(pointer: coarse)").matches && read()) said.textContent = t("“{words}” is selected: choose a label", { words: short(...chosen) });
  };
  document.addEventListener("selectionchange", touched);
  draw();
  rows();
  const spans = () => marks.map((one) => ({ ...one, comment: one.comment.trim(), start: toPoints(one.start), end: toPoints(one.end) }));
  const card = answerCard(0);
  card.querySelector(".rendered").replaceWith(text);
  return {
    element: h("div", { class: "single marking-view" }, card,
      h("section", { class: "card own", "aria-label": t("Your marks") }, h("h2", {}, t("Your marks")), list)),
    bar: h("div", { class: "scale-box" }, said, h("div", { class: "labels", role: "group", "aria-label": t("Labels") }, buttons)),
    draft: () => ({ spans: spans() }),
    verdict: () => ({ outcome: "marked", spans: spans() }),
    missing: "",
    onKey(event) {
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
        const rightwards = event.key === "ArrowRight";
        step(getComputedStyle(text).direction === "rtl" ? !rightwards : rightwards, event.shiftKey);
        return true;
      }
      if (event.key === "Escape" && chosen) { chosen = null; draw(); return true; }
      if (!/^[1-9]$/.test(event.key) || Number(event.key) > labels.length) return false;
      mark(Number(event.key) - 1);
      return true;
    },
    help: [["←, →", t("select the word before, or after")], ["Shift+←, Shift+→", t("select fewer words, or more")], [`1 … ${labels.length}`, t("mark what is selected")]],
  };
}
