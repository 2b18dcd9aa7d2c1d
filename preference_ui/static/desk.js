// The rater's desk: shows what the server hands out, sends votes until they are acknowledged, keeps drafts.
// It leaves out every rule: what may be voted, by whom and on what, is decided and checked by the server.
import { ask, call, h, isTyping, key } from "./dom.js";
import { extras } from "./extras.js";
import { consentPage } from "./consent.js";
import { header, keysTable, reasonDialog } from "./chrome.js";
import { chooseVote, verdictWords } from "./history.js";
import { pairView } from "./pair.js";
import { rankingView } from "./ranking.js";
import { reading } from "./reading.js";
import { rewriteView } from "./rewrite.js";
import { scoresView } from "./scores.js";
import { sender } from "./sending.js";
import { spansView } from "./spans.js";
import { thumbsView } from "./thumbs.js";
import { language, spoken, t } from "./words.js";

const LOOK_AGAIN_MS = 60000;
const OF_ONE = { // what may be asked of an answer that stands alone: its view, and its title
  thumbs: [thumbsView, t("Is this a good answer?")], rewrites: [rewriteView, t("Write a better answer")],
  scores: [scoresView, t("How good is this answer?")], spans: [spansView, t("Mark parts of the answer")],
};

export function start(element, server) {
  const desk = element.querySelector(".desk") ?? element;
  spoken(desk);
  const live = h("div", { class: "visually-hidden", "aria-live": "polite" });
  const notice = h("div", { class: "notice", hidden: true, role: "status" });
  const head = h("header", { class: "top" });
  const main = h("main", { class: "work", tabIndex: -1 });
  desk.replaceChildren(h("div", { class: "overhead" }, head, notice), main, live);
  let about = null, screen = null, view = null, more = null, page = null, saving = null, busy = false, hinted = false, looking = null;

  const announce = (text) => { live.textContent = text; };
  const tell = (text, kind = "") => { notice.textContent = text; notice.className = `notice ${kind}`; notice.hidden = !text; };
  const told = (text) => { tell(text); hinted = true; }; // until the next key

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
  function show(next) {
    clearTimeout(saving);
    clearTimeout(looking);
    screen = next;
    head.replaceChildren(...header(about, screen, actions));
    if (screen.lease === null) return finished();
    if (screen.queue?.must_read) return before(screen.queue.guidelines.html, readQueue, t("This queue has guidelines of its own."));
    const draft = draftOf(screen);
    page = reading(screen);
    const single = screen.answers.length === 1 ? screen.queue?.single ?? "thumbs" : null;
    more = extras(screen, about, draft, () => changed(), single);
    const card = (at, tools) => page.answer(at, more.improve(at), tools);
    const make = single ? OF_ONE[single][0] : screen.answers.length === 2 ? pairView : rankingView;
    view = make(screen, draft, () => changed(), card, announce);
    main.className = `work${page.isLong ? " beside" : ""}`;
    main.replaceChildren(...[
      h("h1", { class: "visually-hidden" }, single ? OF_ONE[single][1] : t("Which answer is better?")),
      screen.trial && h("p", { class: "banner" }, t("A trial to get to know the page. You will hear what we think of it afterwards.")),
      screen.undoing && undone(),
      page.conversation, h("div", { class: "judging" }, page.tools(actions), view.element, more.element, bar())].filter(Boolean));
    page.draw(told);
    page.placed();
    window.scrollTo({ top: 0 });
    main.focus({ preventScroll: true });
  }

  // Guidelines that are read before there is work.
  function before(html, act, lead = "") {
    view = more = page = null;
    main.className = "work";
    main.replaceChildren(h("article", { class: "card reading" }, h("h1", {}, t("Before you start")), lead && h("p", { class: "quiet" }, lead),
      h("div", { class: "rendered", html }), h("button", { type: "button", class: "primary", onclick: act }, t("I have read this"))));
    main.focus();
  }

  async function readQueue() {
    const { name, guidelines } = screen.queue;
    const reply = await call(server, "read_queue", { queue: name, digest: guidelines.digest });
    if (reply.ok) show(reply.screen); else { tell(reply.say, "bad"); await begin({ keep: true }); }
  }

  function undone() {
    return h("div", { class: "banner undone" },
      h("p", {}, t("You are changing a vote of yours. It stands as it was until you send it again."), " ",
        h("strong", {}, t("You said: {verdict}", { verdict: verdictWords(screen.was) }), screen.was.comment ? [" · ", h("bdi", { dir: "auto" }, screen.was.comment)] : "")),
      h("button", { type: "button", onclick: actions.leave }, t("Leave it as it was"), " ", key("Esc")),
      h("button", { type: "button", onclick: actions.undo }, t("One vote further back"), " ", key("u")));
  }

  function finished() {
    view = more = page = null;
    main.className = "work";
    const missed = screen.missed;
    main.replaceChildren(h("div", { class: "card done" }, h("h1", {}, missed ? t("Thank you for trying") : t("All done for now")),
      missed && h("p", {}, t("You had {right} of {asked} trial comparisons right, and {wanted} are asked for. There is no work for you here until an administrator adds others.",
        { right: missed.right, asked: missed.asked, wanted: Math.ceil(missed.mark * missed.asked - 1e-9) })),
      !missed && h("p", {}, t("There is nothing left for you to compare. Thank you. New comparisons appear here by themselves when they are queued.")),
      h("div", { class: "done-actions" },
        screen.completion && h("a", { href: screen.completion, class: "primary", id: "completion", rel: "noreferrer" }, t("Finish, and go back to where you came from")),
        h("button", { type: "button", class: screen.completion ? "" : "primary", onclick: () => begin() }, t("Look again")),
        h("button", { type: "button", onclick: actions.history }, t("Your votes"), " ", key("h")),
        h("button", { type: "button", onclick: actions.guidelines }, t("Guidelines"), " ", key("g")),
        about.arena && h("a", { href: "/arena" }, t("Arena")),
        about.administrator && h("a", { href: "/admin" }, t("Administration")))));
    looking = setTimeout(lookAgain, LOOK_AGAIN_MS);
  }

  function bar() {
    const small = (name, label, act) => h("button", { type: "button", onclick: act }, label, " ", key(name));
    const bad = screen.answers.length === 2 ? t("Both bad") : t("All bad");
    const several = screen.answers.length > 1; // of one answer, "bad" is a verdict of its own
    return h("footer", { class: "bar", role: "group", "aria-label": t("Your verdict") }, view.bar,
      h("div", { class: "bar-actions" },
        h("div", { class: "others" }, several && small("b", bad, actions.bothBad), small("s", t("Skip"), actions.skip), small("f", t("Flag"), actions.flag)),
        h("button", { type: "button", class: "primary send", onclick: actions.send }, t("Send"), " ", key("Enter"))));
  }

  // ---- what a rater can do
  const { post, catchUp } = sender(server, { tell });

  async function send(verdict) {
    if (busy || !screen?.lease) return;
    busy = true;
    clearTimeout(saving);
    desk.classList.add("sending");
    const lease = screen.lease;
    const reply = await post(about.name, lease, verdict);
    busy = false;
    desk.classList.remove("sending");
    if (reply.ok) return accepted(lease, reply);
    if (reply.code === "confirm") {
      const answer = await ask({ title: screen.answers.length > 1 ? t("Is this your ranking?") : t("Send it like this?"), body: reply.say, actions: [["yes", t("Yes, send it")], ["no", t("Not yet")]] });
      if (answer === "yes") await send({ ...verdict, confirmed: true });
      return;
    }
    tell(reply.say, "bad");
    if (["expired", "over", "no_lease", "excluded"].includes(reply.code)) await begin({ keep: true });
  }

  async function accepted(lease, reply) {
    try { sessionStorage.removeItem(`draft-${lease}`); } catch { /* nothing was kept */ }
    tell("");
    announce(t("Your vote is saved."));
    if (reply.feedback) await feedback(reply.feedback, reply.screen);
    show(reply.screen);
    head.querySelector("#progress-words")?.classList.add("saved");
  }

  async function feedback({ right, ranking, why }, next) {
    const best = ranking[0].map((at) => String.fromCharCode(65 + at)).join(" = ");
    await ask({ title: right ? t("We agree") : t("We see it differently"), actions: [["go", next.trial || next.missed ? t("Go on") : t("Start working")]],
      body: h("div", {}, h("p", {}, t("We think that answer {letter} is the better one.", { letter: best })), h("p", { dir: "auto" }, why),
        !next.trial && !next.missed && h("p", { class: "quiet" }, t("From now on nobody tells you. Your own judgement is what counts."))) });
  }

  // Asks for another screen: one of the rater's own votes, or what comes after it.
  async function open(name, data, said) {
    if (busy) return;
    const reply = await call(server, name, data);
    if (!reply.ok) return tell(reply.say, "warn");
    tell("");
    show(reply.screen);
    announce(said);
  }

  const actions = {
    send() {
      const verdict = view?.verdict();
      if (!view) return;
      if (verdict) send({ ...verdict, ...more.value() });
      else { tell(view.missing, "warn"); hinted = true; }
    },
    bothBad: () => view && screen.answers.length > 1 && send({ outcome: "both_bad", ...more.value() }),
    async skip() {
      if (!view) return;
      const reason = await reasonDialog(t("Why skip this one?"), about.reasons.skip);
      if (reason) send({ outcome: "skipped", reason });
    },
    async flag() {
      if (!view) return;
      const reason = await reasonDialog(t("What is wrong here?"), about.reasons.flag);
      if (reason) send({ outcome: "flagged", reason, ...(more.value().comment ? { comment: more.value().comment } : {}) });
    },
    undo: () => (screen?.undoing ? open("step_back", { lease: screen.lease }, t("One vote further back is open."))
      : screen && open("undo", null, t("Your last vote is open again."))),
    leave: () => screen?.undoing && open("leave_vote", { lease: screen.lease }, t("The vote stays as it was.")),
    async history() {
      if (!screen) return;
      const vote = await chooseVote(server, tell);
      if (vote) await open("revise", { vote }, t("Your vote is open again."));
    },
    written: () => page && announce(page.asWritten()),
    differences: () => page && screen.answers.length > 1 && announce(page.differences(told)),
    whole: () => page?.whole(),
    guidelines: () => about && ask({ title: t("Guidelines"), wide: true, body: h("div", { class: "rendered", html: (screen?.queue?.guidelines ?? about.guidelines).html }) }),
    keys: () => ask({ title: t("Keys"), body: keysTable(view?.help ?? []) }),
    comment: () => more?.openComment(),
  };

  const shortcuts = { Enter: actions.send, b: actions.bothBad, s: actions.skip, f: actions.flag, u: actions.undo, h: actions.history,
    g: actions.guidelines, c: actions.comment, "?": actions.keys, w: actions.written, d: actions.differences, e: actions.whole,
    Escape: actions.leave };

  document.addEventListener("keydown", (event) => {
    if (!desk.isConnected || desk.querySelector("dialog[open]") || event.ctrlKey && event.key !== "Enter" || event.metaKey || event.altKey) return;
    if (isTyping(event.target)) {
      if (event.key === "Enter" && event.ctrlKey) { event.preventDefault(); actions.send(); }
      if (event.key === "Escape") main.focus({ preventScroll: true }); // the keys are the page's again
      return;
    }
    if (event.key === "Enter" && /^(BUTTON|A|SUMMARY)$/.test(event.target.tagName)) return;
    if (hinted) { tell(""); hinted = false; }
    if (view?.onKey(event)) { event.preventDefault(); return; }
    const act = shortcuts[event.key];
    if (act) { event.preventDefault(); act(); }
  });

  window.addEventListener("resize", () => page?.placed());

  // ---- coming in
  function lookAgain() {
    if (screen?.lease !== null) return;
    if (desk.querySelector("dialog[open]")) looking = setTimeout(lookAgain, LOOK_AGAIN_MS); else begin({ quietly: true });
  }

  async function begin({ keep = false, quietly = false } = {}) {
    let reply = await call(server, "begin", { language });
    const { sent, refused } = reply.ok ? await catchUp(reply.name) : {}; // votes of an earlier visit
    if (sent || refused) { // what is on the screen now is another one
      reply = await call(server, "begin", { language });
      tell(refused || t("Votes that were kept in this browser are saved now."), refused ? "warn" : "");
      keep = true;
    }
    if (!reply.ok) {
      if (!quietly) tell(reply.say, "bad");
      if (reply.code === "offline" || reply.code === "unavailable") setTimeout(() => begin({ keep, quietly }), quietly ? LOOK_AGAIN_MS : 3000);
      else main.replaceChildren(h("div", { class: "card done" }, h("h1", {}, t("Not just now")), h("p", {}, reply.say),
        h("button", { type: "button", class: "primary", onclick: () => begin() }, t("Look again"))));
      return;
    }
    if (!keep && !quietly) tell("");
    about = reply;
    if (quietly && screen?.lease === null && reply.screen?.lease === null) { // nothing new: what has the focus keeps it
      looking = setTimeout(lookAgain, LOOK_AGAIN_MS);
      return;
    }
    if (reply.asked) {
      head.replaceChildren(...header(about, null, actions));
      main.replaceChildren(consentPage(server, reply.asked, tell, () => begin()));
      return main.focus();
    }
    if (!reply.must_read) return show(reply.screen);
    head.replaceChildren(...header(about, null, actions));
    before(about.guidelines.html, read);
  }

  async function read() {
    const reply = await call(server, "read_guidelines", { version: about.guidelines.version });
    if (reply.ok) { about.must_read = false; show(reply.screen); } else tell(reply.say, "bad");
  }

  begin();
}
