// Seven steps from "A is much better" to "B is much better", by mouse, by touch, or by the digits 1 to 7.
import { h, key } from "./dom.js";
import { t } from "./words.js";

export const STEPS = [
  [-3, t("A much better")], [-2, t("A better")], [-1, t("A slightly better")], [0, t("Tie")],
  [1, t("B slightly better")], [2, t("B better")], [3, t("B much better")],
];

export function scale(strength, chosen, hint = t("Choose, or press 1 to 7")) {
  const said = h("p", { class: "said", "aria-hidden": "true" });
  const inputs = STEPS.map(([value], at) =>
    h("input", { type: "radio", name: "strength", value: String(value), id: `step-${at}`, checked: value === strength,
      onchange: () => choose(value) }));
  const steps = h("div", { class: "scale", role: "radiogroup", "aria-label": t("Which answer is better?") },
    STEPS.map(([value, label], at) => h("span", { class: "step" + (value < 0 ? " a" : value > 0 ? " b" : " tie") },
      inputs[at], h("label", { htmlFor: `step-${at}` }, h("span", { class: "words" }, label), key(String(at + 1))))));

  function show() {
    const narrow = matchMedia("(max-width: 760px)").matches;
    said.textContent = strength === null ? narrow ? t("Choose: A is better … B is better") : hint
      : STEPS.find(([value]) => value === strength)[1];
  }

  function choose(value) {
    strength = value;
    STEPS.forEach(([step], at) => { inputs[at].checked = step === value; });
    show();
    chosen(value);
  }

  show();
  return {
    element: h("div", { class: "scale-box" }, said, steps),
    strength: () => strength,
    missing: t("Say which answer is better first: press 1 to 7, or choose a step."),
    onKey(event) {
      if (!/^[1-7]$/.test(event.key)) return false;
      choose(STEPS[Number(event.key) - 1][0]);
      inputs[Number(event.key) - 1].focus({ preventScroll: true });
      return true;
    },
    help: [["1 … 7", t("from “{first}” to “{last}”; 4 is a tie", { first: STEPS[0][1], last: STEPS[6][1] })]],
  };
}

// Marks the side that a strength favours.
export const favour = (cards, strength) => cards.forEach((card, at) =>
  card.classList.toggle("preferred", strength !== null && (at === 0 ? strength < 0 : strength > 0)));
