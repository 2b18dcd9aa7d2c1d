// Two answers side by side, under one scale.
import { h, letter } from "./dom.js";
import { favour, scale } from "./scale.js";

export function pairView(screen, draft, changed, answerCard) {
  const cards = screen.answers.map((_, at) => answerCard(at));
  const steps = scale(draft?.strength ?? null, (strength) => { favour(cards, strength); changed(); });
  favour(cards, steps.strength());
  const given = () => steps.strength();
  return {
    element: h("div", { class: "pair" }, cards),
    bar: steps.element,
    draft: () => (given() === null ? {} : { strength: given() }),
    verdict: () => (given() === null ? null : { outcome: "ranked", strength: given() }),
    missing: steps.missing,
    onKey: steps.onKey,
    help: steps.help,
    letters: [letter(0), letter(1)],
  };
}
