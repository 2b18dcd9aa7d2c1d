// One answer, and a better one that the rater writes from it.
import { difference } from "./diff.js";
import { h, key } from "./dom.js";
import { t } from "./words.js";

const CHOICES = [["up", t("Good as it is")], ["edited", t("My version is better")]];
const LONGEST = 50000; // characters, as the server takes them

// As a text field has it: it knows one sign for the end of a line.
export const asTyped = (text) => text.replace(/\r\n?/g, "\n");

export function rewriteView(screen, draft, changed, answerCard) {
  const original = asTyped(screen.answers[0].text);
  let given = ["up", "edited"].includes(draft?.outcome) ? draft.outcome : null;
  const text = h("textarea", { id: "rewrite", rows: 10, maxLength: LONGEST, value: draft?.correction?.text ?? original, oninput: typed });
  const card = answerCard(0);
  const body = card.querySelector(".rendered");
  let wasWritten = false;
  const shown = h("div", { class: "changes as-written", dir: "auto", hidden: true });
  const toggle = h("button", { type: "button", class: "plain", "aria-pressed": "false", onclick: () => see(shown.hidden) }, t("What I changed"), " ", key("d"));
  const again = h("button", { type: "button", class: "plain", onclick: begin }, t("Begin again from the answer"));
  const own = h("section", { class: "card own", "aria-label": t("Your version") },
    h("div", { class: "answer-head" }, h("label", { htmlFor: "rewrite" }, t("Your version")), h("div", { class: "own-tools" }, toggle, again)), text, shown);
  const said = h("p", { class: "said", role: "status" });
  const inputs = CHOICES.map(([value], at) => h("input", { type: "radio", name: "rewrite", value, id: `rewrite-${at}`, checked: value === given,
    onchange: () => choose(value) }));
  const steps = h("div", { class: "scale thumbs", role: "radiogroup", "aria-label": t("Your verdict") },
    CHOICES.map(([value, label], at) => h("span", { class: `step ${value}` }, inputs[at],
      h("label", { htmlFor: `rewrite-${at}` }, h("span", {}, label), key(String(at + 1))))));
  const isChanged = () => text.value.trim() !== "" && text.value !== original;

  function typed() {
    given = isChanged() ? "edited" : null;
    show();
    changed();
  }

  function begin() {
    text.value = original;
    typed();
    text.focus();
  }

  function choose(value) {
    given = value;
    if (value === "edited" && !isChanged()) text.focus();
    show();
    changed();
  }

  function see(open) {
    shown.hidden = !open;
    toggle.setAttribute("aria-pressed", String(open));
    if (open) { wasWritten = body.classList.contains("as-written"); body.classList.add("as-written"); }
    else {
      body.classList.toggle("as-written", wasWritten);
      if (wasWritten) body.textContent = screen.answers[0].text; else body.innerHTML = screen.answers[0].html;
    }
    show();
  }

  // What is gone is marked in the answer, and what is new in the rater's version.
  const marked = (runs) => runs.map(([part, other]) => (other ? h("mark", {}, part) : part));

  function show() {
    CHOICES.forEach(([one], at) => { inputs[at].checked = one === given; });
    said.textContent = given === "up" ? isChanged() ? t("Good as it is: nothing of what you wrote is sent") : t("Good as it is")
      : isChanged() ? t("Your version is sent as the better answer") : t("Write the answer as you would rather have received it, or press 1 where it is good as it is");
    if (shown.hidden) return;
    const found = difference(original, text.value);
    body.replaceChildren(...(found === null ? [original] : marked(found[0])));
    shown.replaceChildren(...(found === null ? [t("These answers have too little in common to mark single words.")] : marked(found[1])));
  }

  show();
  const verdict = () => {
    if (given === "up") return { outcome: "up" };
    return given === "edited" && isChanged() ? { outcome: "edited", correction: { position: 0, text: text.value } } : null;
  };
  return {
    element: h("div", { class: "pair rewriting" }, card, own),
    bar: h("div", { class: "scale-box" }, said, steps),
    draft: () => ({ ...(given ? { outcome: given } : {}), ...(isChanged() ? { correction: { position: 0, text: text.value } } : {}) }),
    verdict,
    missing: t("Change the answer first, or say that it is good as it is: press 1."),
    onKey(event) {
      if (event.key === "d") { see(shown.hidden); return true; }
      if (!/^[12]$/.test(event.key)) return false;
      choose(CHOICES[Number(event.key) - 1][0]);
      if (document.activeElement !== text) inputs[Number(event.key) - 1].focus({ preventScroll: true });
      return true;
    },
    help: [["1", t("the answer is good as it is")], ["2", t("write a better one")], ["Esc", t("leave the text field")]],
  };
}
