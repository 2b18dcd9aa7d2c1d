// Sends a vote until the app has it. A vote given while the app cannot be reached is kept in this browser, also when the
// page is closed, and sent when it can be reached again. A vote is stored under its lease: sent twice, it counts once.
import { call } from "./dom.js";
import { t } from "./words.js";

const RETRY_MS = [800, 1500, 3000, 5000];
const OUTBOX = "rlhf-outbox-"; // and the account's name: one browser may serve several people
const AWAY = ["offline", "unavailable"];

const wait = (milliseconds) => new Promise((resolve) => {
  const timer = setTimeout(done, milliseconds);
  window.addEventListener("online", done, { once: true });
  function done() { clearTimeout(timer); window.removeEventListener("online", done); resolve(); }
});

function read(name) {
  try { return JSON.parse(localStorage.getItem(OUTBOX + name)) ?? []; } catch { return []; }
}

function write(name, kept) {
  try {
    if (kept.length) localStorage.setItem(OUTBOX + name, JSON.stringify(kept)); else localStorage.removeItem(OUTBOX + name);
    return true;
  } catch { return false; }
}

const keep = (name, lease, verdict) => write(name, [...read(name).filter((one) => one.lease !== lease), { lease, verdict }]);
const forget = (name, lease) => write(name, read(name).filter((one) => one.lease !== lease));

export function sender(server, { tell }) {
  // Returns the app's answer, however long that takes.
  async function post(name, lease, verdict) {
    for (let attempt = 0; ; attempt += 1) {
      const reply = await call(server, "vote", { lease, verdict });
      if (!AWAY.includes(reply.code)) {
        forget(name, lease);
        return reply;
      }
      const kept = keep(name, lease, verdict);
      tell(`${reply.say} ${kept ? t("Your vote is not saved yet. It is kept in this browser and sent later; you may close the page.")
        : t("Your vote is not saved yet. Trying again; please keep this page open.")}`, "bad");
      await wait(RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)]);
    }
  }

  // What an earlier visit could not send. Returns how many votes the app has now, and its word on those that it refuses,
  // which are given up.
  async function catchUp(name) {
    let sent = 0, refused = "";
    for (const { lease, verdict } of read(name)) {
      const reply = await call(server, "vote", { lease, verdict });
      if (AWAY.includes(reply.code) || reply.code === "signed_out") break;
      if (reply.code === "confirm") continue; // the ranking is on the screen again, and is asked about there
      forget(name, lease);
      if (reply.ok) sent += 1; else refused = reply.say;
    }
    return { sent, refused };
  }

  return { post, catchUp };
}
