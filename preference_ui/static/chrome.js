// What stands around the work: progress, guidelines, keys, theme, and the way out.
import { ask, h, key } from "./dom.js";

const REASONS = {
  cannot_judge: "I cannot judge this", language: "I do not read this language well enough", unclear: "The question makes no sense",
  uncomfortable: "I would rather not read this", unsafe: "Dangerous or illegal", broken: "Cut off, garbled, or not an answer",
  personal_data: "Names or data of a private person",
};

export function header(about, screen, actions) {
  const progress = screen?.progress;
  const total = progress ? progress.done + progress.left : 0;
  const words = progress
    ? [`${progress.done} done`, progress.left ? `${progress.left} left` : null,
      progress.minutes && progress.left ? `about ${progress.minutes} min` : null].filter(Boolean).join(" · ")
    : "";
  const button = (label, name, act) => h("button", { type: "button", class: "plain", onclick: act }, label, name && [" ", key(name)]);
  return [
    h("div", { class: "progress" },
      h("progress", { max: Math.max(total, 1), value: progress?.done ?? 0, "aria-label": "Your progress" }),
      h("span", { class: "quiet", id: "progress-words" }, words)),
    h("nav", { "aria-label": "Tools" },
      button("Undo", "u", actions.undo), button("Guidelines", "g", actions.guidelines), button("Keys", "?", actions.keys),
      ...menu(about)),
  ];
}

// The theme, and what belongs to the person.
export function menu(about) {
  const post = (path) => async () => {
    try { sessionStorage.clear(); } catch { /* nothing was kept */ }
    await fetch(path, { method: "POST" });
    location.assign("/login");
  };
  return [
    h("button", { type: "button", class: "plain", "aria-label": "Dark or light", onclick: () => window.rlhfTheme?.toggle() }, "◐"),
    h("details", { class: "menu" }, h("summary", {}, about.name),
      h("div", { class: "menu-items" },
        about.arena && h("a", { href: "/arena" }, "Arena"),
        about.administrator && h("a", { href: "/admin" }, "Administration"),
        h("button", { type: "button", onclick: post("/logout") }, "Sign out"),
        h("button", { type: "button", onclick: post("/logout/everywhere") }, "Sign out everywhere"))),
  ];
}

const COMMON = [["Enter", "send the vote"], ["b", "both (or all) are bad"], ["s", "skip, with a reason"],
    ["f", "flag, with a reason"], ["u", "undo the last vote"], ["c", "write a comment"], ["Ctrl+Enter", "send while you write"],
    ["g", "guidelines"], ["?", "these keys"], ["Esc", "close a window like this one"]];

export function keysTable(special, alone = false) {
  const rows = alone ? special : [...special, ...COMMON];
  return h("table", { class: "keys" }, h("tbody", {}, rows.map(([keys, what]) =>
    h("tr", {}, h("th", { scope: "row" }, keys.split(/(, | … )/).map((part) => /, | … /.test(part) ? part : key(part)),
      h("span", { class: "visually-hidden" }, keys)), h("td", {}, what)))));
}

// Asks for a reason: click one, or press its number.
export async function reasonDialog(title, reasons) {
  let chosen = null;
  const list = h("div", { class: "reasons" }, reasons.map((reason, at) =>
    h("button", { type: "button", onclick: () => pick(reason) }, key(String(at + 1)), " ", REASONS[reason] ?? reason)));
  const pick = (reason) => { chosen = reason; list.closest("dialog").querySelector(".dialog-actions button").click(); };
  const onKey = (event) => {
    const reason = reasons[Number(event.key) - 1];
    if (reason) { event.preventDefault(); pick(reason); }
  };
  document.addEventListener("keydown", onKey);
  await ask({ title, body: list, actions: [["close", "Cancel"]] });
  document.removeEventListener("keydown", onKey);
  return chosen;
}
