// K answers into one order, best first: by dragging, by arrow keys, or by digits. Ties share a rank.
import { h, key, letter } from "./dom.js";

export function rankingView(screen, draft, changed, answerCard, announce) {
  const count = screen.answers.length;
  let order = [...Array(count).keys()];
  let tied = Array.from({ length: count }, () => false); // tied[i]: the answer at place i is as good as the one above it
  if (draft?.ranking?.flat().length === count) {
    order = draft.ranking.flat();
    tied = draft.ranking.flatMap((group) => group.map((_, at) => at > 0));
  }
  const cards = screen.answers.map((answer, position) => item(answer, position));
  const list = h("ol", { class: "ranking", "aria-label": "Answers, best first" });

  function item(answer, position) {
    const name = `answer ${letter(position)}`;
    const tools = h("div", { class: "rank-tools" },
      h("span", { class: "handle", title: "Drag", "aria-hidden": "true", onpointerdown: (event) => drag(event, position) }, "⠿"),
      h("span", { class: "rank" }),
      h("button", { type: "button", class: "up", "aria-label": `Move ${name} up`, onclick: () => step(position, -1) }, "↑"),
      h("button", { type: "button", class: "down", "aria-label": `Move ${name} down`, onclick: () => step(position, 1) }, "↓"),
      h("button", { type: "button", class: "tie", "aria-pressed": "false", "aria-label": `tie with above: ${name}`,
        onclick: () => toggleTie(position) }, "tie with above"));
    const card = answerCard(answer, position, tools);
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
      card.querySelector(".rank").textContent = String(places[at]);
      card.setAttribute("aria-label", `Answer ${letter(position)}, rank ${places[at]} of ${count}`);
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
    announce(`Answer ${letter(position)} is now at place ${target + 1} of ${count}`);
  }

  const step = (position, by) => move(position, order.indexOf(position) + by);

  function toggleTie(position) {
    const at = order.indexOf(position);
    if (at === 0) return;
    tied[at] = !tied[at];
    show(true);
    changed();
    announce(`Answer ${letter(position)} is ${tied[at] ? "tied with" : "below"} answer ${letter(order[at - 1])}`);
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
    element: h("div", {}, h("p", { class: "hint" }, "Best on top. Drag, or use the arrows. ",
      h("span", { class: "by-keys" }, "By keys: focus an answer and press ", key("↑"), " ", key("↓"), ", a place ", key("1"), "–",
        key(String(count)), ", or ", key("t"), " for a tie.")), list),
    bar: h("p", { class: "said" }, `${count} answers, best first`),
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
    help: [["Tab, Alt+↑ ↓", "go to another answer"], ["↑ ↓", "move the answer in focus"],
      [`1 … ${count}`, "put the answer in focus at this place"], ["t", "tie with the answer above"]],
    letters: cards.map((_, at) => letter(at)),
  };
}
