// The arena: one message goes to two versions, both answer as it comes, and their names are told after the vote.
// Every rule is the server's: here is only what is on the screen.
import { ask, call, h, isTyping, key, letter } from "./dom.js";
import { keysTable, menu } from "./chrome.js";
import { favour, scale, STEPS } from "./scale.js";

const HELP = [["Enter", "send what you wrote; Shift+Enter begins a new line"], ["Esc", "leave the text, so that the keys below work"],
  ["w", "write again"], ["1 … 7", "from “A much better” to “B much better”; 4 is a tie"], ["b", "both are bad"],
  ["Enter", "send the vote, when you are not writing"], ["n", "a new talk"], ["?", "these keys"]];

export function start(element, server) {
  const desk = element.querySelector(".desk") ?? element;
  const live = h("div", { class: "visually-hidden", "aria-live": "polite" });
  const notice = h("div", { class: "notice", hidden: true, role: "status" });
  const head = h("header", { class: "top" });
  const turns = h("div", { class: "turns" });
  const bar = h("footer", { class: "bar", role: "group", "aria-label": "Your message and your verdict" });
  const main = h("main", { class: "work talk", tabIndex: -1 }, h("h1", { class: "visually-hidden" }, "Two answers at once"), turns, bar);
  desk.replaceChildren(head, notice, main, live);
  let about = null, screen = null, steps = null, busy = false, kept = "", given = "";

  const announce = (text) => { live.textContent = text; };
  const tell = (text, kind = "") => { notice.textContent = text; notice.className = `notice ${kind}`; notice.hidden = !text; };
  const text = h("textarea", { id: "message", rows: 2, placeholder: "Ask both of them something", "aria-label": "Your message to both",
    onkeydown: onWriting });

  // ---- what is on the screen
  function card(answer, at, unfinished) {
    const names = screen.names;
    return h("article", { class: "card answer" + (unfinished ? " writing" : ""), "aria-label": `Answer ${letter(at)}` },
      h("div", { class: "answer-head" }, h("h2", {}, letter(at)), names && h("span", { class: "revealed" }, names[at])),
      answer?.names_itself && h("p", { class: "warning" }, "This answer says who wrote it. Please judge the answer, not the name."),
      h("div", { class: "rendered", html: answer?.html ?? "" }));
  }

  function turnOf(turn) {
    const answers = turn.answers ?? [null, null];
    return h("section", { class: "exchange" }, h("div", { class: "card said-by-you" }, h("p", { class: "who" }, "You"), h("div", { class: "rendered", html: turn.said })),
      h("div", { class: "pair" }, answers.map((answer, at) => card(answer, at, turn.answers === null))));
  }

  function show(next) {
    screen = next;
    turns.replaceChildren(...(screen.turns.length ? screen.turns.map(turnOf) : [h("div", { class: "card reading" }, h("h2", {}, "Talk to two versions at once"),
      h("p", {}, "Both get every message that you send. Nobody tells you who they are. Talk for as long as you need to see which is better, then vote: after that you learn their names, and the vote stands."),
      h("p", { class: "quiet" }, "What you write is kept with your vote. Please name no private person."))]));
    bar.replaceChildren(...(screen.over ? ended() : writing()));
    if (screen.over) bar.querySelector("button").focus();
    if (screen.waiting) listen(0);
  }

  function ended() {
    const names = screen.names;
    return [h("p", { class: "said" }, names
      ? [h("strong", {}, `A is ${names[0]}, B is ${names[1]}.`), ` ${given ? `You said: ${given}. ` : ""}Your vote is saved and stands.`] : "This talk is over."),
      h("div", { class: "bar-actions" }, h("span"), h("button", { type: "button", class: "primary", onclick: enter }, "New talk ", key("n")))];
  }

  function writing() {
    const votable = screen.turns.length > 0 && !screen.waiting;
    const before = steps?.strength() ?? null;
    steps = votable ? scale(before, (strength) => favour(lastCards(), strength), "Choose, or press Esc and 1 to 7") : null;
    if (steps) favour(lastCards(), steps.strength());
    const full = screen.turns.length >= about.limits.turns;
    text.disabled = full;
    text.maxLength = about.limits.characters;
    const post = h("button", { type: "button", class: steps ? "" : "primary", disabled: screen.waiting || full, onclick: say }, "Send ", key("Enter"));
    return [h("div", { class: "message" }, text, post),
      screen.waiting && h("p", { class: "said" }, "Both are answering …"),
      steps?.element,
      steps && h("div", { class: "bar-actions" }, h("div", { class: "others" },
        h("button", { type: "button", onclick: () => vote({ outcome: "both_bad" }) }, "Both bad ", key("b")),
        h("button", { type: "button", onclick: leave }, "Leave without a vote")),
        h("button", { type: "button", class: "primary send", onclick: send }, "Send the vote ", key("Enter")))].filter(Boolean);
  }

  const lastCards = () => [...(turns.lastElementChild?.querySelectorAll(".answer") ?? [])];

  // ---- words as they come
  async function listen(heard) {
    const talk = screen.talk;
    for (let failures = 0; screen.talk === talk && screen.waiting;) {
      const reply = await call(server, "listen", { talk, heard });
      if (!reply.ok) {
        tell(`${reply.say} Trying again.`, "bad");
        if (!["offline", "unavailable"].includes(reply.code) || (failures += 1) > 100) return;
        await new Promise((resolve) => setTimeout(resolve, 1500));
        continue;
      }
      if (failures) { tell(""); failures = 0; }
      if (reply.answers) {
        heard = reply.heard;
        reply.answers.forEach((answer, at) => lastCards()[at]?.replaceWith(card(answer, at, true)));
        await new Promise((resolve) => setTimeout(resolve, 60));
      } else if (reply.turns) {
        if (reply.problem) { tell(reply.problem, "warn"); text.value ||= kept; } else announce("Both have answered.");
        const writes = document.activeElement === text;
        show(reply);
        if (writes && !text.disabled) text.focus();
        if (reply.waiting) return;
      }
    }
  }

  // ---- what a person can do
  async function doing(name, data) {
    if (busy) return null;
    busy = true;
    const reply = await call(server, name, data);
    busy = false;
    if (reply.ok) { tell(""); return reply; }
    tell(reply.say, "bad");
    if (["no_talk", "over"].includes(reply.code)) setTimeout(enter, 1500);
    return null;
  }

  async function say() {
    const message = text.value.trim();
    if (!message || screen.waiting || screen.over) return;
    const reply = await doing("tell", { talk: screen.talk, text: message });
    if (!reply) return;
    kept = message;
    text.value = "";
    steps = null;
    show(reply);
    text.focus();
    bar.scrollIntoView({ block: "end" });
  }

  async function vote(ballot) {
    if (!steps) return;
    const reply = await doing("judge", { talk: screen.talk, vote: ballot });
    if (!reply) return;
    given = ballot.outcome === "both_bad" ? "both bad" : STEPS.find(([value]) => value === ballot.strength)[1];
    steps = null;
    show(reply);
    announce(`Your vote is saved. A is ${reply.names[0]}, B is ${reply.names[1]}.`);
  }

  const send = () => {
    if (!steps) return;
    if (steps.strength() === null) tell(steps.missing, "warn");
    else vote({ outcome: "ranked", strength: steps.strength() });
  };

  async function leave() {
    const answer = await ask({ title: "Leave this talk?", body: "Nothing is voted, and the names stay unsaid.", actions: [["yes", "Leave it"], ["no", "Go on talking"]] });
    if (answer !== "yes") return;
    const reply = await doing("leave", { talk: screen.talk });
    if (reply) { steps = null; text.value = ""; show(reply); text.focus(); }
  }

  function onWriting(event) {
    if (event.key === "Escape") { event.preventDefault(); text.blur(); main.focus({ preventScroll: true }); }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); say(); }
  }

  const actions = { Enter: send, b: () => steps && vote({ outcome: "both_bad" }), n: () => (screen?.over ? enter() : steps && leave()),
    w: () => text.focus(), "?": () => ask({ title: "Keys", body: keysTable(HELP, true) }) };

  document.addEventListener("keydown", (event) => {
    if (!desk.isConnected || !screen || desk.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (isTyping(event.target) || event.defaultPrevented) return;
    if (event.key === "Enter" && /^(BUTTON|A|SUMMARY)$/.test(event.target.tagName)) return;
    if (steps?.onKey(event)) { tell(""); event.preventDefault(); return; }
    const act = actions[event.key];
    if (act) { event.preventDefault(); act(); }
  });

  // ---- coming in
  async function enter() {
    const reply = await call(server, "enter");
    if (!reply.ok) {
      tell(reply.say, "bad");
      if (["offline", "unavailable", "crowded"].includes(reply.code)) setTimeout(enter, 3000);
      else turns.replaceChildren(h("div", { class: "card done" }, h("h2", {}, "Not just now"), h("p", {}, reply.say)));
      return;
    }
    tell("");
    about = reply;
    steps = null;
    head.replaceChildren(h("strong", {}, "Arena"), h("nav", { "aria-label": "Tools" }, h("a", { href: "/rate", class: "plain-link" }, "Compare"),
      h("button", { type: "button", class: "plain", onclick: actions["?"] }, "Keys ", key("?")), ...menu(about)));
    show(reply);
    if (!screen.over) text.focus();
  }

  enter();
}
