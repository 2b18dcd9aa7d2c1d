// What stands around the work: progress, guidelines, keys, theme, and the way out.
import { answerDialog, ask, h, key } from "./dom.js";
import { choose, language, LANGUAGES, t } from "./words.js";

export const REASONS = {
  cannot_judge: t("I cannot judge this"), language: t("I do not read this language well enough"), unclear: t("The question makes no sense"),
  uncomfortable: t("I would rather not read this"), unsafe: t("Dangerous or illegal"), broken: t("Cut off, garbled, or not an answer"),
  personal_data: t("Names or data of a private person"),
};

export function header(about, screen, actions) {
  const progress = screen?.progress;
  const total = progress ? progress.done + progress.left : 0;
  const words = progress
    ? [t("{n} done", { n: progress.done }), progress.left ? t("{n} left", { n: progress.left }) : null,
      progress.minutes && progress.left ? t("about {n} min", { n: progress.minutes }) : null].filter(Boolean).join(" · ")
    : "";
  const button = (label, name, act) => h("button", { type: "button", class: "plain", onclick: act }, label, name && [" ", key(name)]);
  return [
    h("div", { class: "progress" },
      h("progress", { max: Math.max(total, 1), value: progress?.done ?? 0, "aria-label": t("Your progress") }),
      h("span", { class: "quiet", id: "progress-words" }, words),
      screen?.queue && screen.queue.name !== "default" && h("span", { class: "quiet", id: "queue-name", dir: "auto" }, t("Queue: {name}", { name: screen.queue.name }))),
    h("nav", { "aria-label": t("Tools") },
      button(t("Undo"), "u", actions.undo), button(t("Your votes"), "h", actions.history),
      button(t("Guidelines"), "g", actions.guidelines), button(t("Keys"), "?", actions.keys), ...menu(about)),
  ];
}

// The theme, the language, and what belongs to the person.
export function menu(about) {
  const post = (path) => async () => {
    try { sessionStorage.clear(); } catch { /* nothing was kept */ }
    await fetch(path, { method: "POST" });
    location.assign("/login");
  };
  return [
    h("button", { type: "button", class: "plain", "aria-label": t("Dark or light"), onclick: () => window.rlhfTheme?.toggle() }, "◐"),
    h("details", { class: "menu" }, h("summary", { dir: "auto" }, about.name),
      h("div", { class: "menu-items" },
        about.arena && h("a", { href: "/arena" }, t("Arena")),
        about.administrator && h("a", { href: "/admin" }, t("Administration")),
        h("label", { class: "language" }, t("Language"),
          h("select", { onchange: (event) => choose(event.target.value) },
            Object.entries(LANGUAGES).map(([code, name]) => h("option", { value: code, lang: code, selected: code === language }, name)))),
        h("button", { type: "button", onclick: post("/logout") }, t("Sign out")),
        h("button", { type: "button", onclick: post("/logout/everywhere") }, t("Sign out everywhere")))),
  ];
}

const COMMON = [["Enter", t("send the vote")], ["b", t("both (or all) are bad")], ["s", t("skip, with a reason")],
  ["f", t("flag: unsafe, broken, personal data")], ["u", t("undo the last vote; again: the one before")], ["h", t("your votes")],
  ["d", t("what the answers do not share")], ["w", t("as written, or rendered")], ["e", t("the whole conversation, or its end")],
  ["c", t("write a comment")], ["Ctrl+Enter", t("send while you write")],
  ["g", t("guidelines")], ["?", t("these keys")], ["Esc", t("close a window like this one; leave an undone vote as it was")]];

export function keysTable(special, alone = false) {
  const rows = alone ? special : [...special, ...COMMON];
  return h("table", { class: "keys" }, h("tbody", {}, rows.map(([keys, what]) =>
    h("tr", {}, h("th", { scope: "row" }, keys.split(/(, | … )/).map((part) => /, | … /.test(part) ? part : key(part)),
      h("span", { class: "visually-hidden" }, keys)), h("td", {}, what)))));
}

// Asks for a reason: click one, or press its number.
export async function reasonDialog(title, reasons) {
  const list = h("div", { class: "reasons" }, reasons.map((reason, at) =>
    h("button", { type: "button", onclick: () => answerDialog(list, reason) }, key(String(at + 1)), " ", REASONS[reason] ?? reason)));
  const onKey = (event) => {
    const reason = reasons[Number(event.key) - 1];
    if (reason) { event.preventDefault(); answerDialog(list, reason); }
  };
  document.addEventListener("keydown", onKey);
  const chosen = await ask({ title, body: list, actions: [["close", t("Cancel")]], none: true });
  document.removeEventListener("keydown", onKey);
  return chosen === "close" ? null : chosen;
}
