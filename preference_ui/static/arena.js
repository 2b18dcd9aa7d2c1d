// The arena: one message goes to two versions, both answer as it comes, and their names are told after the vote.
// Every rule is the server's: here is only what is on the screen.
import { ask, call, h, isTyping, key, letter } from "./dom.js";
import { keysTable, menu } from "./chrome.js";
import { favour, scale, STEPS } from "./scale.js";
import { spoken, t } from "./words.js";

const HELP = [["Enter", t("send what you wrote; Shift+Enter begins a new line")], ["Esc", t("leave the text, so that the keys below work")],
  ["w", t("write again")], ["1 … 7", t("from “{first}” to “{last}”; 4 is a tie", { first: STEPS[0][1], last: STEPS[6][1] })], ["b", t("both are bad")],
  ["Enter", t("send the vote, when you are not writing")], ["n", t("a new talk")], ["?", t("these keys")]];

export function start(element, server) {
  const desk = element.querySelector(".desk") ?? element;
  spoken(desk);
  const live = h("div", { class: "visually-hidden", "aria-live": "polite" });
  const notice = h("div", { class: "notice", hidden: true, role: "status" });
  const head = h("header", { class: "top" });
  const turns = h("div", { class: "turns" });
  const bar = h("footer", { class: "bar", role: "group", "aria-label": t("Your message and your verdict") });
  const main = h("main", { class: "work talk", tabIndex: -1 }, h("h1", { class: "visually-hidden" }, t("Two answers at once")), turns, bar);
  desk.replaceChildren(h("div", { class: "overhead" }, head, notice), main, live);
  let about = null, screen = null, steps = null, busy = false, kept = "", given = "";

  const announce = (text) => { live.textContent = text; };
  const tell = (text, kind = "") => { notice.textContent = text; notice.className = `notice ${kind}`; notice.hidden = !text; };
  const text = h("textarea", { id: "message", rows: 2, placeholder: t("Ask both of them something"), "aria-label": t("Your message to both"),
    onkeydown: onWriting });

  // ---- what is on the screen
  function card(answer, at, unfinished) {
    const names = screen.names;
    return h("article", { class: "card answer" + (unfinished ? " writing" : ""), "aria-label": t("Answer {letter}", { letter: letter(at) }) },
      h("div", { class: "answer-head" }, h("h2", {}, letter(at)), names && h("span", { class: "revealed" }, names[at])),
      answer?.names_itself && h("p", { class: "warning" }, t("This answer says who wrote it. Please judge the answer, not the name.")),
      h("div", { class: "rendered", html: answer?.html ?? "" }));
  }

  function turnOf(turn) {
    const answers = turn.answers ?? [null, null];
    return h("section", { class: "exchange" }, h("div", { class: "card said-by-you" }, h("p", { class: "who" }, t("You")), h("div", { class: "rendered", html: turn.said })),
      h("div", { class: "pair" }, answers.map((answer, at) => card(answer, at, turn.answers === null))));
  }

  function show(next) {
    screen = next;
    turns.replaceChildren(...(screen.turns.length ? screen.turns.map(turnOf) : [h("div", { class: "card reading" }, h("h2", {}, t("Talk to two versions at once")),
      h("p", {}, t("Both get every message that you send. Nobody tells you who they are. Talk for as long as you need to see which is better, then vote: after that you learn their names, and the vote stands.")),
      h("p", { class: "quiet" }, t("What you write is kept with your vote. Please name no private person.")))]));
    bar.replaceChildren(...(screen.over ? ended() : writing()));
    if (screen.over) bar.querySelector("button").focus();
    if (screen.waiting) listen(0);
  }

  function ended() {
    const names = screen.names;
    return [h("p", { class: "said" }, names
      ? [h("strong", {}, t("A is {first}, B is {second}.", { first: names[0], second: names[1] })), " ",
        given ? `${t("You said: {verdict}", { verdict: given })}. ` : "", t("Your vote is saved and stands.")] : t("This talk is over.")),
      h("div", { class: "bar-actions" }, h("span"), h("button", { type: "button", class: "primary", onclick: enter }, t("New talk"), " ", key("n")))];
  }

  function writing() {
    const votable = screen.turns.length > 0 && !screen.waiting;
    const before = steps?.strength() ?? null;
    steps = votable ? scale(before, (strength) => favour(lastCards(), strength), t("Choose, or press Esc and 1 to 7")) : null;
    if (steps) favour(lastCards(), steps.strength());
    const full = screen.turns.length >= about.limits.turns;
    text.disabled = full;
    text.maxLength = about.limits.characters;
    const post = h("button", { type: "button", class: steps ? "" : "primary", disabled: screen.waiting || full, onclick: say }, t("Send"), " ", key("Enter"));
    return [h("div", { class: "message" }, text, post),
      screen.waiting && h("p", { class: "said" }, t("Both are answering …")),
      steps?.element,
      steps && h("div", { class: "bar-actions" }, h("div", { class: "others" },
        h("button", { type: "button", onclick: () => vote({ outcome: "both_bad" }) }, t("Both bad"), " ", key("b")),
        h("button", { type: "button", onclick: leave }, t("Leave without a vote"))),
        h("button", { type: "button", class: "primary send", onclick: send }, t("Send the vote"), " ", key("Enter")))].filter(Boolean);
  }

  const lastCards = () => [...(turns.lastElementChild?.querySelectorAll(".answer") ?? [])];

  // ---- words as they come
  async function listen(heard) {
    const talk = screen.talk;
    for (let failures = 0; screen.talk === talk && screen.waiting;) {
      const reply = await call(server, "listen", { talk, heard });
      if (!reply.ok) {
        tell(`${reply.say} ${t("Trying again.")}`, "bad");
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
        if (reply.problem) { tell(t(reply.problem), "warn"); text.value ||= kept; } else announce(t("Both have answered."));
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
    given = ballot.outcome === "both_bad" ? t("Both bad") : STEPS.find(([value]) => value === ballot.strength)[1];
    steps = null;
    show(reply);
    announce(`${t("Your vote is saved.")} ${t("A is {first}, B is {second}.", { first: reply.names[0], second: reply.names[1] })}`);
  }

  const send = () => {
    if (!steps) return;
    if (steps.strength() === null) tell(steps.missing, "warn");
    else vote({ outcome: "ranked", strength: steps.strength() });
  };

  async function leave() {
    const answer = await ask({ title: t("Leave this talk?"), body: t("Nothing is voted, and the names stay unsaid."), actions: [["yes", t("Leave it")], ["no", t("Go on talking")]] });
    if (answer !== "yes") return;
    const reply = await doing("leave", { talk: screen.talk });
    if (reply) { steps = null; text.value = ""; show(reply); text.focus(); }
  }

  function onWriting(event) {
    if (event.key === "Escape") { event.preventDefault(); text.blur(); main.focus({ preventScroll: true }); }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); say(); }
  }

  const actions = { Enter: send, b: () => steps && vote({ outcome: "both_bad" }), n: () => (screen?.over ? enter() : steps && leave()),
    w: () => text.focus(), "?": () => ask({ title: t("Keys"), body: keysTable(HELP, true) }) };

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
      else turns.replaceChildren(h("div", { class: "card done" }, h("h2", {}, t("Not just now")), h("p", {}, reply.say)));
      return;
    }
    tell("");
    about = reply;
    steps = null;
    head.replaceChildren(h("strong", {}, t("Arena")), h("nav", { "aria-label": t("Tools") }, h("a", { href: "/rate", class: "plain-link" }, t("Compare")),
      h("button", { type: "button", class: "plain", onclick: actions["?"] }, t("Keys"), " ", key("?")), ...menu(about)));
    show(reply);
    if (!screen.over) text.focus();
  }

  enter();
}
