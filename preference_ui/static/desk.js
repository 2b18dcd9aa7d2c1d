// The rater's desk: shows what the server hands out, sends votes until they are acknowledged, keeps drafts.
// It leaves out every rule: what may be voted, by whom and on what, is decided and checked by the server.
import { ask, call, h, isTyping, key, letter } from "./dom.js";
import { extras } from "./extras.js";
import { header, keysTable, reasonDialog } from "./chrome.js";
import { pairView } from "./pair.js";
import { rankingView } from "./ranking.js";

const RETRY_MS = [800, 1500, 3000, 5000];

export function start(element, server) {
  const desk = element.querySelector(".desk") ?? element;
  const live = h("div", { class: "visually-hidden", "aria-live": "polite" });
  const notice = h("div", { class: "notice", hidden: true, role: "status" });
  const head = h("header", { class: "top" });
  const main = h("main", { class: "work", tabIndex: -1 });
  desk.replaceChildren(head, notice, main, live);
  let about = null, screen = null, view = null, more = null, saving = null, busy = false, hinted = false;

  const announce = (text) => { live.textContent = text; };
  const tell = (text, kind = "") => { notice.textContent = text; notice.className = `notice ${kind}`; notice.hidden = !text; };

  // ---- drafts: at once in this tab, soon after on the server
  const changed = () => {
    const body = { ...view.draft(), ...more.value() };
    try { sessionStorage.setItem(`draft-${screen.lease}`, JSON.stringify(body)); } catch { /* the server has it */ }
    clearTimeout(saving);
    const lease = screen.lease;
    saving = setTimeout(async () => {
      if (screen?.lease === lease && !busy) await call(server, "draft", { lease, draft: body });
    }, 500);
  };
  const draftOf = (shown) => {
    try { return JSON.parse(sessionStorage.getItem(`draft-${shown.lease}`)) ?? shown.draft; } catch { return shown.draft; }
  };

  // ---- what is on the screen
  function answerCard(answer, at, tools = null) {
    const [button, box] = more.improve(at);
    return h("article", { class: "card answer", "aria-label": `Answer ${letter(at)}` },
      h("div", { class: "answer-head" }, h("h2", {}, letter(at)), tools),
      answer.names_itself && h("p", { class: "warning" }, "This answer says who wrote it. Please judge the answer, not the name."),
      h("div", { class: "rendered", html: answer.html }), button, box);
  }

  const roles = { user: "Question", assistant: "Answer before", system: "Instruction" };

  function show(next) {
    clearTimeout(saving);
    screen = next;
    head.replaceChildren(...header(about, screen, actions));
    if (screen.lease === null) {
      view = more = null;
      main.replaceChildren(h("div", { class: "card done" }, h("h1", {}, "All done for now"),
        h("p", {}, "There is nothing left for you to compare. Thank you. New comparisons appear here when they are queued."),
        h("p", {}, h("button", { type: "button", class: "primary", onclick: begin }, "Look again"))));
      return;
    }
    const draft = draftOf(screen);
    more = extras(screen, about, draft, () => changed());
    view = screen.answers.length === 2
      ? pairView(screen, draft, () => changed(), answerCard)
      : rankingView(screen, draft, () => changed(), answerCard, announce);
    const question = h("section", { class: "card prompt", "aria-label": "The conversation" },
      screen.prompt.map((turn) => h("div", { class: `turn ${turn.role}` },
        h("p", { class: "who" }, roles[turn.role]), h("div", { class: "rendered", html: turn.html }))));
    main.replaceChildren(...[
      h("h1", { class: "visually-hidden" }, "Which answer is better?"),
      screen.trial && h("p", { class: "banner" }, "A trial to get to know the page. You will hear what we think of it afterwards."),
      screen.undoing && h("p", { class: "banner" }, "You are changing your last vote. It stands as it was until you send it again."),
      question, view.element, more.element, bar()].filter(Boolean));
    window.scrollTo({ top: 0 });
    main.focus({ preventScroll: true });
  }

  function bar() {
    const small = (name, label, act) => h("button", { type: "button", onclick: act }, label, " ", key(name));
    return h("footer", { class: "bar", role: "group", "aria-label": "Your verdict" }, view.bar,
      h("div", { class: "bar-actions" },
        h("div", { class: "others" }, small("b", screen.answers.length === 2 ? "Both bad" : "All bad", actions.bothBad),
          small("s", "Skip", actions.skip), small("f", "Flag", actions.flag)),
        h("button", { type: "button", class: "primary send", onclick: actions.send }, "Send ", key("Enter"))));
  }

  // ---- what a rater can do
  async function send(verdict) {
    if (busy || !screen?.lease) return;
    busy = true;
    clearTimeout(saving);
    desk.classList.add("sending");
    const lease = screen.lease;
    let reply;
    for (let attempt = 0; ; attempt += 1) {
      reply = await call(server, "vote", { lease, verdict });
      if (reply.ok || !["offline", "unavailable"].includes(reply.code)) break;
      tell(`${reply.say} Your vote is not saved yet. Trying again; please keep this page open.`, "bad");
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)]));
    }
    busy = false;
    desk.classList.remove("sending");
    if (reply.ok) return accepted(lease, reply);
    if (reply.code === "confirm") {
      const answer = await ask({ title: "Is this your ranking?", body: reply.say, actions: [["yes", "Yes, send it"], ["no", "Not yet"]] });
      if (answer === "yes") await send({ ...verdict, confirmed: true });
      return;
    }
    tell(reply.say, "bad");
    if (["expired", "over", "no_lease", "excluded"].includes(reply.code)) await begin({ keep: true });
  }

  async function accepted(lease, reply) {
    try { sessionStorage.removeItem(`draft-${lease}`); } catch { /* nothing was kept */ }
    tell("");
    announce("Your vote is saved.");
    if (reply.feedback) await feedback(reply.feedback);
    show(reply.screen);
  }

  async function feedback({ right, ranking, why }) {
    const best = ranking[0].map(letter).join(" and ");
    await ask({ title: right ? "We agree" : "We see it differently", actions: [["go", "Start working"]],
      body: h("div", {}, h("p", {}, `We think that answer ${best} is the better one.`), h("p", {}, why),
        h("p", { class: "quiet" }, "From now on nobody tells you. Your own judgement is what counts.")) });
  }

  const actions = {
    send() {
      const verdict = view?.verdict();
      if (!view) return;
      if (verdict) send({ ...verdict, ...more.value() });
      else { tell(view.missing, "warn"); hinted = true; }
    },
    bothBad: () => view && send({ outcome: "both_bad", ...more.value() }),
    async skip() {
      if (!view) return;
      const reason = await reasonDialog("Why skip this one?", about.reasons.skip);
      if (reason) send({ outcome: "skipped", reason });
    },
    async flag() {
      if (!view) return;
      const reason = await reasonDialog("What is wrong here?", about.reasons.flag);
      if (reason) send({ outcome: "flagged", reason, ...(more.value().comment ? { comment: more.value().comment } : {}) });
    },
    async undo() {
      if (busy) return;
      const reply = await call(server, "undo");
      if (reply.ok) { tell(""); show(reply.screen); announce("Your last vote is open again."); } else tell(reply.say, "warn");
    },
    guidelines: () => ask({ title: "Guidelines", wide: true, body: h("div", { class: "rendered", html: about.guidelines.html }) }),
    keys: () => ask({ title: "Keys", body: keysTable(view?.help ?? []) }),
    comment: () => more?.openComment(),
  };

  const shortcuts = { Enter: actions.send, b: actions.bothBad, s: actions.skip, f: actions.flag, u: actions.undo,
    g: actions.guidelines, c: actions.comment, "?": actions.keys };

  document.addEventListener("keydown", (event) => {
    if (!desk.isConnected || desk.querySelector("dialog[open]") || event.ctrlKey && event.key !== "Enter" || event.metaKey || event.altKey) return;
    if (isTyping(event.target)) {
      if (event.key === "Enter" && event.ctrlKey) { event.preventDefault(); actions.send(); }
      return;
    }
    if (event.key === "Enter" && /^(BUTTON|A|SUMMARY)$/.test(event.target.tagName)) return;
    if (hinted) { tell(""); hinted = false; }
    if (view?.onKey(event)) { event.preventDefault(); return; }
    const act = shortcuts[event.key];
    if (act) { event.preventDefault(); act(); }
  });

  // ---- coming in
  async function begin({ keep = false } = {}) {
    const reply = await call(server, "begin");
    if (!reply.ok) {
      tell(reply.say, "bad");
      if (reply.code === "offline" || reply.code === "unavailable") setTimeout(() => begin(), 3000);
      else main.replaceChildren(h("div", { class: "card done" }, h("h1", {}, "Not just now"), h("p", {}, reply.say)));
      return;
    }
    if (!keep) tell("");
    about = reply;
    if (!reply.must_read) return show(reply.screen);
    head.replaceChildren(...header(about, null, actions));
    main.replaceChildren(h("article", { class: "card reading" }, h("h1", {}, "Before you start"),
      h("div", { class: "rendered", html: about.guidelines.html }),
      h("button", { type: "button", class: "primary", onclick: read }, "I have read this")));
    main.focus();
  }

  async function read() {
    const reply = await call(server, "read_guidelines", { version: about.guidelines.version });
    if (reply.ok) { about.must_read = false; show(reply.screen); } else tell(reply.say, "bad");
  }

  begin();
}
