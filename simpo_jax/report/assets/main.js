// Draws everything; what needs the texts, which come last in the file, when they are there.

function drawContents() {
  const sections = [...document.querySelectorAll("main > section")];
  section("contents").append(...sections.map((s) =>
    el("li", {}, el("a", { href: `#${s.id}` }, s.querySelector("h2").textContent))));
}

function theme() {
  const select = section("theme");
  const apply = () => { document.documentElement.style.colorScheme = select.value; };
  const stored = (act) => {
    try {
      return act();
    } catch {
      return null; // no storage for local files in some browsers
    }
  };
  select.value = stored(() => localStorage.getItem("simpo_jax.theme")) ?? "";
  select.addEventListener("change", () => {
    apply();
    stored(() => localStorage.setItem("simpo_jax.theme", select.value));
  });
  apply();
}

theme();
drawMasthead();
drawContents();
drawGlance();
drawSigns();
drawCurves();
drawTimeline();
drawMemory();
drawData();
drawGenerations();
drawSettings();
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", drawSamples);
else drawSamples();
