// One answer: good or bad.
import { h, key } from "./dom.js";
import { t } from "./words.js";

const THUMBS = [["up", t("Good"), "▲"], ["down", t("Bad"), "▼"]];

export function thumbsView(screen, draft, changed, answerCard) {
  const card = answerCard(0);
  let given = ["up", "down"].includes(draft?.outcome) ? draft.outcome : null;
  const said = h("p", { class: "said", "aria-hidden": "true" });
  const inputs = THUMBS.map(([value], at) => h("input", { type: "radio", name: "thumb", value, id: `thumb-${at}`, checked: value === given,
    onchange: () => choose(value) }));
  const steps = h("div", { class: "scale thumbs", role: "radiogroup", "aria-label": t("Is this a good answer?") },
    THUMBS.map(([value, label, sign], at) => h("span", { class: `step ${value}` }, inputs[at],
      h("label", { htmlFor: `thumb-${at}` }, h("span", {}, h("span", { "aria-hidden": "true" }, sign), " ", label), key(String(at + 1))))));

  function show() {
    said.textContent = given === null ? t("Is this a good answer? Choose, or press 1 or 2") : THUMBS.find(([value]) => value === given)[1];
  }

  function choose(value) {
    given = value;
    THUMBS.forEach(([one], at) => { inputs[at].checked = one === value; });
    show();
    changed();
  }

  show();
  return {
    element: h("div", { class: "single" }, card),
    bar: h("div", { class: "scale-box" }, said, steps),
    draft: () => (given === null ? {} : { outcome: given }),
    verdict: () => (given === null ? null : { outcome: given }),
    missing: t("Say whether the answer is good first: press 1 or 2, or choose one."),
    onKey(event) {
      if (!/^[12]$/.test(event.key)) return false;
      choose(THUMBS[Number(event.key) - 1][0]);
      inputs[Number(event.key) - 1].focus({ preventScroll: true });
      return true;
    },
    help: [["1, 2", t("good, bad")]],
  };
}
