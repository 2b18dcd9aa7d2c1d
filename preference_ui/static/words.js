// The app's own words in the reader's language. The scripts have them in English, and the English is the key.
export const LANGUAGES = { en: "English", de: "Deutsch", es: "Español", ar: "العربية" };
const KEPT = "rlhf-language";

function wanted() {
  let kept = null;
  try { kept = localStorage.getItem(KEPT); } catch { /* storage may be switched off */ }
  const asked = [kept, ...(navigator.languages ?? [navigator.language])];
  return asked.map((one) => one?.slice(0, 2).toLowerCase()).find((one) => one in LANGUAGES) ?? "en";
}

export const language = wanted();
document.documentElement.lang = language;
document.documentElement.dir = language === "ar" ? "rtl" : "ltr";

// English needs no catalogue; without one (the app cannot be reached) the words stay English.
const catalogue = language === "en" ? {} : await fetch(`/desk/words/${language}.json`).then((reply) => reply.ok ? reply.json() : {}, () => ({}));

export const t = (text, values = {}) =>
  (catalogue[text] ?? text).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));

export function choose(next) {
  try { localStorage.setItem(KEPT, next); } catch { /* as above */ }
  document.cookie = `rlhf_language=${next}; path=/; max-age=31536000; samesite=lax`;
  location.reload();
}
