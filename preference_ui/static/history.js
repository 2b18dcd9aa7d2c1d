// A rater's own votes, newest first, each to be opened again.
import { answerDialog, ask, call, h, letter } from "./dom.js";
import { REASONS } from "./chrome.js";
import { STEPS } from "./scale.js";
import { language, t } from "./words.js";

// What a vote says, in words.
export function verdictWords(wire) {
  const reason = REASONS[wire.reason] ?? wire.reason;
  if (wire.outcome === "skipped") return t("Skipped: {reason}", { reason });
  if (wire.outcome === "flagged") return t("Flagged: {reason}", { reason });
  if (wire.outcome === "both_bad") return t("All bad");
  if (wire.outcome === "up") return t("Good");
  if (wire.outcome === "down") return t("Bad");
  if (wire.outcome === "edited") return t("Rewritten");
  if (wire.outcome === "scored") return t("Scored: {scores}", { scores: Object.entries(wire.criteria).map(([name, [score]]) => `${name} ${score}`).join(", ") });
  if (wire.outcome === "marked") return t("{n} marked", { n: wire.spans.length });
  if (wire.ranking) return wire.ranking.map((group) => group.map(letter).join(" = ")).join(" > ");
  return STEPS.find(([value]) => value === wire.strength)?.[1] ?? "";
}

const when = (moment) => new Date(moment).toLocaleString(language, { dateStyle: "medium", timeStyle: "short" });

// Resolves to the vote that the rater wants to open again, or null.
export async function chooseVote(server, tell) {
  const list = h("ol", { class: "votes" });
  const more = h("button", { type: "button", onclick: () => load() }, t("Older votes"));
  let last = null;

  function row(one) {
    const inside = [h("bdi", { class: "excerpt", dir: "auto" }, one.question), h("span", { class: "verdict" }, verdictWords(one.verdict)),
      h("span", { class: "quiet" }, when(one.at), one.fixed ? ` · ${t("set aside by an administrator")}` : "")];
    return h("li", {}, one.fixed ? h("div", { class: "vote" }, inside)
      : h("button", { type: "button", class: "vote", onclick: () => answerDialog(list, one.vote) }, inside));
  }

  async function load() {
    const reply = await call(server, "history", { before: last });
    if (!reply.ok) { tell(reply.say, "bad"); return false; }
    list.append(...reply.votes.map(row));
    last = reply.votes.at(-1)?.vote ?? last;
    more.hidden = reply.votes.length < 30;
    return true;
  }

  if (!await load()) return null;
  const empty = list.children.length === 0;
  const chosen = await ask({ title: t("Your votes"), wide: true, none: !empty, actions: [["close", t("Close")]],
    body: empty ? h("p", {}, t("You have not voted yet.")) : h("div", {}, h("p", { class: "quiet" }, t("Open one to see it again and to change it.")), list, more) });
  return chosen === "close" ? null : chosen;
}
