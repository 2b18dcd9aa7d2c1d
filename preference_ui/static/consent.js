// What a rater is asked before there is work: agreement to a text, and a few questions.
import { call, h } from "./dom.js";
import { t } from "./words.js";

// The page; `done` is called when the server has kept the answers, and `tell` says what is wrong.
export function consentPage(server, asked, tell, done) {
  const answers = {};

  async function say(agreed) {
    if (agreed && asked.questions.some((one) => !(one.name in answers))) return tell(t("Please answer every question."), "warn");
    const reply = await call(server, "consent", { digest: asked.digest, agreed, answers: agreed ? answers : {} });
    return reply.ok ? done() : tell(reply.say, "bad");
  }

  const question = (one) => h("fieldset", { class: "about-rater" }, h("legend", { dir: "auto" }, one.text),
    one.choices.map((choice, at) => h("div", {},
      h("input", { type: "radio", name: `about-${one.name}`, id: `about-${one.name}-${at}`, value: choice, onchange: () => { answers[one.name] = choice; } }),
      " ", h("label", { htmlFor: `about-${one.name}-${at}`, dir: "auto" }, choice))));

  return h("article", { class: "card reading consent" }, h("h1", {}, t("Before you start")),
    asked.declined && h("p", { role: "status" }, t("You did not agree, so there is no work for you. You may think again.")),
    h("div", { class: "rendered", html: asked.html }), asked.questions.map(question),
    h("div", { class: "done-actions" },
      h("button", { type: "button", class: "primary", onclick: () => say(true) }, t("I agree")),
      !asked.declined && h("button", { type: "button", onclick: () => say(false) }, t("I do not agree"))));
}
