// What may be said beside the verdict: scores, a better version of an answer, a comment. All of it optional.
import { h, letter } from "./dom.js";
import { asTyped } from "./rewrite.js";
import { t } from "./words.js";

// `single` is what is asked of an answer that stands alone: scores and a better version may be the verdict itself.
export function extras(screen, about, draft, changed, single = null) {
  const scored = single === "scores", corrected = !["rewrites", "scores", "spans"].includes(single);
  const scores = scored ? {} : structuredClone(draft?.criteria ?? {});
  let correction = corrected ? draft?.correction ?? null : null;
  const comment = h("textarea", { id: "comment", rows: 2, maxLength: 2000, value: draft?.comment ?? "", oninput: changed });

  function scoreRow(criterion, at) {
    const name = `${criterion.name}-${at}`;
    const pick = (value) => {
      scores[criterion.name] ??= screen.answers.map(() => null);
      scores[criterion.name][at] = value;
      changed();
    };
    return h("fieldset", { class: "score" },
      h("legend", {}, h("span", { class: "visually-hidden" }, `${criterion.name}, ${t("Answer {letter}", { letter: "" })}`), letter(at)),
      [1, 2, 3, 4, 5].map((value) => h("span", {},
        h("input", { type: "radio", name, id: `${name}-${value}`, value: String(value),
          checked: scores[criterion.name]?.[at] === value, onchange: () => pick(value) }),
        h("label", { htmlFor: `${name}-${value}` }, String(value)))));
  }

  const asked = screen.queue?.criteria ?? about.criteria;
  const criteria = asked.length === 0 || scored ? null : h("details", { class: "extra", open: Object.keys(scores).length > 0 },
    h("summary", {}, t("Scores"), " ", h("span", { class: "quiet" }, t("(optional)"))),
    asked.map((criterion) => h("div", { class: "criterion" },
      h("div", {}, h("strong", { dir: "auto" }, t(criterion.name)), h("p", { class: "quiet", dir: "auto" }, t(criterion.rubric))),
      h("div", { class: "score-rows" }, screen.answers.map((_, at) => scoreRow(criterion, at))))));

  const element = h("div", { class: "extras" }, criteria,
    h("details", { class: "extra", open: Boolean(draft?.comment) },
      h("summary", {}, t("Comment"), " ", h("span", { class: "quiet" }, t("(optional)"))),
      h("label", { htmlFor: "comment", class: "quiet" }, t("What made the difference?")), comment));

  // The editor of a better answer, opened inside the answer's card; null where the verdict is about other things.
  function improve(at) {
    if (!corrected) return null;
    const opened = correction?.position === at;
    const text = h("textarea", { rows: 8, maxLength: 20000, "aria-label": t("A better answer {letter}", { letter: letter(at) }),
      value: opened ? correction.text : screen.answers[at].text,
      oninput: () => { correction = text.value.trim() ? { position: at, text: text.value } : null; changed(); } });
    const box = h("div", { class: "improve", hidden: !opened }, text,
      h("p", { class: "quiet" }, t("Kept as an example of a good answer, and as better than this one.")));
    const button = h("button", { type: "button", class: "plain", "aria-expanded": String(opened), onclick: () => {
      box.hidden = !box.hidden;
      button.setAttribute("aria-expanded", String(!box.hidden));
      if (box.hidden && correction?.position === at) { correction = null; changed(); }
      if (!box.hidden) text.focus();
    } }, t("Write a better one"));
    return [button, box];
  }

  const value = () => ({
    ...(Object.keys(scores).length ? { criteria: scores } : {}),
    ...(comment.value.trim() ? { comment: comment.value } : {}),
    ...(correction && correction.text !== asTyped(screen.answers[correction.position].text) ? { correction } : {}),
  });
  return { element, improve, value, openComment: () => { element.querySelector("details:last-child").open = true; comment.focus(); } };
}
