// Light, dark, or as the system has it; the choice is kept where the browser keeps anything for files.

const THEMES = ["auto", "light", "dark"];

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").textContent = `Theme: ${theme}`;
}

function stored() {
  try {
    return localStorage.getItem("proxytune-theme");
  } catch {
    return null;
  }
}

let theme = THEMES.includes(stored()) ? stored() : "auto";
setTheme(theme);
$("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  setTheme(theme);
  try {
    localStorage.setItem("proxytune-theme", theme);
  } catch {
    // A browser that keeps nothing forgets the choice with the page.
  }
});
