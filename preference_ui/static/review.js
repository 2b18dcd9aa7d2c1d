// Gradio's date picker has a button without a name: it is given one, whenever the page is drawn anew.
(() => {
  const name = () => {
    for (const button of document.querySelectorAll("button.calendar:not([aria-label])")) button.setAttribute("aria-label", "Choose a date");
  };
  const begin = () => {
    new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
    name();
  };
  if (document.body) begin();
  else document.addEventListener("DOMContentLoaded", begin);
})();
