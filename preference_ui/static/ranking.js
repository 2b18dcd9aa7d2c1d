// K answers into one order, best first: by dragging, by arrow keys, or by digits. Ties share a rank.
import { h, key, letter } from "./dom.js";
import { t } from "./words.js";

export function rankingView(screen, draft, changed, answerCard, announce) {
  const count = screen.answers.length;
  let order = [...Array(count).keys()];
  let tied = Array.from({ length: count }, () => false); // tied[i]: the answer at place i is as good as the one above it
  if (draft?.ranking?.flat().length === count) {
    order = draft.ranking.flat();
    tied = draft.ranking.flatMap((group) => group.map((_, at) => at > 0));
  }
  const cards = screen.answers.map((_, position) => item(position));
  const list = h("ol", { class: "ranking", "aria-label": t("Answers, best first") });

  function item(position) {
    const name = { letter: letter(position) };
    const tools = h("div", { class: "rank-tools" },
      h("span", { class: "handle", title: t("Drag"), "aria-hidden": "true", onpointerdown: (event) => drag(event, position) }, "⠿"),
      h("span", { class: "rank" }, t("rank"), " ", h("b", {})),
      h("button", { type: "button", class: "up", "aria-label": t("Move answer {letter} up", name), onclick: () => step(position, -1) }, "↑"),
      h("button", { type: "button", class: "down", "aria-label": t("Move answer {letter} down", name), onclick: () => step(position, 1) }, "↓"),
      h("button", { type: "button", class: "tie", "aria-pressed": "false", "aria-label": t("tie with above: answer {letter}", name),
        onclick: () => toggleTie(position) }, t("tie with above")));
    const card = answerCard(position, tools);
    return h("li", { class: "rank-item", tabIndex: 0, "data-position": position,
      onkeydown: (event) => onItemKey(event, position) }, card);
  }

  const ranks = () => order.map((_, at) => { let rank = at; while (rank > 0 && tied[rank]) rank -= 1; return rank + 1; });

  function show(keepFocus) {
    const places = ranks();
    const focused = document.activeElement;
    order.forEach((position, at) => {
      const card = cards[position];
      if (list.children[at] !== card) list.insertBefore(card, list.children[at] ?? null);
      card.querySelector(".rank b").textContent = String(places[at]);
      card.setAttribute("aria-label", t("Answer {letter}, rank {rank} of {count}", { letter: letter(position), rank: places[at], count }));
      card.classList.toggle("tied", tied[at]);
      const tie = card.querySelector(".tie");
      tie.disabled = at === 0;
      tie.setAttribute("aria-pressed", String(tied[at]));
      card.querySelector(".up").disabled = at === 0;
      card.querySelector(".down").disabled = at === count - 1;
    });
    if (keepFocus && focused && list.contains(focused)) focused.focus({ preventScroll: false });
  }

  function move(position, to) {
    const from = order.indexOf(position);
    const target = Math.max(0, Math.min(count - 1, to));
    if (from === target) return;
    order.splice(from, 1);
    order.splice(target, 0, position);
    tied.splice(from, 1);
    if (from < tied.length && from === 0) tied[0] = false;
    tied.splice(target, 0, false);
    tied[0] = false;
    show(true);
    changed();
    announce(t("Answer {letter} is now at place {place} of {count}", { letter: letter(position), place: target + 1, count }));
  }

  const step = (position, by) => move(position, order.indexOf(position) + by);

  function toggleTie(position) {
    const at = order.indexOf(position);
    if (at === 0) return;
    tied[at] = !tied[at];
    show(true);
    changed();
    announce(t(tied[at] ? "Answer {letter} is tied with answer {other}" : "Answer {letter} is below answer {other}",
      { letter: letter(position), other: letter(order[at - 1]) }));
  }

  function onItemKey(event, position) {
    if (event.target !== event.currentTarget) return;
    const at = order.indexOf(position);
    if (event.altKey && /^Arrow(Up|Down)$/.test(event.key)) {
      const next = cards[order[at + (event.key === "ArrowUp" ? -1 : 1)]];
      next?.focus();
    } else if (event.ctrlKey || event.metaKey || event.altKey) return;
    else if (event.key === "ArrowUp") step(position, -1);
    else if (event.key === "ArrowDown") step(position, 1);
    else if (/^[1-9]$/.test(event.key)) move(position, Number(event.key) - 1);
    else if (event.key === "t" || event.key === "=") toggleTie(position);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // The document listens: a card that changes its place loses the pointer, and with it the end of the drag.
  function drag(event, position) {
    event.preventDefault();
    const card = cards[position];
    card.classList.add("dragging");
    const follow = (moved) => {
      if (moved.pointerId !== event.pointerId) return;
      const above = order.filter((other) => {
        if (other === position) return false;
        const box = cards[other].getBoundingClientRect();
        return box.top + box.height / 2 < moved.clientY;
      }).length;
      move(position, above);
    };
    const drop = (ended) => {
      if (ended.pointerId !== event.pointerId) return;
      card.classList.remove("dragging");
      document.removeEventListener("pointermove", follow);
      document.removeEventListener("pointerup", drop);
      document.removeEventListener("pointercancel", drop);
    };
    document.addEventListener("pointermove", follow);
    document.addEventListener("pointerup", drop);
    document.addEventListener("pointercancel", drop);
  }

  const groups = () => order.reduce((all, position, at) => {
    if (tied[at]) all.at(-1).push(position); else all.push([position]);
    return all;
  }, []);

  show(false);
  return {
    element: h("div", {}, h("p", { class: "hint" }, t("Best on top. Drag, or use the arrows."), " ",
      h("span", { class: "by-keys" }, t("By keys: focus an answer, then"), " ", key("↑"), " ", key("↓"), " ", t("move it"), ", ", key("1"), "–",
        key(String(count)), " ", t("give it a place"), ", ", key("t"), " ", t("ties it with the one above"), ".")), list),
    bar: h("p", { class: "said" }, t("{count} answers, best first", { count })),
    draft: () => ({ ranking: groups() }),
    verdict: () => ({ outcome: "ranked", ranking: groups() }),
    missing: "",
    onKey(event) {
      if (event.key === "ArrowDown" || event.key === "ArrowUp" || /^[1-9]$/.test(event.key)) {
        cards[order[0]].focus();
        return true;
      }
      return false;
    },
    help: [["Tab, Alt+↑ ↓", t("go to another answer")], ["↑ ↓", t("move the answer in focus")],
      [`1 … ${count}`, t("put the answer in focus at this place")], ["t", t("tie with the answer above")]],
    letters: cards.map((_, at) => letter(at)),
  };
}
