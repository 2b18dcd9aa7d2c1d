// One answer, scored by every criterion of the queue.
import { h } from "./dom.js";
import { t } from "./words.js";

const SCORES = [1, 2, 3, 4, 5];

export function scoresView(screen, draft, changed, answerCard) {
  const criteria = screen.queue.criteria;
  const given = Object.fromEntries(criteria.map(({ name }) => [name, draft?.criteria?.[name]?.[0] ?? null]));
  let at = Math.max(0, criteria.findIndex(({ name }) => given[name] === null));
  const said = h("p", { class: "said", role: "status" });
  const inputs = criteria.map(({ name }, place) => SCORES.map((value) => h("input", { type: "radio", name: `score-${name}`, value: String(value),
    id: `score-${place}-${value}`, checked: given[name] === value, onchange: () => choose(place, value) })));
  const rows = criteria.map(({ name, rubric }, place) => h("fieldset", { class: "score-row", onclick: () => stand(place) },
    h("legend", {}, h("strong", { dir: "auto" }, t(name))), h("p", { class: "quiet", dir: "auto" }, t(rubric)),
    h("div", { class: "scale five" }, SCORES.map((value) => h("span", { class: "step" }, inputs[place][value - 1],
      h("label", { htmlFor: `score-${place}-${value}` }, String(value)))))));

  function stand(place) {
    at = place;
    show();
  }

  function choose(place, value) {
    given[criteria[place].name] = value;
    inputs[place].forEach((input) => { input.checked = Number(input.value) === value; });
    stand(place);
    changed();
  }

  function show() {
    rows.forEach((row, place) => row.classList.toggle("here", place === at));
    const left = criteria.filter(({ name }) => given[name] === null).length;
    said.textContent = left === 0 ? t("Every score is given") : t("Score {name}: press 1 to 5 ({left} left)", { name: t(criteria[at].name), left });
  }

  function move(step) {
    stand((at + step + criteria.length) % criteria.length);
    (inputs[at].find((input) => input.checked) ?? inputs[at][0]).focus();
  }

  show();
  const whole = () => Object.fromEntries(criteria.map(({ name }) => [name, [given[name]]]));
  return {
    element: h("div", { class: "single scoring" }, answerCard(0), h("section", { class: "card scores", "aria-label": t("Scores") }, rows)),
    bar: h("div", { class: "scale-box" }, said),
    draft: () => ({ criteria: whole() }),
    verdict: () => (Object.values(given).includes(null) ? null : { outcome: "scored", criteria: whole() }),
    missing: t("Give every score first: press 1 to 5 for each."),
    onKey(event) {
      if (event.key === "ArrowDown" || event.key === "ArrowUp") { move(event.key === "ArrowDown" ? 1 : -1); return true; }
      if (!/^[1-5]$/.test(event.key)) return false;
      choose(at, Number(event.key));
      const next = criteria.findIndex(({ name }) => given[name] === null);
      if (next >= 0) stand(next);
      inputs[at][0].focus({ preventScroll: true });
      return true;
    },
    help: [["1 … 5", t("the score; then the next question")], ["↑, ↓", t("another question")]],
  };
}
