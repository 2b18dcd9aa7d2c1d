// Dark or light, as chosen here before or as the system says; set before the first paint.
(() => {
  const wanted = () => {
    try {
      const kept = localStorage.getItem("rlhf-theme");
      if (kept) return kept;
    } catch { /* storage may be switched off */ }
    return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  };
  const apply = () => {
    const dark = wanted() === "dark";
    document.documentElement.classList.toggle("night", dark);
    document.body?.classList.toggle("dark", dark);
  };
  window.rlhfTheme = {
    toggle() {
      const next = wanted() === "dark" ? "light" : "dark";
      try { localStorage.setItem("rlhf-theme", next); } catch { /* as above */ }
      apply();
      return next;
    },
  };
  apply();
  document.addEventListener("DOMContentLoaded", apply);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
})();
