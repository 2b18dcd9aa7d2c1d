// What is to be read: the conversation and the answers, rendered, as written, or with their differences marked.
import { h, key, letter } from "./dom.js";
import { difference } from "./diff.js";
import { t } from "./words.js";

const ROLES = { user: t("Question"), assistant: t("Answer before"), system: t("Instruction"), tool: t("Result of a tool") };
const LONG = 1200; // characters of a conversation that may stand beside the answers

export function reading(screen) {
  let mode = "rendered", written = false;
  try { written = sessionStorage.getItem("rlhf-written") === "yes"; } catch { /* it is asked again */ }
  const texts = []; // [element, html, text] of everything that was written by others
  const answers = []; // the same, of the answers alone, by their place

  const part = (html, text) => {
    const element = h("div", { class: "rendered", dir: "auto" });
    texts.push([element, html, text]);
    return element;
  };

  // ---- the conversation
  const turns = screen.prompt.map((turn, at) => h("div", { class: `turn ${turn.role}${at === screen.prompt.length - 1 ? " last" : ""}` },
    h("p", { class: "who" }, ROLES[turn.role]), part(turn.html, turn.text)));
  const scroller = h("div", { class: "turns-before", tabIndex: 0, role: "group", "aria-label": t("The conversation") }, turns);
  const more = h("button", { type: "button", class: "plain whole", hidden: true, "aria-expanded": "false", onclick: () => whole() },
    t("Show all of it"), " ", key("e"));
  const conversation = h("section", { class: "card prompt", "aria-label": t("The conversation") }, scroller, more);
  const isLong = screen.prompt.length > 2 || screen.prompt.reduce((sum, turn) => sum + turn.text.length, 0) > LONG;

  function whole() {
    if (more.hidden) return;
    const open = conversation.classList.toggle("open");
    more.setAttribute("aria-expanded", String(open));
    more.firstChild.textContent = open ? t("Show its end only") : t("Show all of it");
    if (!open) scroller.scrollTop = scroller.scrollHeight;
  }

  // After it is on the screen: the last question is seen, and what is hidden is said.
  function placed() {
    const hides = scroller.scrollHeight > scroller.clientHeight + 4;
    more.hidden = !hides && !conversation.classList.contains("open");
    if (!conversation.classList.contains("open")) scroller.scrollTop = turns.length > 1 ? turns.at(-1).offsetTop - scroller.offsetTop : 0;
  }

  // ---- an answer
  function answer(at, inside, under = null) {
    const { html, text, names_itself: namesItself, cut } = screen.answers[at];
    const body = part(html, text);
    answers[at] = body;
    return h("article", { class: "card answer", "aria-label": t("Answer {letter}", { letter: letter(at) }), "data-at": at },
      h("div", { class: "answer-head" }, h("h2", {}, letter(at)), under),
      namesItself && h("p", { class: "warning" }, t("This answer says who wrote it. Please judge the answer, not the name.")),
      body,
      cut && h("p", { class: "warning cut" }, t("Cut off here: the answer reached its greatest length. It did not end by itself.")),
      inside);
  }

  // ---- how it is shown
  function draw(announce = () => {}) {
    for (const [element, html, text] of texts) {
      element.classList.toggle("as-written", written);
      if (written) element.textContent = text; else element.innerHTML = html;
    }
    if (mode !== "difference") return;
    const order = [...document.querySelectorAll(".answer")].map((one) => Number(one.dataset.at));
    const [best, ...others] = order.length > 2 ? order : order.toSorted((one, other) => one - other);
    for (const other of others) {
      const found = difference(screen.answers[best].text, screen.answers[other].text);
      if (found === null) { announce(t("These answers have too little in common to mark single words.")); continue; }
      if (others.length === 1) mark(answers[best], found[0]);
      mark(answers[other], found[1]);
    }
    if (others.length > 1) mark(answers[best], [[screen.answers[best].text, false]]);
  }

  function mark(element, runs) {
    element.classList.add("as-written");
    element.replaceChildren(...runs.map(([text, marked]) => (marked ? h("mark", {}, text) : text)));
  }

  function asWritten() {
    written = !written;
    try { sessionStorage.setItem("rlhf-written", written ? "yes" : "no"); } catch { /* for this screen only */ }
    mode = "rendered";
    draw();
    placed();
    sync();
    return written ? t("As written") : t("Rendered");
  }

  function differences(tell) {
    mode = mode === "difference" ? "rendered" : "difference";
    draw(tell);
    sync();
    return mode === "difference"
      ? screen.answers.length > 2 ? t("Marked is what the first answer of your order does not have.") : t("Marked is what the other answer does not have.")
      : "";
  }

  const toggle = (name, label, act) => h("button", { type: "button", class: "plain", "aria-pressed": "false", onclick: act }, label, " ", key(name));
  let buttons = [];
  function tools(actions) {
    buttons = [toggle("w", t("As written"), actions.written), screen.answers.length > 1 && toggle("d", t("Differences"), actions.differences)];
    sync();
    return h("div", { class: "views", role: "group", "aria-label": t("How answers are shown") }, buttons);
  }
  function sync() {
    buttons[0]?.setAttribute("aria-pressed", String(written));
    if (buttons[1]) buttons[1].setAttribute("aria-pressed", String(mode === "difference"));
  }

  return { conversation, isLong, answer, draw, placed, whole, asWritten, differences, tools };
}
