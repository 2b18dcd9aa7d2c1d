// Building pages out of elements. Text is always set as text; `html` is only for what the server has sanitised.
import { t } from "./words.js";

// What people wrote, or will write, stands in the direction of its own script.
const OF_OTHERS = (tag, props) => "html" in props || tag === "textarea" || (tag === "input" && !/^(radio|checkbox|number)$/.test(props.type ?? ""));

export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  if (OF_OTHERS(tag, props ?? {})) element.dir = "auto";
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "html") element.innerHTML = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && name !== "list" && name !== "role") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const letter = (at) => String.fromCharCode(65 + at);

export const key = (name) => h("kbd", { "aria-hidden": "true" }, name);

// A modal dialog: native, so that focus stays inside and Escape closes it. Resolves to the chosen action, or null.
// The first action is what the window asks for, and stands out; `none` of them does where the body has its own.
export function ask({ title, body, actions = [["close", t("Close")]], wide = false, locked = false, none = false }) {
  return new Promise((resolve) => {
    const buttons = actions.map(([value, label], at) =>
      h("button", { type: "button", class: at === 0 && !none ? "primary" : "", onclick: () => close(value) }, label));
    const content = h("div", { class: "dialog-body", tabIndex: 0 }, body);
    const dialog = h("dialog", { class: wide ? "wide" : "", "aria-labelledby": "dialog-title" },
      h("h2", { id: "dialog-title" }, title), content,
      h("div", { class: "dialog-actions" }, none ? buttons : [...buttons].toReversed()));
    const close = (value) => { dialog.close(); dialog.remove(); resolve(value); };
    dialog.addEventListener("cancel", (event) => { event.preventDefault(); if (!locked) close(null); });
    if (!locked) dialog.addEventListener("click", (event) => { if (event.target === dialog) close(null); });
    dialog.addEventListener("choose", (event) => close(event.detail));
    document.querySelector(".desk").append(dialog);
    dialog.showModal();
    (none ? content.querySelector("button, a, input") ?? buttons[0] : buttons[0])?.focus();
  });
}

// Closes the dialog that an element stands in, as if `value` had been its action.
export const answerDialog = (element, value) =>
  element.closest("dialog").dispatchEvent(new CustomEvent("choose", { detail: value }));

export const isTyping = (target) =>
  target.isContentEditable || /^(TEXTAREA|SELECT)$/.test(target.tagName)
  || (target.tagName === "INPUT" && !/^(radio|checkbox|button)$/.test(target.type));

export async function call(server, name, data = null) {
  try {
    const answer = await server[name](data);
    if (answer && typeof answer === "object" && "ok" in answer) {
      if (answer.code === "signed_out") location.assign("/login?next=" + encodeURIComponent(location.pathname));
      return answer.say ? { ...answer, say: t(answer.say) } : answer;
    }
  } catch { /* told apart below */ }
  const alive = await fetch("/health", { cache: "no-store" }).then((reply) => reply.ok, () => false);
  if (alive) {
    const inside = await fetch(location.pathname.replace(/\/$/, "") + "/gradio_api/login_check").catch(() => null);
    if (inside?.status === 401) location.assign("/login?next=" + encodeURIComponent(location.pathname));
  }
  return { ok: false, code: "offline", say: t("The app cannot be reached just now.") };
}
