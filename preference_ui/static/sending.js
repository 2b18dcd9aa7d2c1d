// Sends a vote until the app has it.
import { call } from "./dom.js";
import { t } from "./words.js";

const RETRY_MS = [800, 1500, 3000, 5000];

export const sender = (server, { tell }) => async (lease, verdict) => {
  for (let attempt = 0; ; attempt += 1) {
    const reply = await call(server, "vote", { lease, verdict });
    if (reply.ok || !["offline", "unavailable"].includes(reply.code)) return reply;
    tell(`${reply.say} ${t("Your vote is not saved yet. Trying again; please keep this page open.")}`, "bad");
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)]));
  }
};
