// The administrator's page: figures, people, settings, and the trail of changes.
import { ask, call, h } from "./dom.js";

const percent = (value) => (value === null ? "–" : `${Math.round(value * 100)} %`);
const NAMES = { percent_agreement: "Agreement, in per cent of pairs", krippendorff_alpha: "Krippendorff’s α", fleiss_kappa: "Fleiss’ κ" };
const PAGE = 50; // raters shown at first
const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A value on a line from `from` to 1, with its interval as a bar.
function whisker(figure, from = 0) {
  if (figure.value === null) return h("span", { class: "quiet" }, "–");
  const x = (value) => 4 + 132 * (Math.max(from, Math.min(1, value)) - from) / (1 - from);
  const label = `${figure.value.toFixed(2)}` + (figure.low === null ? "" : `, 95 % interval ${figure.low.toFixed(2)} to ${figure.high.toFixed(2)}`);
  const marks = [svg("line", { x1: 4, x2: 136, y1: 10, y2: 10, class: "axis" })];
  if (from < 0) marks.push(svg("line", { x1: x(0), x2: x(0), y1: 4, y2: 16, class: "axis" }));
  if (figure.low !== null) marks.push(svg("line", { x1: x(figure.low), x2: x(figure.high), y1: 10, y2: 10, class: "interval" }));
  marks.push(svg("circle", { cx: x(figure.value), cy: 10, r: 4.5, class: "point" }));
  return h("span", { class: "whisker" }, svg("svg", { viewBox: "0 0 140 20", width: 140, height: 20, role: "img", "aria-label": label }, ...marks),
    h("span", { class: "number" }, from < 0 ? figure.value.toFixed(2) : percent(figure.value)),
    "of" in figure && typeof figure.of === "number" ? h("span", { class: "quiet" }, ` of ${figure.of}`) : null);
}

