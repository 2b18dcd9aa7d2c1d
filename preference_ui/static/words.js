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
export const direction = language === "ar" ? "rtl" : "ltr";

// Gradio says its own language of the whole page; what is inside the desk is in the app's.
export function spoken(element) {
  for (const one of [document.documentElement, element]) Object.assign(one, { lang: language, dir: direction });
}

// English needs no catalogue; without one (the app cannot be reached) the words stay English.
const catalogue = language === "en" ? {} : await fetch(`/desk/words/${language}.json`).then((reply) => reply.ok ? reply.json() : {}, () => ({}));

export const t = (text, values = {}) =>
  (catalogue[text] ?? text).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));

export function choose(next) {
  try { localStorage.setItem(KEPT, next); } catch { /* as above */ }
  document.cookie = `rlhf_language=${next}; path=/; max-age=31536000; samesite=lax`;
  location.reload();
}
