// The few things that HTML and CSS do not do by themselves.
const root = document.documentElement;
const $ = (id) => document.getElementById(id);

function show(theme) {
  root.dataset.theme = theme;
  $("theme").setAttribute("aria-pressed", theme === "dark");
}
show(root.dataset.theme);
$("theme").onclick = () => show(localStorage.theme = root.dataset.theme === "dark" ? "light" : "dark");
matchMedia("(prefers-color-scheme: dark)").onchange = (event) =>
  localStorage.theme || show(event.matches ? "dark" : "light");

if ($("menu")) $("menu").onclick = () => {
  const open = document.body.classList.toggle("menu");
  $("menu").setAttribute("aria-expanded", open);
};

for (const block of document.querySelectorAll("div.sourceCode")) {
  const button = Object.assign(document.createElement("button"), { className: "copy", textContent: "Copy" });
  button.onclick = async () => {
    await navigator.clipboard.writeText(block.querySelector("code").innerText);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  };
  block.append(button);
}

// What scrolls sideways must be reachable by keyboard.
for (const box of document.querySelectorAll(".scroll, pre, .equation"))
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;

if ($("search") && location.protocol !== "file:") {
  const up = $("search").dataset.up;
  const sheet = Object.assign(document.createElement("link"), { rel: "stylesheet", href: up + "pagefind/pagefind-ui.css" });
  const script = Object.assign(document.createElement("script"), { src: up + "pagefind/pagefind-ui.js" });
  script.onload = () => {
    new PagefindUI({ element: "#search", showImages: false, translations: { placeholder: "Search the book" } });
    $("search").querySelector("input").setAttribute("aria-label", "Search the book");
  };
  document.head.append(sheet, script);
}