export function start(element, server) {
  const desk = element.querySelector(".desk") ?? element;
  const notice = h("div", { class: "notice", hidden: true, role: "status" });
  const main = h("main", { class: "administration", tabIndex: -1 });
  desk.replaceChildren(h("div", { class: "overhead" }, h("header", { class: "top" }, h("strong", {}, "Administration"),
    h("nav", { "aria-label": "Pages" }, h("a", { href: "/rate", class: "plain-link" }, "Rate"), h("a", { href: "/review", class: "plain-link" }, "Records"),
      h("button", { type: "button", class: "plain", onclick: () => load() }, "Refresh"),
      h("button", { type: "button", class: "plain", "aria-label": "Dark or light", onclick: () => window.rlhfTheme?.toggle() }, "◐"))), notice), main);
  let pages = 1;
  let later;
  const tell = (text, kind = "") => { notice.textContent = text; notice.className = `notice ${kind}`; notice.hidden = !text; };

  async function act(name, data, done) {
    const reply = await call(server, name, data);
    if (!reply.ok) return tell(reply.say, "bad");
    tell(typeof done === "function" ? done(reply) : done);
    await load();
    return reply;
  }

  async function withReason(title, run) {
    const input = h("input", { id: "reason", maxLength: 400 });
    const chosen = await ask({ title, body: h("div", {}, h("label", { htmlFor: "reason" }, "Reason (kept in the trail)"), input),
      actions: [["go", "Do it"], ["no", "Cancel"]] });
    if (chosen === "go") await run(input.value);
  }

  function raterRow(rater) {
    const paused = rater.state === "paused";
    const out = rater.votes > 0 && rater.excluded === rater.votes;
    const state = (to) => withReason(to === "paused" ? `Pause ${rater.name}?` : `Let ${rater.name} work again?`,
      (reason) => act("set_state", { account: rater.account, state: to, reason }, to === "paused" ? `${rater.name} is paused.` : `${rater.name} works again.`));
    const votes = (excluded) => withReason(excluded ? `Leave out all votes of ${rater.name}?` : `Bring back the votes of ${rater.name}?`,
      (reason) => act("set_excluded", { account: rater.account, excluded, reason }, (reply) => `${reply.changed} votes ${excluded ? "left out" : "brought back"}.`));
    const label = (words) => ({ type: "button", "aria-label": `${words}: ${rater.name}` });
    return h("tr", {}, h("th", { scope: "row" }, rater.name, " ", rater.state !== "active" && h("span", { class: "tag" }, rater.state)),
      h("td", { class: "num" }, String(rater.votes), rater.excluded ? h("span", { class: "quiet" }, ` (${rater.excluded} out)`) : null),
      h("td", { class: "num" }, rater.median_seconds === null ? "–" : `${rater.median_seconds} s`, rater.fast.hits ? h("span", { class: "quiet" }, ` ${rater.fast.hits} fast`) : null),
      h("td", {}, whisker(rater.gold)), h("td", {}, whisker(rater.consistency)), h("td", {}, whisker(rater.agreement)), h("td", {}, whisker(rater.first_shown)),
      h("td", { class: "stays" }, h("div", { class: "row-actions" },
        h("button", { ...label(paused ? "Let work" : "Pause"), onclick: () => state(paused ? "active" : "paused") }, paused ? "Resume" : "Pause"),
        h("button", { ...label(out ? "Bring votes back" : "Leave votes out"), disabled: rater.votes === 0, onclick: () => votes(!out) }, out ? "Bring votes back" : "Leave votes out"),
        h("button", { ...label("Sign out"), onclick: () => act("sign_out_account", { account: rater.account }, (reply) => `${reply.closed} sessions closed.`) }, "Sign out"))));
  }

  function table(caption, heads, rows) {
    return h("div", { class: "scroll", tabIndex: 0, role: "group", "aria-label": caption }, h("table", {}, h("caption", { class: "visually-hidden" }, caption),
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col", class: head === "Actions" ? "stays" : "" }, head)))), h("tbody", {}, rows)));
  }

  async function invite(role) {
    const reply = await call(server, "invite", { role, note: "" });
    if (!reply.ok) return tell(reply.say, "bad");
    const field = h("input", { readOnly: true, value: location.origin + reply.path, "aria-label": "The link", id: "invitation-link" });
    await ask({ title: "Send this link", body: h("div", {}, field, h("p", { class: "quiet" }, "It works once, for three days. It is not shown again.")) });
    await load();
  }

  function settingsForm(reply) {
    const kept = reply.settings;
    const number = (name, label, step) => h("label", {}, label, h("input", { type: "number", name, step, min: 0, value: String(kept[name]), required: true }));
    const form = h("form", { class: "settings", onsubmit: async (event) => {
      event.preventDefault();
      const data = new FormData(form);
      const changed = { ...kept, guidelines: data.get("guidelines"), policy: data.get("policy"), trial_required: data.has("trial_required") };
      changed.criteria = data.get("criteria").split("\n").map((line) => line.trim()).filter(Boolean).map((line) => {
        const [name, ...rubric] = line.split(":");
        return { name: name.trim(), rubric: rubric.join(":").trim() };
      });
      changed.consent = data.get("consent");
      changed.questions = data.get("questions").split("\n").map((line) => line.trim()).filter(Boolean).map((line) => {
        const [name, ...rest] = line.split(":");
        const [text, ...choices] = rest.join(":").split("|").map((part) => part.trim());
        return { name: name.trim(), text, choices };
      });
      changed.pass_mark = data.get("pass_mark") === "" ? null : Number(data.get("pass_mark"));
      for (const name of ["random_share", "gold_share", "repeat_share", "repeat_after", "lease_minutes", "hourly_rate", "idle_minutes"]) changed[name] = Number(data.get(name));
      await act("save_settings", { settings: changed }, "Saved. Raters read changed guidelines again.");
    } },
      h("label", { class: "full" }, "Guidelines (Markdown)", h("textarea", { name: "guidelines", rows: 10, value: kept.guidelines })),
      h("label", { class: "full" }, "Criteria that may be scored from 1 to 5, one a line: name: what the scores mean", h("textarea", { name: "criteria", rows: 4,
        value: kept.criteria.map((one) => `${one.name}: ${one.rubric}`).join("\n") })),
      h("label", { class: "full" }, "What raters agree to before work (Markdown; empty: nothing)", h("textarea", { name: "consent", rows: 3, value: kept.consent })),
      h("label", { class: "full" }, "Questions about the rater, one a line: name: question | answer | answer …", h("textarea", { name: "questions", rows: 2,
        value: kept.questions.map((one) => `${one.name}: ${[one.text, ...one.choices].join(" | ")}`).join("\n") })),
      h("label", {}, "Which comparison next", h("select", { name: "policy" }, [["least_voted", "least voted"], ["random", "random"], ["most_informative", "most informative"]]
        .map(([value, words]) => h("option", { value, selected: kept.policy === value }, words)))),
      number("random_share", "Share drawn at random", "0.01"), number("gold_share", "Share of gold", "0.01"), number("repeat_share", "Share of repeats", "0.01"),
      number("repeat_after", "Repeat after (votes)", "1"), number("lease_minutes", "Minutes until a comparison returns", "any"),
      number("hourly_rate", "Pay for an hour of work (0: not reckoned)", "any"), number("idle_minutes", "Most minutes of work on one vote", "any"),
      h("label", {}, "Share of the trial that must be right (empty: none)", h("input", { type: "number", name: "pass_mark", step: "0.01", min: 0, max: 1,
        value: kept.pass_mark === null ? "" : String(kept.pass_mark) })),
      h("label", { class: "check" }, h("input", { type: "checkbox", name: "trial_required", checked: kept.trial_required }), " A trial comparison first"),
      h("button", { type: "submit", class: "primary" }, "Save settings"));
    return form;
  }

  function show(reply) {
    const quality = reply.quality ?? { votes: "…", comparisons: "…", consensus: "majority", raters: [], agreement: [] };
    const shown = quality.raters.slice(0, pages * PAGE);
    const tile = (value, words) => h("div", { class: "tile" }, h("span", { class: "big" }, String(value)), h("span", { class: "quiet" }, words));
    const invited = (role, words) => h("button", { type: "button", onclick: () => invite(role) }, words);
    main.replaceChildren(
      h("h1", { class: "visually-hidden" }, "Administration"),
      h("div", { class: "tiles" }, tile(quality.votes, "votes that count"), tile(quality.comparisons, "comparisons voted on"),
        tile(reply.waiting, "votes still wanted"), tile(reply.in_hand, "in raters’ hands now")),
      h("section", { class: "card" }, h("h2", {}, "Raters"),
        h("p", { class: "quiet" }, `“With the others” compares with ${quality.consensus === "dawid_skene" ? "the others weighted by skill (Dawid and Skene)" : "the majority of the others"}. Bars are 95 % intervals.`,
          quality.newest ? ` On the newest ${quality.newest.toLocaleString("en")} votes.` : "", reply.renewing ? " Newer figures are being made." : ""),
        table("Raters", ["Name", "Votes", "Median time", "Right on gold", "With themselves", "With the others", "First shown wins", "Actions"], shown.map(raterRow)),
        shown.length < quality.raters.length ? h("button", { type: "button", onclick: () => { pages += 1; show(reply); } }, `More raters (${quality.raters.length - shown.length})`) : null,
        h("div", { class: "row-actions" }, invited("rater", "Invite a rater"), invited("administrator", "Invite an administrator"))),
      h("section", { class: "card" }, h("h2", {}, "Agreement"),
        table("Agreement", ["Of", "Statistic", "Value", "Rated at least twice"], quality.agreement.map((one) => h("tr", {}, h("th", { scope: "row" }, one.of),
          h("td", {}, NAMES[one.statistic] ?? one.statistic), h("td", {}, whisker({ ...one, of: undefined }, -0.2)), h("td", { class: "num" }, String(one.units)))))),
      ...(reply.matches.length ? [h("section", { class: "card" }, h("h2", {}, "Arena"),
        h("p", { class: "quiet" }, "How often the first version was liked better; a tie counts half, and votes for neither are left out."),
        table("Arena", ["First", "Second", "First is better", "Won", "Lost", "Ties", "Both bad"], reply.matches.map((one) => h("tr", {}, h("th", { scope: "row" }, one.first), h("td", {}, one.second),
          h("td", {}, whisker(one.share)), [one.wins, one.losses, one.ties, one.both_bad].map((count) => h("td", { class: "num" }, String(count)))))))] : []),
      h("section", { class: "card" }, h("h2", {}, "What raters are asked"), settingsForm(reply)),
      h("section", { class: "card" }, h("h2", {}, "Who changed what"),
        table("Audit trail", ["When", "Who", "What", "On"], reply.trail.map((line) => h("tr", {}, h("td", {}, line.at.replace("T", " ").slice(0, 19)), h("td", {}, line.actor),
          h("td", {}, line.action), h("td", {}, line.subject))))));
  }

  async function load() {
    const reply = await call(server, "overview");
    if (!reply.ok) return tell(reply.say, "bad");
    show(reply);
    clearTimeout(later);
    if (reply.renewing) later = setTimeout(load, 3000);
  }

  load();
}
